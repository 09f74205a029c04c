package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/enrollapi"
)

func newClaim(client func() *admin.Client) *cobra.Command {
	return group("claim", "Say ahead which box, by its serial number, belongs where", newClaimCreate(client), newClaimList(client), newClaimDelete(client))
}

// maxClaimsFile is what the broker takes, in bytes.
const maxClaimsFile = 1 << 20

func newClaimCreate(client func() *admin.Client) *cobra.Command {
	r := admin.ClaimRequest{}
	var taints []string
	var file string
	c := &cobra.Command{
		Use:   "create --serial S --tenant NAME | --file claims.csv",
		Short: "File a claim, or a CSV file of many",
		Long: `File a claim: the box with this serial number belongs to this tenant. The first box that comes with the
serial number and a valid token, of this tenant or of none, consumes the claim and is let in. Another box
with the same serial number waits for approval (see ` + "`broker node pending`" + `).

A CSV file has the header serial,tenant,node-name,labels,taints; labels are key=value and taints
key=value:Effect, several with ';' between; up to 5000 claims and 1 MiB. It is checked whole, and nothing is
filed if anything is wrong. Then claims are stored in batches of 250, each whole or not at all; if that
breaks off, run it again: what is filed already is passed over.`,
		Example: `  broker claim create --serial 5CG0123XYZ --tenant acme --node-name pump-7
  broker claim create --file claims.csv`,
		Args: cobra.NoArgs,
	}
	f := c.Flags()
	f.StringVar(&r.Serial, "serial", "", "the box's serial number (SMBIOS or device tree)")
	f.StringVar(&r.Tenant, "tenant", "", "tenant that the box belongs to")
	f.StringVar(&r.NodeName, "node-name", "", "name of the node (default: as the token says)")
	f.StringToStringVar(&r.Labels, "label", nil, "label that the node registers with, key=value; may be repeated")
	f.StringArrayVar(&taints, "taint", nil, "taint that the node registers with, key=value:Effect; may be repeated")
	f.StringVar(&r.Approval, "approval", "auto", "auto, or manual: an operator approves the box too")
	f.StringVar(&r.Fingerprint, "fingerprint", "", "fingerprint of the only key that may consume the claim, if it is known")
	f.StringVar(&file, "file", "", "CSV file of claims; - for standard input")
	c.MarkFlagsOneRequired("serial", "file")
	for _, own := range []string{"serial", "tenant", "node-name", "label", "taint", "fingerprint"} {
		c.MarkFlagsMutuallyExclusive(own, "file")
	}
	c.MarkFlagsRequiredTogether("serial", "tenant")
	c.RegisterFlagCompletionFunc("tenant", completeTenants(client))
	c.RegisterFlagCompletionFunc("approval", completeApproval)
	c.RunE = func(c *cobra.Command, _ []string) error {
		for _, t := range taints {
			taint, err := enrollapi.ParseTaint(t)
			if err != nil {
				return usageError{err}
			}
			r.Taints = append(r.Taints, taint)
		}
		if file != "" {
			data, err := readClaims(c.InOrStdin(), file)
			if err != nil {
				return err
			}
			r.CSV = string(data)
		}
		resp, err := client().CreateClaims(c.Context(), r)
		if err != nil {
			return err
		}
		if file == "" {
			fmt.Fprintf(c.OutOrStdout(), "claim of serial %q for tenant %s filed\n", r.Serial, r.Tenant)
			return nil
		}
		fmt.Fprintf(c.OutOrStdout(), "%d claims filed, %d were there already\n", resp.Created, resp.Unchanged)
		return nil
	}
	return c
}

func completeApproval(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"auto", "manual"}, cobra.ShellCompDirectiveNoFileComp
}

func readClaims(stdin io.Reader, path string) ([]byte, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read claims: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxClaimsFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read claims from %s: %w", path, err)
	case len(data) > maxClaimsFile:
		return nil, fmt.Errorf("%s has over %d bytes of claims: split it", path, maxClaimsFile)
	case len(data) == 0:
		return nil, fmt.Errorf("%s is empty: want the header serial,tenant,node-name,labels,taints, and a claim a line", path)
	}
	return data, nil
}

func newClaimList(client func() *admin.Client) *cobra.Command {
	var tenant string
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List claims, and which box consumed each",
		Example: `  broker claim list --tenant acme`,
		Args:    cobra.NoArgs,
	}
	out := addOutput(c, "table", "json", "yaml")
	c.Flags().StringVar(&tenant, "tenant", "", "only this tenant's")
	c.RegisterFlagCompletionFunc("tenant", completeTenants(client))
	c.RunE = func(c *cobra.Command, _ []string) error {
		all, err := client().Claims(c.Context(), tenant)
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), all, func(w io.Writer) {
			row(w, "SERIAL", "TENANT", "NODE NAME", "APPROVAL", "CONSUMED BY", "KEY", "CREATED")
			for _, cl := range all {
				row(w, cl.Serial, cl.Tenant, orDash(cl.NodeName), cl.Approval, orDash(cl.Node), orDash(shortKey(cl.KeyHash)), age(cl.CreatedAt)+" ago")
			}
		})
	}
	return c
}

func newClaimDelete(client func() *admin.Client) *cobra.Command {
	return &cobra.Command{
		Use:     "delete SERIAL",
		Aliases: []string{"rm"},
		Short:   "Take a claim back; a node that consumed it stays",
		Example: `  broker claim delete 5CG0123XYZ`,
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: completeFirst(func(c *cobra.Command) (serials []string, err error) {
			all, err := client().Claims(c.Context(), "")
			for _, cl := range all {
				serials = append(serials, cl.Serial)
			}
			return serials, err
		}),
		RunE: func(c *cobra.Command, args []string) error {
			if err := client().DeleteClaim(c.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "claim of serial %q deleted\n", args[0])
			return nil
		},
	}
}
