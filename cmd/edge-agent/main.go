// Command edge-agent runs on an edge node: it enrols the node, keeps the one connection to the broker,
// and has the kubelet join its control plane and run. It holds flags, signals and exit codes; the work
// is internal/agent's.
//
// Exit codes: 0 for success, 1 for failure, 2 for wrong usage or configuration.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/sysmon"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	_ = sysmon.Calm() // without, all is only slower
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var silent silentError
	if !errors.As(err, &silent) {
		fmt.Fprintln(root.ErrOrStderr(), "error:", err)
	}
	var bad *config.Error
	var usage usageError
	if errors.As(err, &bad) || errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// usageError is the caller's mistake.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// silentError fails the command when its output has said why already.
type silentError struct{ error }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "edge-agent",
		Short: "Moor this node to its control plane",
		Long: `edge-agent enrols this node with a Mooring broker, keeps one outbound connection to it, and has the
node's kubelet join the Kubernetes control plane that the node is assigned to.`,
		Example: `  edge-agent join --bundle join.yaml   # enrol by hand
  edge-agent run                       # what the systemd unit runs
  edge-agent status
  edge-agent doctor`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see `%s --help`)", err, cmd.CommandPath())}
	})
	root.AddCommand(newRun(), newJoin(), newStatus(), newWait(), newReset(), newSeal(), newDoctor(), newConfig(), newVersion())
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Example = "  edge-agent completion bash > /etc/bash_completion.d/edge-agent"
			for _, shell := range c.Commands() {
				shell.Example = "  edge-agent completion " + shell.Name()
			}
		}
	}
	usageArgs(root)
	return root
}

// usageArgs makes wrong positional arguments usage errors, in every command.
func usageArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		usageArgs(c)
	}
}

// newLogger logs to w as the configuration says.
func newLogger(w io.Writer, c config.Log) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // validated with the configuration
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// configFlag adds --config to a command.
func configFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("config", config.DefaultAgentPath, "configuration file; if it is absent at the default path, defaults hold")
}

// loadConfig reads the configuration. Absent is fine at the default path only: a path that somebody
// gave and that is not there is a mistake.
func loadConfig(cmd *cobra.Command, path string) (*config.Agent, error) {
	cfg, err := config.LoadAgent(path)
	if config.IsAbsent(err) {
		if !cmd.Flags().Changed("config") {
			return config.DefaultAgent(), nil
		}
		return nil, usageError{fmt.Errorf("no configuration file at %s (`edge-agent config print-defaults` prints one)", path)}
	}
	return cfg, err
}
