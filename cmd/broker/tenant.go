package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/admin"
)

func newTenant(client func() *admin.Client) *cobra.Command {
	return group("tenant", "Manage the hosted control planes",
		newTenantAdd(client), newTenantList(client), newTenantShow(client), newTenantRemove(client))
}

func newTenantAdd(client func() *admin.Client) *cobra.Command {
	var kubeconfig string
	c := &cobra.Command{
		Use:   "add NAME --kubeconfig FILE",
		Short: "Add a hosted control plane",
		Long: `Add a hosted control plane by an administrator's kubeconfig. Its current context is used;
files that it names are read in. The broker needs it to mint bootstrap tokens and to
approve the certificates of the tenant's kubelets. The API server may be down.`,
		Example: `  broker tenant add acme --kubeconfig /etc/kubernetes/admin.conf
  kubectl -n tenants get secret acme-admin-kubeconfig -o jsonpath='{.data.admin\.svc}' \
    | base64 -d | broker tenant add acme --kubeconfig -`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			data, err := readInput(c.InOrStdin(), kubeconfig)
			if err != nil {
				return usageError{err}
			}
			flat, err := flattenKubeconfig(kubeconfig, data)
			if err != nil {
				return usageError{err}
			}
			t, err := client().AddTenant(c.Context(), admin.TenantRequest{Name: args[0], Kubeconfig: string(flat)})
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "tenant %s added (API server %s)\n", t.Name, t.Address)
			return nil
		},
	}
	c.Flags().StringVar(&kubeconfig, "kubeconfig", "", "administrator's kubeconfig, or - for standard input (required)")
	c.MarkFlagRequired("kubeconfig")
	c.MarkFlagFilename("kubeconfig")
	return c
}

// maxInput bounds what is read of a file named on the command line, in bytes.
const maxInput = 1 << 20

func readInput(stdin io.Reader, path string) ([]byte, error) {
	r := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxInput {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxInput)
	}
	return data, nil
}

func newTenantList(client func() *admin.Client) *cobra.Command {
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the hosted control planes",
		Example: `  broker tenant list
  broker tenant list -o json`,
		Args: cobra.NoArgs,
	}
	out := addOutput(c, "table", "json", "yaml")
	c.RunE = func(c *cobra.Command, _ []string) error {
		all, err := client().Tenants(c.Context())
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), all, func(w io.Writer) { tenantTable(w, all) })
	}
	return c
}

func tenantTable(w io.Writer, all []admin.Tenant) {
	row(w, "NAME", "API SERVER", "NODES", "CONNECTED", "AGE")
	for _, t := range all {
		row(w, t.Name, t.Address, strconv.Itoa(t.Nodes), strconv.Itoa(t.Connected), age(t.CreatedAt))
	}
}

func newTenantShow(client func() *admin.Client) *cobra.Command {
	c := &cobra.Command{
		Use:               "show NAME",
		Short:             "Show one hosted control plane",
		Example:           `  broker tenant show acme -o yaml`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeTenants(client),
	}
	out := addOutput(c, "table", "json", "yaml")
	c.RunE = func(c *cobra.Command, args []string) error {
		t, err := client().Tenant(c.Context(), args[0])
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), t, func(w io.Writer) { tenantTable(w, []admin.Tenant{t}) })
	}
	return c
}

func newTenantRemove(client func() *admin.Client) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Aliases: []string{"rm"},
		Short:   "Forget a hosted control plane, its tokens and its nodes",
		Long: `Forget a hosted control plane, its enrolment tokens and its nodes' identities, and close
their sessions. Nothing is changed at the control plane itself.`,
		Example:           `  broker tenant remove acme`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeTenants(client),
		RunE: func(c *cobra.Command, args []string) error {
			if err := client().RemoveTenant(c.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "tenant %s removed\n", args[0])
			return nil
		},
	}
}

// completeTenants offers the tenants' names to the shell.
func completeTenants(client func() *admin.Client) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		all, err := client().Tenants(c.Context())
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, t := range all {
			names = append(names, t.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
