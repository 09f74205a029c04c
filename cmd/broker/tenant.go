package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/admin"
)

func newTenant(client func() *admin.Client) *cobra.Command {
	return group("tenant", "Manage the hosted control planes",
		newTenantAdd(client), newTenantList(client), newTenantShow(client), newTenantUpdate(client), newTenantRemove(client))
}

func newTenantAdd(client func() *admin.Client) *cobra.Command {
	var kubeconfig string
	var way tenantWay
	c := &cobra.Command{
		Use:   "add NAME --kubeconfig FILE",
		Short: "Add a hosted control plane",
		Long: `Add a hosted control plane by an administrator's kubeconfig. Its current context is used;
files that it names are read in. With it the broker makes an account of its own at the tenant,
which may do little more than mint bootstrap tokens and approve the certificates of enrolled
nodes' kubelets ("broker tenant show" lists it all), and works with that account from then on.
The administrator's kubeconfig is not kept. The API server has to be up.

Where the broker has a front.domain, clients reach the API server through the broker's port as
https://NAME.DOMAIN:PORT, if its certificate has that name; what is missing is printed.`,
		Example: `  broker tenant add acme --kubeconfig /etc/kubernetes/admin.conf
  kubectl -n tenants get secret acme-admin-kubeconfig -o jsonpath='{.data.admin\.svc}' \
    | base64 -d | broker tenant add acme --kubeconfig -
  broker tenant add acme --kubeconfig admin.conf --upstream 10.1.2.4:6443 --host api.acme.example`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := tenantRequest(c, args[0], kubeconfig)
			if err != nil {
				return usageError{err}
			}
			way.into(c, &req)
			t, err := client().AddTenant(c.Context(), req)
			if err != nil {
				return err
			}
			tellTenant(c, t, "added", true)
			return nil
		},
	}
	addKubeconfig(c, &kubeconfig)
	c.MarkFlagRequired("kubeconfig")
	way.flags(c)
	return c
}

func newTenantUpdate(client func() *admin.Client) *cobra.Command {
	var kubeconfig string
	var way tenantWay
	c := &cobra.Command{
		Use:   "update NAME [--kubeconfig FILE] [--upstream HOST:PORT]... [--host NAME]...",
		Short: "Give the broker access to a hosted control plane anew, or change how it is reached",
		Long: `Make or mend the broker's account at a tenant with an administrator's kubeconfig, as "tenant add"
does, and take its address and CA from there. Needed when the account's token has run out (the
broker or the API server was away for 90 days), when somebody took the account or its rights
away, or when the API server has moved. Nodes, tokens and egress certificates stay good.

--upstream and --host replace what the tenant has; "" alone leaves none. Without --kubeconfig
nothing else changes. What goes on at the time goes on.`,
		Example: `  broker tenant update acme --kubeconfig /etc/kubernetes/admin.conf
  broker tenant update acme --upstream 10.1.2.4:6443 --upstream 10.1.2.5:6443`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeTenants(client),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := admin.TenantRequest{Name: args[0]}, error(nil)
			if kubeconfig != "" {
				req, err = tenantRequest(c, args[0], kubeconfig)
			} else if !way.given(c) {
				err = errors.New("nothing to change: give --kubeconfig, --upstream, --host, --proxy-protocol or --service-cidr")
			}
			if err != nil {
				return usageError{err}
			}
			way.into(c, &req)
			t, err := client().UpdateTenant(c.Context(), req)
			if err != nil {
				return err
			}
			tellTenant(c, t, "updated", kubeconfig != "")
			return nil
		},
	}
	addKubeconfig(c, &kubeconfig)
	way.flags(c)
	return c
}

// tenantWay is how a tenant's API server is reached, beside its kubeconfig.
type tenantWay struct {
	upstreams, hosts []string
	proxyProtocol    bool
	serviceCIDRs     []string
}

func (w *tenantWay) flags(c *cobra.Command) {
	c.Flags().StringArrayVar(&w.upstreams, "upstream", nil, "a further host:port of the API server, dialled where those before it don't answer; repeat it for more")
	c.Flags().StringArrayVar(&w.hosts, "host", nil, "a further DNS name that leads to the API server through the broker's port; repeat it for more")
	c.Flags().BoolVar(&w.proxyProtocol, "proxy-protocol", false, "begin each connection to the API server with a PROXY header of version 2 (default: front.proxyProtocol.toUpstreams)")
	c.Flags().StringSliceVar(&w.serviceCIDRs, "service-cidr", nil, "ranges of the tenant's Services, where its API server does not tell them; \""+admin.LearnServiceCIDRs+"\" takes back what was set")
}

