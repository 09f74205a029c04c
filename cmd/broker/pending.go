package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/admin"
)

func newNodePending(client func() *admin.Client) *cobra.Command {
	c := &cobra.Command{
		Use:   "pending",
		Short: "List the boxes that wait for approval, and those that were denied",
		Long: `List the boxes that wait for approval, and those that were denied. Hostname and serial number are the
box's own words; compare the fingerprint with what the box prints on its console, and in
` + "`edge-agent status`" + `. A box that does not come for 30 days is forgotten, unless it was denied.`,
		Example: `  broker node pending
  broker node pending -o json`,
		Args: cobra.NoArgs,
	}
	out := addOutput(c, "table", "json", "yaml")
	c.RunE = func(c *cobra.Command, _ []string) error {
		all, err := client().Pending(c.Context())
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), all, func(w io.Writer) {
			row(w, "FINGERPRINT", "STATE", "HOSTNAME", "SERIAL", "FROM", "TENANT", "TOKEN", "FIRST SEEN", "LAST SEEN", "WAITS BECAUSE")
			for _, b := range all {
				row(w, shortKey(b.Fingerprint), b.State, orDash(b.Hostname), orDash(b.Serial), orDash(b.RemoteAddr), orDash(b.Tenant), b.TokenID,
					age(b.FirstSeen)+" ago", seen(b.LastSeen), b.Reason)
			}
		})
	}
	return c
}

// seen is when a box came last, which is kept to five minutes.
func seen(t time.Time) string {
	if time.Since(t) < 6*time.Minute {
		return "just now"
	}
	return age(t) + " ago"
}

// shortKey is what of a fingerprint a person compares and types; the whole is in -o json.
func shortKey(spki string) string {
	hex := strings.TrimPrefix(spki, "sha256:")
	return hex[:min(16, len(hex))]
}

func newNodeApprove(client func() *admin.Client) *cobra.Command {
	r := admin.ApproveRequest{}
	c := &cobra.Command{
		Use:   "approve FINGERPRINT",
		Short: "Let a waiting box in",
		Long: `Let a waiting box in. The fingerprint, or at least 16 digits of its beginning, is that of the box's key, as
the box prints it on its console; compare it there, as all else that a box says may be false. The box
gets its certificate when it asks next, within a minute or so.`,
		Example: `  broker node approve 4f2a9c0d11e58b73
  broker node approve 4f2a9c0d11e58b73 --tenant acme --node-name pump-7`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completePending(client, "pending"),
	}
	c.Flags().StringVar(&r.Tenant, "tenant", "", "tenant that the box belongs to, if its token has none")
	c.Flags().StringVar(&r.NodeName, "node-name", "", "name of the node (default: as claim and token say)")
	c.RegisterFlagCompletionFunc("tenant", completeTenants(client))
	c.RunE = func(c *cobra.Command, args []string) error {
		r.Fingerprint = args[0]
		resp, err := client().Approve(c.Context(), r)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "box %s approved: node %s/%s\n", shortKey(resp.Fingerprint), resp.Tenant, resp.Node)
		return nil
	}
	return c
}

func newNodeDeny(client func() *admin.Client) *cobra.Command {
	var forget bool
	c := &cobra.Command{
		Use:   "deny FINGERPRINT",
		Short: "Refuse a waiting box, with any token, until it is forgotten",
		Long: `Refuse a waiting box, whatever token it comes with, until --forget deletes its record: when it comes after
that, it is as new. --forget also drops a box from the list that was not denied.`,
		Example: `  broker node deny 4f2a9c0d11e58b73
  broker node deny --forget 4f2a9c0d11e58b73`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completePending(client, ""),
	}
	c.Flags().BoolVar(&forget, "forget", false, "delete the record instead: the box may come again as new")
	c.RunE = func(c *cobra.Command, args []string) error {
		box, err := client().Deny(c.Context(), args[0], forget)
		if err != nil {
			return err
		}
		done := "denied"
		if forget {
			done = "forgotten"
		}
		fmt.Fprintf(c.OutOrStdout(), "box %s %s\n", shortKey(box.Fingerprint), done)
		return nil
	}
	return c
}

// completePending offers the fingerprints of boxes in a state; "" = in any.
func completePending(client func() *admin.Client, state string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, err := client().Pending(c.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var out []string
		for _, b := range all {
			if state == "" || b.State == state {
				out = append(out, cobra.CompletionWithDesc(shortKey(b.Fingerprint), strings.TrimSpace(b.Hostname+" "+b.Serial)))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
