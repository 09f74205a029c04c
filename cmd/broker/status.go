package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/version"
)

func newStatus(client func() *admin.Client) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how the running broker is",
		Example: `  broker status
  broker status -o json`,
		Args: cobra.NoArgs,
	}
	out := addOutput(c, "table", "json", "yaml")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := client().Status(c.Context())
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), s, func(w io.Writer) {
			row(w, "Version:", s.Version)
			row(w, "Running for:", age(s.Since))
			row(w, "Public endpoint:", s.PublicEndpoint)
			row(w, "Egress endpoint:", s.EgressEndpoint)
			row(w, "Trust domain:", s.TrustDomain)
			row(w, "CA hash:", s.CACertHash)
			row(w, "Tenants:", fmt.Sprint(s.Tenants))
			row(w, "Nodes:", fmt.Sprintf("%d enrolled, %d connected", s.Nodes, s.Connected))
			row(w, "Sidecars:", fmt.Sprintf("%d connected", s.Sidecars))
			if s.Agents > 0 {
				row(w, "Konnectivity agents:", fmt.Sprintf("of %d nodes", s.Agents))
			}
			for _, cond := range s.Conditions {
				row(w, cond.Type+":", cond.Status+" "+cond.Message)
			}
		})
	}
	return c
}

func newVersion() *cobra.Command {
	c := &cobra.Command{
		Use:     "version",
		Short:   "Print the broker's version",
		Example: `  broker version -o json`,
		Args:    cobra.NoArgs,
	}
	out := addOutput(c, "table", "json", "yaml")
	c.RunE = func(c *cobra.Command, _ []string) error {
		v := version.Get()
		return out.print(c.OutOrStdout(), v, func(w io.Writer) { row(w, "broker "+v.String()) })
	}
	return c
}
