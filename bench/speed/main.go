package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/bench/internal/output"
	"github.com/mooring-edge/mooring/bench/internal/shore"
	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "speed: %v\n", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	rounds int
	only   []string
	output string
	dir    string
	durations
}

func newRoot() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "speed",
		Short: "Compare the speed of Mooring with that of its peers, in one run",
		Long: `speed runs one load through Mooring, in each mode and over each transport, through its peers, and through chains
that do no more than has to be done, and prints each as a ratio to the practical limit: two TLS connections for each request
and no multiplexing. Programs are built from this tree, and the peers from modules (peers/). Progress goes to standard error.

To see where the time goes, set MOORING_BENCH_SYMBOLS=1 and run ` + "`perf record -a -g`" + ` beside it.`,
		Example: `  go run ./speed                                   # all, five rounds; some 12 minutes
  go run ./speed --only 'bare yamux' --only 'Mooring, HTTPConnect' --rounds 3
  go run ./speed -o json > figures.json`,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(c *cobra.Command, _ []string) error {
			return compare(c, o, func(b *bed, bin string, say func(string, ...any)) ([]*chain, error) { return b.chains(o, bin, say) })
		},
	}
	c.Flags().StringArrayVar(&o.only, "only", nil, "only chains that have this in their name, as the tables print it; may be repeated; the limit is always measured")
	o.flags(c)
	c.AddCommand(newQUIC(), newFootprint(), newPage(), newTarget(), newNear(), newFar())
	return c
}

// flags are those of all that measures chains.
func (o *options) flags(c *cobra.Command) {
	fl := c.Flags()
	fl.IntVar(&o.rounds, "rounds", 5, "how often each chain is measured; figures are the medians")
	fl.DurationVar(&o.transfer, "transfer", 1200*time.Millisecond, "how long bytes flow for each figure")
	fl.DurationVar(&o.pings, "pings", time.Second, "how long single bytes go to and fro")
	fl.DurationVar(&o.dials, "dials", 1500*time.Millisecond, "how long is dialled")
	fl.StringVarP(&o.output, "output", "o", "text", "text or json")
	fl.StringVar(&o.dir, "dir", "", "keep the logs of all programs in this directory; default: a temporary one")
}

func newTarget() *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use: "target", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, port, err := splitPort(listen)
			if err != nil {
				return err
			}
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)) // on all addresses: an agent dials its node's
			if err != nil {
				return err
			}
			fmt.Fprintln(os.Stderr, "serves")
			return serveTarget(c.Context(), l)
		},
	}
	c.Flags().StringVar(&listen, "listen", "", "host:port; only the port is used")
	return c
}

func newNear() *cobra.Command {
	var over, north, south, dir string
	c := &cobra.Command{
		Use: "near", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return nearEnd(c.Context(), over, north, south, certsIn(dir))
		},
	}
	fl := c.Flags()
	fl.StringVar(&over, "over", "", "how the ends are joined")
	fl.StringVar(&north, "north", "", "where the load dials")
	fl.StringVar(&south, "south", "", "where the far end is, or dials")
	fl.StringVar(&dir, "certs", "", "directory of certificates")
	return c
}

func newFar() *cobra.Command {
	var over, south, target, dir string
	c := &cobra.Command{
		Use: "far", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return farEnd(c.Context(), over, south, target, certsIn(dir))
		},
	}
	fl := c.Flags()
	fl.StringVar(&over, "over", "", "how the ends are joined")
	fl.StringVar(&south, "south", "", "where the near end is, or dials")
	fl.StringVar(&target, "target", "", "the target")
	fl.StringVar(&dir, "certs", "", "directory of certificates")
	return c
}

func splitPort(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	return host, port, err
}

// build makes the product's programs.
func build(ctx context.Context, to string) error {
	for _, program := range []string{"broker", "edge-agent"} {
		if err := shore.Build(ctx, filepath.Join(to, program), program); err != nil {
			return err
		}
	}
	return nil
}

// compare measures the chains that start makes.
func compare(c *cobra.Command, o options, start func(b *bed, bin string, say func(string, ...any)) ([]*chain, error)) (err error) {
	if o.output != "text" && o.output != "json" {
		return fmt.Errorf("--output %q: want text or json", o.output)
	}
	if o.rounds < 1 || o.rounds > 100 {
		return fmt.Errorf("--rounds %d: want 1 to 100", o.rounds)
	}
	dir := o.dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "mooring-speed-"); err != nil {
			return err
		}
		defer func() {
			if err == nil {
				err = os.RemoveAll(dir)
			}
		}()
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	say := output.Progress(c.ErrOrStderr())
	ctx := c.Context()
	b, err := newBed(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	chains, err := start(b, filepath.Join(dir, "bin"), say)
	if err != nil {
		return fmt.Errorf("%w\nthe logs are in %s", err, dir)
	}
	r, err := measure(ctx, chains, b.started[0], o, say)
	if err != nil {
		return fmt.Errorf("%w\nthe logs are in %s", err, dir)
	}
	if o.output == "json" {
		return output.JSON(c.OutOrStdout(), r)
	}
	return r.writeText(c.OutOrStdout())
}
