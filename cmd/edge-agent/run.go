package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/agent"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/version"
	"github.com/mooring-edge/mooring/pkg/join"
)

func newRun() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: `Run the agent until it is told to stop: enrol if this box is not enrolled yet, connect to the broker, have
the kubelet join, keep it running. Whatever is interrupted goes on from there at the next start.

Stopping the agent stops neither the kubelet nor any pod.`,
		Example: `  edge-agent run
  edge-agent run --config /etc/mooring/agent.yaml`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(cmd, *path)
		if err != nil {
			return err
		}
		modest()
		logger := newLogger(cmd.ErrOrStderr(), cfg.Log)
		a, err := agent.New(cfg, agent.Options{Logger: logger})
		if err != nil {
			return err
		}
		logger.Info("edge-agent starts", "version", version.Version, "state_dir", cfg.StateDir)
		ctx, cancel := context.WithCancel(cmd.Context())
		var trimming sync.WaitGroup
		trimming.Go(func() { trim(ctx) })
		defer trimming.Wait()
		defer cancel()
		return a.Run(ctx)
	}
	return cmd
}

func newJoin() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Enrol this node and prepare its kubelet, in the foreground",
		Long: `Enrol this node with the token of a join bundle, get the kubelet its certificate and its files, then exit.
What is there already is not asked for again. A refusal by the broker ends the command; what may pass (no
network, the API server away) is tried again until it does.

The bundle holds a secret: it is read from a file or from standard input, never from the command line.`,
		Example: `  edge-agent join --bundle /media/usb/join.yaml
  ssh platform broker token create --tenant acme | edge-agent join --bundle -`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	bundlePath := cmd.Flags().String("bundle", "", "join bundle file, - for standard input (default: the configured joinFile)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(cmd, *path)
		if err != nil {
			return err
		}
		o := agent.Options{Logger: newLogger(cmd.ErrOrStderr(), cfg.Log), StopOnRefusal: true}
		if *bundlePath != "" {
			b, err := readBundle(cmd.InOrStdin(), *bundlePath)
			if err != nil {
				return err
			}
			o.Bundle = func() (join.Bundle, error) { return b, nil }
		}
		a, err := agent.New(cfg, o)
		if err != nil {
			return err
		}
		id, err := a.Join(cmd.Context())
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "joined: node %s of tenant %s\n", id.Node, id.Tenant)
		fmt.Fprintln(cmd.OutOrStdout(), "next: `systemctl enable --now edge-agent`, or `edge-agent run`, which starts the kubelet")
		return nil
	}
	return cmd
}

func readBundle(stdin io.Reader, path string) (join.Bundle, error) {
	if path != "-" {
		b, err := config.LoadJoinBundle(path)
		if config.IsAbsent(err) {
			return join.Bundle{}, usageError{fmt.Errorf("no join bundle at %s: make one with `broker token create`", path)}
		}
		if err != nil {
			return join.Bundle{}, err
		}
		return agent.BundleOf(b), nil
	}
	const limit = 1 << 20
	data, err := io.ReadAll(io.LimitReader(stdin, limit))
	if err != nil {
		return join.Bundle{}, fmt.Errorf("read the join bundle from standard input: %w", err)
	}
	b, err := config.DecodeJoinBundle("standard input", data)
	if err != nil {
		return join.Bundle{}, err
	}
	return agent.BundleOf(b), nil
}

func newReset() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Make this box forget that it is a node",
		Long: `Stop the kubelet and remove the node's identity and key and the kubelet's credentials and files. What pods
left behind (volumes, images, logs) and the configuration stay. The agent must not be running.

The key is gone for good: to use the node's name again, use broker node replace (or remove) first.`,
		Example: `  edge-agent reset
  edge-agent reset --yes`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(cmd, *path)
		if err != nil {
			return err
		}
		a, err := agent.New(cfg, agent.Options{Logger: newLogger(cmd.ErrOrStderr(), cfg.Log)})
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if !*yes {
			fmt.Fprintf(out, "This removes the identity in %s and the kubelet's credentials in %s. Type yes to go on: ", cfg.StateDir, cfg.Kubelet.RootDir)
			var answer string
			if _, err := fmt.Fscanln(cmd.InOrStdin(), &answer); err != nil && !errors.Is(err, io.EOF) && answer == "" {
				return errors.New("nothing removed: no answer")
			}
			if answer != "yes" {
				return errors.New("nothing removed")
			}
		}
		done, err := a.Reset(cmd.Context())
		for _, line := range done {
			fmt.Fprintln(out, line)
		}
		return err
	}
	return cmd
}

func newVersion() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    "Print the version of this program, of the compiler and of the platform it was built for.",
		Example: "  edge-agent version\n  edge-agent version -o json",
		Args:    cobra.NoArgs,
	}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		info := version.Get()
		return output(cmd.OutOrStdout(), *format, info, func(w io.Writer) { fmt.Fprintln(w, "edge-agent", info) })
	}
	return cmd
}

// socketFlag adds --socket to a command.
func socketFlag(cmd *cobra.Command) *string {
	def := config.DefaultAgent().Socket
	if env := os.Getenv("MOORING_AGENT_SOCKET"); env != "" {
		def = env
	}
	return cmd.Flags().String("socket", def, "the running agent's socket (environment: MOORING_AGENT_SOCKET)")
}