// given tells whether one of the flags is.
func (w *tenantWay) given(c *cobra.Command) bool {
	return c.Flags().Changed("upstream") || c.Flags().Changed("host") || c.Flags().Changed("proxy-protocol") || c.Flags().Changed("service-cidr")
}

// into puts into a request what was given.
func (w *tenantWay) into(c *cobra.Command, req *admin.TenantRequest) {
	list := func(flag string, all []string) *[]string {
		if !c.Flags().Changed(flag) {
			return nil
		}
		if len(all) == 1 && all[0] == "" {
			all = []string{}
		}
		return &all
	}
	req.Upstreams, req.Hosts = list("upstream", w.upstreams), list("host", w.hosts)
	if c.Flags().Changed("proxy-protocol") {
		req.ProxyProtocol = &w.proxyProtocol
	}
	req.ServiceCIDRs = w.serviceCIDRs
}

func addKubeconfig(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "kubeconfig", "", "administrator's kubeconfig, or - for standard input; it is not kept")
	c.MarkFlagFilename("kubeconfig")
}

func tenantRequest(c *cobra.Command, name, kubeconfig string) (admin.TenantRequest, error) {
	data, err := readInput(c.InOrStdin(), kubeconfig)
	if err != nil {
		return admin.TenantRequest{}, err
	}
	flat, err := flattenKubeconfig(kubeconfig, data)
	return admin.TenantRequest{Name: name, Kubeconfig: string(flat)}, err
}

func tellTenant(c *cobra.Command, t admin.Tenant, done string, access bool) {
	fmt.Fprintf(c.OutOrStdout(), "tenant %s %s (API server %s)\n", t.Name, done, t.Address)
	if access {
		fmt.Fprintf(c.OutOrStdout(), "the broker is %s there; the kubeconfig was not kept\n", t.Access.Account)
	}
	if t.Front != "" {
		fmt.Fprintf(c.OutOrStdout(), "clients reach it at %s\n", t.Front)
	}
	for _, w := range append(t.Access.Warnings, t.Warnings...) {
		fmt.Fprintln(c.ErrOrStderr(), "warning:", w)
	}
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
		Short:             "Show one hosted control plane, and what the broker may do there",
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
		return out.print(c.OutOrStdout(), t, func(w io.Writer) { tenantDetails(w, t) })
	}
	return c
}

func tenantDetails(w io.Writer, t admin.Tenant) {
	row(w, "Name:", t.Name)
	row(w, "API server:", fmt.Sprintf("%s (verified as %s)", t.Address, t.ServerName))
	for i, u := range t.Upstreams {
		if len(t.Upstreams) > 1 || !u.Up {
			label, state := "", "up"
			if i == 0 {
				label = "Addresses:"
			}
			if !u.Up {
				state = "down: " + u.Error
			}
			row(w, label, u.Address+" ("+state+")")
		}
	}
	if t.ProxyProtocol {
		row(w, "PROXY header:", "is sent to the API server")
	}
	if t.Front != "" || len(t.Hosts) > 0 {
		row(w, "Through the front:", strings.Join(append(slices.DeleteFunc([]string{t.Front}, func(s string) bool { return s == "" }), t.Hosts...), ", "))
	}
	row(w, "Added:", t.CreatedAt.Format(time.RFC3339))
	row(w, "Nodes:", fmt.Sprintf("%d, %d connected", t.Nodes, t.Connected))
	row(w, "Account:", cmp.Or(t.Access.Account, "an administrator's: run `broker tenant update`"))
	if !t.Access.Expires.IsZero() {
		row(w, "Token until:", t.Access.Expires.Format(time.RFC3339)+", renewed by itself")
	}
	if len(t.ServiceCIDRs) > 0 {
		row(w, "Services in:", strings.Join(t.ServiceCIDRs, ", ")+" (set by an operator)")
	}
	for _, warning := range t.Access.Warnings {
		row(w, "Warning:", warning)
	}
	for i, r := range t.Access.Rights {
		label := ""
		if i == 0 {
			label = "May:"
		}
		row(w, label, r.String())
	}
}

func newTenantRemove(client func() *admin.Client) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Aliases: []string{"rm"},
		Short:   "Forget a hosted control plane, its tokens and its nodes",
		Long: `Forget a hosted control plane, its enrolment tokens and its nodes' identities, and close
their sessions. Nothing is changed at the control plane itself: docs/tenants.md says how to
remove the broker's account there.`,
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
