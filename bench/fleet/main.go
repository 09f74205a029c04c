package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/bench/internal/output"
	"github.com/mooring-edge/mooring/bench/internal/shore"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "fleet: %v\n", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	agents     int
	transport  string
	idle       time.Duration
	kill       bool
	dialRate   float64
	connecting int
	output     string
	profile    string
	broker     string
	config     string
	dir        string
	wan        bool
	wanFor     time.Duration
	churn      time.Duration
}

func newRoot() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "fleet",
		Short: "Measure what a fleet of idle nodes costs a broker",
		Long: `fleet starts the real broker (built from this tree), enrols nodes with it, keeps a
session for each by the tunnel's own client, and reports the broker's memory and CPU
for idle sessions, how long all take to come back after kill -9, and how long an API
server's dials take. Progress goes to standard error, the table to standard output.`,
		Example: `  go run ./fleet --agents 10000 --kill                   # both transports, one after the other
  go run ./fleet --agents 2000 --transport quic --idle 2m
  go run ./fleet --agents 10000 --transport tcp --profile /tmp/profiles
  go run ./fleet --wan --agents 200                      # bytes on the wire; as root
  go run ./fleet --churn 30m --agents 500                # nothing may be left behind`,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(c *cobra.Command, _ []string) error { return measureAll(c, o) },
	}
	fl := c.Flags()
	fl.IntVar(&o.agents, "agents", 1000, "how many nodes")
	fl.StringVar(&o.transport, "transport", "tcp,quic", "tcp, quic, or both with a comma")
	fl.DurationVar(&o.idle, "idle", time.Minute, "how long all are left alone; heartbeats are 25 s apart, so less than a minute says little about CPU")
	fl.BoolVar(&o.kill, "kill", false, "kill the broker with -9 in the end and see all come back")
	fl.Float64Var(&o.dialRate, "dial-rate", 20, "dials of the API server a second, before the kill and meanwhile")
	fl.IntVar(&o.connecting, "connecting", 100, "how many nodes may wait for their first session at a time; 0 = all")
	fl.StringVarP(&o.output, "output", "o", "text", "text or json")
	fl.StringVar(&o.profile, "profile", "", "save heap, goroutine and CPU profiles below this directory; they are of the broker in the harness' binary, all figures of the real one")
	fl.StringVar(&o.broker, "broker", "", "the broker's binary; default: built from this tree")
	fl.StringVar(&o.config, "broker-config", "", "a file that is laid over the broker's configuration, to try settings")
	fl.StringVar(&o.dir, "dir", "", "keep the broker's data and log in this directory; default: a temporary one")
	fl.BoolVar(&o.wan, "wan", false, "measure the bytes that idle nodes put on the wire instead; needs root")
	fl.DurationVar(&o.wanFor, "wan-for", 5*time.Minute, "how long --wan counts")
	fl.DurationVar(&o.churn, "churn", 0, "have nodes come and go for so long instead, with data going through, and fail if goroutines, open files or memory rise")
	c.AddCommand(newServe(), newNodes())
	return c
}

// newNodes is the process of the nodes that are behind a link.
func newNodes() *cobra.Command {
	var o options
	var file, endpoint string
	c := &cobra.Command{
		Use: "nodes", Short: "Keep sessions until the input ends", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return runNodes(c.Context(), file, endpoint, o, c.InOrStdin(), c.OutOrStdout())
		},
	}
	fl := c.Flags()
	fl.StringVar(&file, "identities", "", "file of the nodes' identities")
	fl.StringVar(&endpoint, "endpoint", "", "the broker")
	fl.StringVar(&o.transport, "transport", "tcp", "tcp or quic")
	fl.IntVar(&o.connecting, "connecting", 0, "how many nodes may wait for their session at a time; 0 = all")
	return c
}

// newServe is the broker that profiles are taken of.
func newServe() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use: "serve-in-process", Short: "Run a broker with pprof", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return serveInProcess(c.Context(), path) },
	}
	c.Flags().StringVar(&path, "config", "", "configuration file")
	return c
}

