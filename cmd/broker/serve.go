package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/broker"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/processors"
)

func newServe() *cobra.Command {
	path := config.DefaultBrokerPath
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the broker",
		Long: `Run the broker until it is told to stop (SIGTERM, SIGINT).

All state (the CA, tenants, tokens, nodes) lives in an embedded etcd below dataDir;
a broker that was killed goes on from there. The CA is made at the first start.`,
		Example: `  broker serve --config /etc/mooring/broker.yaml`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.LoadBroker(path)
			if config.IsAbsent(err) {
				return usageError{fmt.Errorf("no configuration at %s: make one with `broker config print-defaults`, or name it with --config", path)}
			}
			if err != nil {
				return err
			}
			ctx, done := context.WithCancel(c.Context())
			var following sync.WaitGroup
			defer following.Wait()
			defer done()
			following.Go(func() { processors.Follow(ctx) }) // docs/decisions/0033
			return broker.Run(ctx, cfg, newLogger(c, cfg.Log))
		},
	}
	c.Flags().StringVar(&path, "config", path, "configuration file")
	c.MarkFlagFilename("config", "yaml", "yml")
	return c
}

func newLogger(c *cobra.Command, cfg config.Log) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(cfg.Level)) // validated with the configuration
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(c.ErrOrStderr(), opts))
	}
	return slog.New(slog.NewTextHandler(c.ErrOrStderr(), opts))
}

func newConfig() *cobra.Command {
	validate := &cobra.Command{
		Use:     "validate FILE",
		Short:   "Check a configuration file, the broker's or a tenant's, and list every problem in it",
		Example: `  broker config validate /etc/mooring/broker.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			load := func(path string) (err error) { _, err = config.LoadBroker(path); return err }
			if config.IsTenant(args[0]) {
				load = func(path string) (err error) { _, err = config.LoadTenant(path); return err }
			}
			if err := load(args[0]); err != nil {
				if errors.Is(err, os.ErrNotExist) {
					return usageError{err}
				}
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: valid\n", args[0])
			return nil
		},
	}
	defaults := &cobra.Command{
		Use:     "print-defaults",
		Short:   "Print a configuration with every default",
		Example: `  broker config print-defaults > broker.yaml`,
		Args:    cobra.NoArgs,
	}
	out := addOutput(defaults, "yaml", "json")
	defaults.RunE = func(c *cobra.Command, _ []string) error {
		return out.print(c.OutOrStdout(), config.DefaultBroker(), nil)
	}
	return group("config", "Check and print configuration", validate, defaults)
}
