package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
)

// completeNodes completes TENANT/NODE; state narrows it to nodes in that state, "" to none.
func completeNodes(client func() *admin.Client, state string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, err := client().Nodes(c.Context(), "")
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, n := range all {
			if state == "" || n.State == state {
				names = append(names, n.Tenant+"/"+n.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// revokeFlags are what `node revoke` does at the tenant besides.
type revokeFlags struct {
	reason, kubeconfig string
	cordon, deleteNode bool
}

func newNodeRevoke(client func() *admin.Client) *cobra.Command {
	var f revokeFlags
	c := &cobra.Command{
		Use:   "revoke TENANT/NODE",
		Short: "End a node's identity for good and cut its session (a stolen box)",
		Long: `End a node's identity for good: its key is not accepted for anything any more, not even
with a new token, and its live session is cut on every broker. Its name stays reserved
until the node is replaced or removed. Its bootstrap tokens at the tenant are deleted.

The kubelet's own client certificate can't be revoked: Kubernetes has no way to. It is
valid at the API server until it expires; the box's way there, the tunnel, is closed.
To take the node out of the cluster as well, give an administrator's kubeconfig of the
tenant with --cordon or --delete-node: it is used once, by this command, and kept nowhere.`,
		Example: `  broker node revoke acme/edge-1 --reason "stolen in Hamburg"
  broker node revoke acme/edge-1 --delete-node --kubeconfig admin.conf`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNodes(client, admin.StateActive),
		RunE: func(c *cobra.Command, args []string) error {
			tenant, name, err := splitNode(args[0])
			if err != nil {
				return err
			}
			return revoke(c, client(), tenant, name, f)
		},
	}
	c.Flags().StringVar(&f.reason, "reason", "", "why, for the record and the audit log")
	c.Flags().BoolVar(&f.cordon, "cordon", false, "mark the Node object unschedulable; needs --kubeconfig")
	c.Flags().BoolVar(&f.deleteNode, "delete-node", false, "delete the Node object; needs --kubeconfig")
	c.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "administrator's kubeconfig of the tenant, or - for standard input")
	c.MarkFlagsMutuallyExclusive("cordon", "delete-node")
	c.MarkFlagFilename("kubeconfig")
	return c
}

func revoke(c *cobra.Command, client *admin.Client, tenant, name string, f revokeFlags) error {
	var at *nodeObjects
	switch wants := f.cordon || f.deleteNode; {
	case wants && f.kubeconfig == "":
		return usageError{errors.New("--cordon and --delete-node need --kubeconfig: the broker's own account at the tenant may not change Node objects")}
	case !wants && f.kubeconfig != "":
		return usageError{errors.New("--kubeconfig is for --cordon or --delete-node: say which")}
	case wants:
		var err error
		if at, err = openNodeObjects(c.InOrStdin(), tenant, f.kubeconfig); err != nil {
			return usageError{err} // before anything was done
		}
	}
	r, err := client.RevokeNode(c.Context(), tenant, name, admin.RevokeRequest{Reason: f.reason})
	if err != nil {
		return err
	}
	out := c.OutOrStdout()
	fmt.Fprintf(out, "node %s/%s revoked: its key is not accepted any more, its name stays reserved\n", tenant, name)
	session := "it has no session at this broker; any that it has at another of this store is cut within seconds"
	if r.Cut {
		session = "its session was cut; any at another broker of this store is within seconds"
	}
	fmt.Fprintln(out, "  tunnel:            "+session)
	if r.BootstrapError == "" {
		fmt.Fprintln(out, "  bootstrap tokens:  deleted at the tenant")
	} else {
		fmt.Fprintln(out, "  bootstrap tokens:  NOT deleted, they end by themselves within 10 minutes: "+r.BootstrapError)
	}
	fmt.Fprintln(out, "  kubelet:           its client certificate can't be revoked and is valid at the API server until it expires;")
	fmt.Fprintln(out, "                     it has no way there but the tunnel, unless the API server can be reached otherwise")
	return f.nodeObject(c, out, at, name)
}

// nodeObject does what was asked for at the tenant, or says how to.
func (f revokeFlags) nodeObject(c *cobra.Command, out io.Writer, at *nodeObjects, name string) error {
	var err error
	switch {
	case f.cordon:
		if err = at.cordon(c.Context(), name); err == nil {
			fmt.Fprintln(out, "  Node object:       cordoned")
		}
	case f.deleteNode:
		if err = at.remove(c.Context(), name); err == nil {
			fmt.Fprintln(out, "  Node object:       deleted; its pods are rescheduled")
		}
	default:
		fmt.Fprintln(out, "  Node object:       left as it is. To take its pods elsewhere: kubectl delete node "+name)
	}
	if errors.Is(err, errNoNodeObject) {
		fmt.Fprintln(out, "  Node object:       there is none")
		return nil
	}
	if err != nil {
		return fmt.Errorf("the node is revoked, but its Node object is as it was: %w; try kubectl cordon or delete node %s", err, name)
	}
	return nil
}

func newNodeReplace(client func() *admin.Client) *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "replace TENANT/NODE",
		Short: "Let one new box take a node's name (a dead box)",
		Long: `Let one new box take a node's name, once. The new box enrols as any other, with a valid
token or claim that gives it this name. In that moment the old box's key is revoked
and its session cut; until then nothing changes for it. Of several new boxes one wins.`,
		Example: `  broker node replace acme/edge-1
  broker token create --tenant acme --node-name edge-1 > join.yaml`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNodes(client, ""),
	}
	c.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "for how long the name may be taken, 1m to 720h")
	out := addOutput(c, "table", "json", "yaml")
	c.RunE = func(c *cobra.Command, args []string) error {
		tenant, name, err := splitNode(args[0])
		if err != nil {
			return err
		}
		n, err := client().ReplaceNode(c.Context(), tenant, name, admin.ReplaceRequest{TTL: config.Duration{Duration: ttl}})
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), n, func(w io.Writer) {
			fmt.Fprintf(w, "node %s/%s may be replaced once until %s\n", tenant, name, n.ReplaceUntil.UTC().Format(time.RFC3339))
			fmt.Fprintf(w, "next: enrol the new box with that name, e.g. by `broker token create --tenant %s --node-name %s`\n", tenant, name)
		})
	}
	return c
}

