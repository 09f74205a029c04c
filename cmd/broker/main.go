// Command broker runs beside hosted Kubernetes control planes: it fronts them for edge nodes and lets
// each reach its own. `broker serve` is the server; every other subcommand talks to it over a local
// socket.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/sysmon"
)

func main() {
	_ = sysmon.Calm() // without, all is only slower
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for what the first one began
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	began := false
	noteRuns(root, &began)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if !began { // cobra did not like the arguments or flags
		err = usageError{fmt.Errorf("%w (see `%s --help`)", err, cmd.CommandPath())}
	}
	fmt.Fprintf(stderr, "broker: %v\n", err)
	return exitCode(err)
}

// noteRuns has every command below c say that its own code was reached.
func noteRuns(c *cobra.Command, began *bool) {
	if inner := c.RunE; inner != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			*began = true
			return inner(c, args)
		}
	}
	for _, sub := range c.Commands() {
		noteRuns(sub, began)
	}
}

// usageError is a mistake in how the command was called or configured: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitCode(err error) int {
	var usage usageError
	var cfg *config.Error
	if errors.As(err, &usage) || errors.As(err, &cfg) {
		return 2
	}
	return 1
}

const socketEnv = "MOORING_BROKER_SOCKET"

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "broker",
		Short: "Front hosted Kubernetes control planes for nodes at the edge",
		Long: `broker runs beside hosted Kubernetes control planes. Edge nodes keep one outbound
tunnel to it; through the tunnel each control plane reaches its own nodes (logs,
exec, port-forward, metrics) and each node reaches its own API server.`,
		Example: `  broker serve --config /etc/mooring/broker.yaml
  broker tenant add acme --kubeconfig admin.conf
  broker token create --tenant acme > join.yaml
  broker node list`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	socket := root.PersistentFlags().String("socket", envOr(socketEnv, config.DefaultBroker().AdminSocket),
		"socket of the running broker (environment "+socketEnv+")")
	client := func() *admin.Client { return admin.NewClient(*socket) }
	root.AddCommand(
		newServe(), newConfig(), newTenant(client), newToken(client), newClaim(client), newNode(client),
		newEgress(client), newEgressProxy(), newCA(client), newStatus(client), newVersion(),
	)
	return root
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return c.Help()
	}}
	c.AddCommand(subs...)
	return c
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}
