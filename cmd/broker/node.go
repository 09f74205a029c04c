package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/admin"
)

func newNode(client func() *admin.Client) *cobra.Command {
	return group("node", "Look at and manage enrolled nodes", newNodeList(client), newNodeShow(client), newNodePending(client), newNodeApprove(client), newNodeDeny(client),
		newNodeRevoke(client), newNodeReplace(client), newNodeResolve(client), newNodeRemove(client))
}

func newNodeList(client func() *admin.Client) *cobra.Command {
	var tenant string
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List enrolled nodes and their sessions",
		Example: `  broker node list
  broker node list --tenant acme -o json`,
		Args: cobra.NoArgs,
	}
	out := addOutput(c, "table", "json", "yaml")
	c.Flags().StringVar(&tenant, "tenant", "", "only this tenant's")
	c.RegisterFlagCompletionFunc("tenant", completeTenants(client))
	c.RunE = func(c *cobra.Command, _ []string) error {
		all, err := client().Nodes(c.Context(), tenant)
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), all, func(w io.Writer) { nodeTable(w, all) })
	}
	return c
}

func nodeTable(w io.Writer, all []admin.Node) {
	row(w, "TENANT", "NODE", "STATE", "CONNECTED", "TRANSPORT", "RTT", "FROM", "ADDRESSES", "ENROLLED", "CERTIFICATE")
	for _, n := range all {
		s := n.Session
		if s == nil {
			row(w, n.Tenant, n.Name, n.State, elsewhere(n.Connected), "-", "-", "-", "-", age(n.EnrolledAt)+" ago", untilEnd(n.CertificateNotAfter))
			continue
		}
		rtt, enrolled, end := fmt.Sprintf("%.1fms", s.RTTMillis), age(n.EnrolledAt)+" ago", untilEnd(n.CertificateNotAfter)
		if s.RTTMillis == 0 {
			rtt = "-"
		}
		if n.State == admin.StateAgent {
			enrolled, end = "never", "-"
		}
		row(w, n.Tenant, n.Name, n.State, age(s.Since), s.Transport, rtt, s.RemoteAddr, orDash(strings.Join(s.Addresses, ",")), enrolled, end)
	}
}

// elsewhere says of a node without a session at the broker that was asked whether another one has it.
func elsewhere(connected bool) string {
	if connected {
		return "to another broker"
	}
	return "no"
}

// untilEnd says how long a certificate is still valid, or for how long it is not any more. A box that was approved has
// none until it asks again.
func untilEnd(t time.Time) string {
	if t.IsZero() {
		return "none yet"
	}
	if left := time.Until(t); left > 0 {
		return "for " + span(left)
	}
	return "ended " + age(t) + " ago"
}

func newNodeShow(client func() *admin.Client) *cobra.Command {
	c := &cobra.Command{
		Use:               "show TENANT/NODE",
		Short:             "Show one enrolled node",
		Example:           `  broker node show acme/edge-1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNodes(client, ""),
	}
	out := addOutput(c, "table", "json", "yaml")
	c.RunE = func(c *cobra.Command, args []string) error {
		tenant, name, err := splitNode(args[0])
		if err != nil {
			return err
		}
		n, err := client().Node(c.Context(), tenant, name)
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), n, func(w io.Writer) { nodeDetails(w, n) })
	}
	return c
}

func nodeDetails(w io.Writer, n admin.Node) {
	row(w, "Tenant:", n.Tenant)
	row(w, "Node:", n.Name)
	row(w, "Key:", n.KeyHash)
	row(w, "Enrolled:", n.EnrolledAt.UTC().Format(time.RFC3339), "with token "+n.TokenID)
	if n.CertificateNotAfter.IsZero() {
		row(w, "Certificate until:", "none yet: the box gets it when it asks next")
	} else {
		row(w, "Certificate until:", n.CertificateNotAfter.UTC().Format(time.RFC3339), "("+untilEnd(n.CertificateNotAfter)+")")
	}
	row(w, "State:", n.State)
	if n.RevokedAt != nil {
		row(w, "Revoked:", n.RevokedAt.UTC().Format(time.RFC3339), n.RevokedReason)
	}
	if n.ReplaceUntil != nil && time.Now().Before(*n.ReplaceUntil) {
		row(w, "Replaceable until:", n.ReplaceUntil.UTC().Format(time.RFC3339))
	}
	for _, b := range n.Boxes {
		row(w, "Box:", b.ID, "from "+b.RemoteAddr+", last seen "+age(b.LastSeen)+" ago")
	}
	if len(n.Boxes) > 0 {
		row(w, "Next:", "broker node resolve "+n.Tenant+"/"+n.Name+" --keep ID")
	}
	s := n.Session
	if s == nil {
		row(w, "Connected:", elsewhere(n.Connected))
		return
	}
	row(w, "Connected:", "for "+age(s.Since)+" over "+s.Transport+" from "+s.RemoteAddr)
	row(w, "Addresses:", orDash(strings.Join(s.Addresses, ", ")))
	row(w, "Agent:", s.AgentVersion)
	row(w, "Round trip:", fmt.Sprintf("%.1f ms", s.RTTMillis))
	row(w, "Traffic:", fmt.Sprintf("%d streams open, %d bytes in, %d bytes out", s.Streams, s.BytesIn, s.BytesOut))
}

func newNodeRemove(client func() *admin.Client) *cobra.Command {
	return &cobra.Command{
		Use:     "remove TENANT/NODE",
		Aliases: []string{"rm"},
		Short:   "Forget a node's identity and close its session",
		Long: `Forget a node's identity and close its session: it is not let in again without a new token,
and its name is free for another box. Its Node object at the tenant is left as it is.
For a box that was stolen, use revoke: then not even a token helps it.`,
		Example:           `  broker node remove acme/edge-1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNodes(client, ""),
		RunE: func(c *cobra.Command, args []string) error {
			tenant, name, err := splitNode(args[0])
			if err != nil {
				return err
			}
			if err := client().RemoveNode(c.Context(), tenant, name); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "node %s/%s removed\n", tenant, name)
			return nil
		},
	}
}

func splitNode(s string) (tenant, name string, err error) {
	tenant, name, ok := strings.Cut(s, "/")
	if !ok || tenant == "" || name == "" {
		return "", "", usageError{fmt.Errorf("malformed node %q: want TENANT/NODE, e.g. acme/edge-1", s)}
	}
	return tenant, name, nil
}