func newNodeResolve(client func() *admin.Client) *cobra.Command {
	var keep string
	c := &cobra.Command{
		Use:   "resolve TENANT/NODE --keep ID",
		Short: "Say which of two boxes keeps a node's identity (a cloned box)",
		Long: `Say which box keeps an identity that two were found to use. It is let in when it comes
again, within minutes; the others stay out for good. They hold the node's key, too:
wipe them (edge-agent reset), or have the node replaced if you don't know where they are.
The IDs are those of broker node show.`,
		Example: `  broker node show acme/edge-1
  broker node resolve acme/edge-1 --keep 3f0c9a7be2d41856`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNodes(client, admin.StateQuarantined),
	}
	c.Flags().StringVar(&keep, "keep", "", "ID of the box that keeps the identity (required)")
	c.MarkFlagRequired("keep")
	c.RegisterFlagCompletionFunc("keep", completeBoxes(client))
	out := addOutput(c, "table", "json", "yaml")
	c.RunE = func(c *cobra.Command, args []string) error {
		tenant, name, err := splitNode(args[0])
		if err != nil {
			return err
		}
		b, err := client().ResolveNode(c.Context(), tenant, name, admin.ResolveRequest{Keep: keep})
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), b, func(w io.Writer) {
			fmt.Fprintf(w, "node %s/%s: the box %s, last seen from %s, is let in when it comes again; the others are not\n", tenant, name, b.ID, b.RemoteAddr)
			fmt.Fprintf(w, "next: wipe the others, as they hold the node's key: edge-agent reset\n")
		})
	}
	return c
}

func completeBoxes(client func() *admin.Client) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		tenant, name, err := splitNode(args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		n, err := client().Node(c.Context(), tenant, name)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var ids []string
		for _, b := range n.Boxes {
			ids = append(ids, cobra.CompletionWithDesc(b.ID, "from "+b.RemoteAddr))
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}
