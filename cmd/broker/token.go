package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enrollapi"
)

func newToken(client func() *admin.Client) *cobra.Command {
	return group("token", "Manage enrolment tokens", newTokenCreate(client), newTokenList(client), newTokenRevoke(client))
}

func newTokenCreate(client func() *admin.Client) *cobra.Command {
	r := admin.TokenRequest{}
	var ttl time.Duration
	var taints []string
	var noTenant bool
	var pkg debPackage
	c := &cobra.Command{
		Use:   "create --tenant NAME | --no-tenant",
		Short: "Create an enrolment token and print its join bundle",
		Long: `Create an enrolment token and print the join bundle that an edge node needs: the broker's
address, the hash of its CA, and the token. The bundle holds a secret, shown only now;
put it on the box as /etc/mooring/join.yaml.

Formats: yaml (the bundle), json (the same), text (for a person: what it is, and the steps), cloud-init (a
whole user-data: for images with edge-agent in them, or, with --package, for a plain Debian that installs it).

A node is named by --node-name: a name, or a template with {hostname}, {serial} and {tenant}; by default by the
box's host name. With --approval manual each box waits until an operator approves it. A token of no tenant may be
baked into an image that all boxes share: claims say where each box belongs (broker claim create), and a box
without a claim waits (broker node pending).`,
		Example: `  # one box, for a day, named by its host name
  broker token create --tenant acme > join.yaml

  # twenty boxes within a week, labelled and tainted
  broker token create --tenant acme --uses 20 --ttl 168h \
    --label site=hamburg --taint edge=true:NoSchedule

  # user-data for an image with edge-agent, nodes named by their serial numbers
  broker token create --tenant acme --uses 20 --node-name 'shop-{serial}' --format cloud-init > user-data

  # the same for a plain Debian
  broker token create --tenant acme --format cloud-init > user-data \
    --package https://example.com/edge-agent_1.0.0-1_amd64.deb --package-sha256 "$(sha256sum < edge-agent_1.0.0-1_amd64.deb | cut -c -64)"

  # one image for all tenants; claims place the boxes
  broker token create --no-tenant --uses 1000 --ttl 2160h > join.yaml`,
		Args: cobra.NoArgs,
	}
	out := addFormat(c, "format", formatYAML, formatJSON, formatText, formatCloudInit)
	f := c.Flags()
	f.StringVar(&out.format, "output", formatYAML, "as in the other commands: --format")
	f.MarkHidden("output")
	f.StringVar(&r.Tenant, "tenant", "", "tenant that the node will belong to")
	f.BoolVar(&noTenant, "no-tenant", false, "of no tenant: claims place its boxes, or an operator does")
	f.DurationVar(&ttl, "ttl", 24*time.Hour, "how long the token may be used")
	f.IntVar(&r.Uses, "uses", 1, "how many nodes may enrol with it")
	f.StringVar(&r.NodeName, "node-name", "", "name of the node (needs --uses 1), or a template with {hostname}, {serial}, {tenant} (default: the box's host name)")
	f.StringVar(&r.Approval, "approval", "auto", "auto, or manual: each box waits until an operator approves it")
	f.StringToStringVar(&r.Labels, "label", nil, "label that the node registers with, key=value; may be repeated")
	f.StringArrayVar(&taints, "taint", nil, "taint that the node registers with, key=value:Effect; may be repeated")
	f.StringVar(&pkg.url, "package", "", "with --format cloud-init: URL (http, https, file) of edge-agent's deb, for boxes that don't have it")
	f.StringVar(&pkg.sha256, "package-sha256", "", "SHA-256 of that file, in hex: nothing else is installed")
	f.StringVar(&r.Description, "description", "", "a note for the list of tokens")
	c.MarkFlagsOneRequired("tenant", "no-tenant")
	c.MarkFlagsMutuallyExclusive("tenant", "no-tenant")
	c.RegisterFlagCompletionFunc("approval", completeApproval)
	c.RegisterFlagCompletionFunc("tenant", completeTenants(client))
	c.RunE = func(c *cobra.Command, _ []string) error {
		if r.Tenant == "" && !noTenant {
			return usageError{errors.New("--tenant is empty: name one, or say --no-tenant")}
		}
		if ttl <= 0 || r.Uses < 1 {
			return usageError{fmt.Errorf("want --ttl above 0 and --uses of at least 1, got %s and %d", ttl, r.Uses)}
		}
		if err := pkg.check(out.format); err != nil {
			return usageError{err}
		}
		r.TTL = config.Duration{Duration: ttl}
		for _, t := range taints {
			taint, err := enrollapi.ParseTaint(t)
			if err != nil {
				return usageError{err}
			}
			r.Taints = append(r.Taints, taint)
		}
		resp, err := client().CreateToken(c.Context(), r)
		if err != nil {
			return err
		}
		return printBundle(c.OutOrStdout(), out.format, resp, pkg)
	}
	return c
}

func newTokenList(client func() *admin.Client) *cobra.Command {
	var tenant string
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List enrolment tokens, without their secrets",
		Example: `  broker token list --tenant acme`,
		Args:    cobra.NoArgs,
	}
	out := addOutput(c, "table", "json", "yaml")
	c.Flags().StringVar(&tenant, "tenant", "", "only this tenant's")
	c.RegisterFlagCompletionFunc("tenant", completeTenants(client))
	c.RunE = func(c *cobra.Command, _ []string) error {
		all, err := client().Tokens(c.Context(), tenant)
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), all, func(w io.Writer) {
			row(w, "ID", "TENANT", "STATE", "USES", "APPROVAL", "EXPIRES", "USED BY", "DESCRIPTION")
			for _, t := range all {
				row(w, t.ID, orDash(t.Tenant), t.State, fmt.Sprintf("%d/%d", len(t.UsedBy), t.Uses), t.Approval,
					t.Expires.UTC().Format(time.RFC3339), orDash(strings.Join(t.UsedBy, ",")), orDash(t.Description))
			}
		})
	}
	return c
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newTokenRevoke(client func() *admin.Client) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "Make an enrolment token useless; nodes that used it stay",
		Example: `  broker token revoke k3v8q2m9xw`,
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: completeFirst(func(c *cobra.Command) (ids []string, err error) {
			all, err := client().Tokens(c.Context(), "")
			for _, t := range all {
				ids = append(ids, cobra.CompletionWithDesc(t.ID, strings.TrimSpace(t.Tenant+" "+t.State+" "+t.Description)))
			}
			return ids, err
		}),
		RunE: func(c *cobra.Command, args []string) error {
			id, _, _ := strings.Cut(args[0], ".") // a whole token may be pasted
			if err := enrollapi.ValidTokenID(id); err != nil {
				return usageError{err}
			}
			if err := client().RevokeToken(c.Context(), id); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "token %s revoked\n", id)
			return nil
		},
	}
}