// transports are those of the flag.
func (o options) transports() (out []tunnel.Transport, err error) {
	for t := range strings.SplitSeq(o.transport, ",") {
		switch t := tunnel.Transport(t); t {
		case tunnel.TransportTCP, tunnel.TransportQUIC:
			out = append(out, t)
		default:
			return nil, fmt.Errorf("--transport %q: want tcp, quic, or tcp,quic", o.transport)
		}
	}
	return out, nil
}

func (o options) validate() error {
	if o.agents < 1 || o.agents > 50_000 {
		return fmt.Errorf("--agents %d: want 1 to 50000", o.agents)
	}
	if o.output != "text" && o.output != "json" {
		return fmt.Errorf("--output %q: want text or json", o.output)
	}
	// A session is a descriptor at both ends over TCP, and one here over QUIC.
	return raiseFileLimit(uint64(o.agents) + 1000)
}

func measureAll(c *cobra.Command, o options) (err error) {
	transports, err := o.transports()
	if err == nil {
		err = o.validate()
	}
	if err != nil {
		return err
	}
	say := output.Progress(c.ErrOrStderr())
	if o.wan {
		all, err := measureWAN(c.Context(), o, transports, say)
		if err != nil {
			return err
		}
		if o.output == "json" {
			return output.JSON(c.OutOrStdout(), all)
		}
		return writeWAN(c.OutOrStdout(), all)
	}
	s, ids, done, err := prepare(c.Context(), o, "127.0.0.1", say)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if o.churn > 0 {
		return churnAll(c, o, s, ids, transports, say)
	}
	var all []*report
	for _, t := range transports {
		m := &measurement{options: o, shore: s, ids: ids, transport: t, say: say}
		r, err := m.run(c.Context())
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	if o.output == "json" {
		return output.JSON(c.OutOrStdout(), all)
	}
	fmt.Fprintf(c.OutOrStdout(), "The broker's limits: %s.\n", s.Limits())
	return writeText(c.OutOrStdout(), all)
}

// churnAll runs the churn. The nodes have the transports in turn.
func churnAll(c *cobra.Command, o options, s *shore.Shore, ids []*identity, transports []tunnel.Transport, say func(string, ...any)) error {
	ctx := c.Context()
	ch, err := startChurn(ctx, s, ids, transports, o.connecting, say)
	if err != nil {
		return err
	}
	defer ch.fleet.stop()
	return ch.soak(ctx, o.churn, c.OutOrStdout())
}

// prepare makes a broker with a tenant and its nodes. The broker does not run when it returns: what enrolling
// thousands of nodes leaves in its memory must not count as there before the first session.
func prepare(ctx context.Context, o options, host string, say func(string, ...any)) (s *shore.Shore, ids []*identity, done func() error, err error) {
	// The nodes are many processes in the field: their collector is not to take the broker's share of this machine.
	debug.SetGCPercent(400)
	dir := o.dir
	remove := func() error { return nil }
	if dir == "" {
		if dir, err = os.MkdirTemp("", "mooring-fleet-"); err != nil {
			return nil, nil, nil, err
		}
		remove = func() error { return os.RemoveAll(dir) }
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove())
		}
	}()
	binary := o.broker
	if binary == "" {
		say("building the broker")
		binary = filepath.Join(dir, "broker")
		if err := shore.Build(ctx, binary, "broker"); err != nil {
			return nil, nil, nil, err
		}
	}
	if s, err = shore.New(dir, binary, host, o.config, o.churn > 0); err != nil {
		return nil, nil, nil, err
	}
	if ids, err = populate(ctx, s, o.agents, say); err != nil {
		return nil, nil, nil, errors.Join(err, s.Close())
	}
	return s, ids, func() error { return errors.Join(s.Close(), remove()) }, nil
}

// populate enrols the nodes.
func populate(ctx context.Context, s *shore.Shore, n int, say func(string, ...any)) ([]*identity, error) {
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	if err := s.AddTenant(ctx); err != nil {
		return nil, err
	}
	say("enrolling %d nodes", n)
	last := time.Now()
	ids, err := enrolAll(ctx, s, n, func(done int) {
		if time.Since(last) >= 5*time.Second {
			last = time.Now()
			say("%d of %d enrolled", done, n)
		}
	})
	if err != nil {
		return nil, err
	}
	return ids, s.Stop()
}
