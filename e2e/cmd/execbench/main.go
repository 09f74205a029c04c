// Command execbench times `kubectl exec` of 200 MB out of a pod and into one: by API servers that dial the node themselves, by each way that
// Mooring has for them, over each transport, and by upstream's konnectivity. The control plane, kubelet and kubectl are the real ones; the ways
// take turns, round by round. Times are printed as ratios to the direct way, which therefore comes more often than others.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/e2e/harness"
)

const (
	tenantName = "acme"
	podName    = "bulk"
	direct     = "direct"
	// execLimit bounds one transfer, which takes seconds.
	execLimit = 2 * time.Minute
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "execbench: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	rounds int
	bytes  int64
	output string
	only   []string
}

func newRoot() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "execbench",
		Short: "Time kubectl exec of 200 MB by each way from an API server to a node",
		Example: `  go run ./cmd/execbench                # as root
  go run ./cmd/execbench --rounds 1 -o json
  go run ./cmd/execbench --only 'CONNECT/UDS, TLS+yamux'`,
		Args: cobra.NoArgs, SilenceErrors: true, SilenceUsage: true,
		RunE: func(c *cobra.Command, _ []string) error { return run(c, o) },
	}
	fl := c.Flags()
	fl.IntVar(&o.rounds, "rounds", 5, "how often each way is timed, the direct one more often; figures are the medians")
	fl.Int64Var(&o.bytes, "bytes", 200<<20, "how many bytes go each way")
	fl.StringVarP(&o.output, "output", "o", "text", "text or json")
	fl.StringArrayVar(&o.only, "only", nil, "only ways that have this in their name, as the table prints it; may be repeated; the direct one is always timed")
	return c
}

// way is one way's times, in seconds.
type way struct {
	Name      string    `json:"name"`
	Transport string    `json:"transport"`
	Down      []float64 `json:"downSeconds"`
	Up        []float64 `json:"upSeconds"`

	*harness.Way `json:"-"`
}

type result struct {
	Date  time.Time `json:"date"`
	Bytes int64     `json:"bytes"`
	Ways  []*way    `json:"ways"`
}

func run(c *cobra.Command, o options) (err error) {
	if o.output != "text" && o.output != "json" {
		return fmt.Errorf("--output %q: want text or json", o.output)
	}
	if o.rounds < 1 || o.bytes < 1 {
		return errors.New("--rounds and --bytes: want 1 or more")
	}
	wanted, err := only(o.only)
	if err != nil {
		return err
	}
	start := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	ctx := c.Context()
	env, err := harness.New(ctx, say)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			env.DumpLogs(os.Stderr)
		}
		err = errors.Join(err, env.Close())
	}()
	ways, err := prepare(ctx, env, o.bytes, wanted, say)
	if err != nil {
		return err
	}
	r := &result{Date: time.Now().UTC(), Bytes: o.bytes, Ways: ways}
	for i := range o.rounds {
		for _, w := range turns(ways, i) {
			down, err := w.down(ctx, o.bytes)
			if err != nil {
				return fmt.Errorf("%s over %s, down: %w", w.Name, w.Transport, err)
			}
			up, err := w.up(ctx, o.bytes)
			if err != nil {
				return fmt.Errorf("%s over %s, up: %w", w.Name, w.Transport, err)
			}
			w.Down, w.Up = append(w.Down, down.Seconds()), append(w.Up, up.Seconds())
			say("round %d of %d, %s over %s: %.2f s down, %.2f s up", i+1, o.rounds, w.Name, w.Transport, down.Seconds(), up.Seconds())
		}
	}
	if o.output == "json" {
		e := json.NewEncoder(c.OutOrStdout())
		e.SetIndent("", " ")
		return e.Encode(r)
	}
	return r.writeText(c.OutOrStdout())
}

// directEvery is after how many others the direct way's turn comes again. All ratios are to it, and a machine is slower at one time than at another.
const directEvery = 3

// turns is a round: all ways, of which the first is the direct one. The others begin two ways further on than in the round before, so that it isn't always the same
// ones that come right after it.
func turns(ways []*way, round int) []*way {
	direct, others := ways[0], ways[1:]
	all := []*way{direct}
	for i := range others {
		if i > 0 && i%directEvery == 0 {
			all = append(all, direct)
		}
		all = append(all, others[(i+2*round)%len(others)])
	}
	return all
}

func median[T cmp.Ordered](v []T) T {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func (r *result) writeText(out io.Writer) error {
	fmt.Fprintf(out, "kubectl exec of %d bytes, medians of %d, and of %d of the direct way; ratios to that\n\n", r.Bytes, len(r.Ways[len(r.Ways)-1].Down), len(r.Ways[0].Down))
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tdown, s\tratio\tup, s\tratio")
	for _, w := range r.Ways {
		down, up := median(w.Down), median(w.Up)
		fmt.Fprintf(t, "%s, %s\t%.2f (%.2f-%.2f)\t%.2f\t%.2f (%.2f-%.2f)\t%.2f\n", w.Name, w.Transport,
			down, slices.Min(w.Down), slices.Max(w.Down), down/median(r.Ways[0].Down), up, slices.Min(w.Up), slices.Max(w.Up), up/median(r.Ways[0].Up))
	}
	return t.Flush()
}

// down has the pod send that many bytes, of a file that is made at the first time: what makes bytes in a busybox is slower than what carries
// them. The command is held until they are here: kubectl may lose the end of what a command
// wrote before it exited (kubernetes/kubernetes#124571).
func (w *way) down(ctx context.Context, n int64) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, execLimit)
	defer cancel()
	cmd := w.Kubectl(ctx, "exec", "-i", w.pod(), "--", "sh", "-c", fmt.Sprintf("test \"$(stat -c %%s /tmp/down)\" = %[1]d || head -c %[1]d /dev/zero > /tmp/down; cat /tmp/down; read here", n))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	got, err := io.CopyN(io.Discard, stdout, n)
	took := time.Since(start)
	stdin.Close()
	if werr := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("%d of %d bytes came: %w (%v): %s", got, n, err, werr, stderr.String())
	}
	return took, nil // read ends with 1 at the end of its input
}

// up sends the pod that many bytes, and waits for its word that they are there.
func (w *way) up(ctx context.Context, n int64) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, execLimit)
	defer cancel()
	cmd := w.Kubectl(ctx, "exec", "-i", w.pod(), "--", "sh", "-c", "cat > /tmp/up; stat -c %s /tmp/up")
	cmd.Stdin = io.LimitReader(zeros{}, n)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	start := time.Now()
	out, err := cmd.Output()
	took := time.Since(start)
	if want := fmt.Sprint(n); err != nil || strings.TrimSpace(string(out)) != want {
		return 0, fmt.Errorf("the pod says %q, want %s: %v: %s", out, want, err, stderr.String())
	}
	return took, nil
}

type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (w *way) pod() string { return podName + "-" + w.node() }

// node is the one whose agent has the way's transport. What has no transport of Mooring's goes to the first.
func (w *way) node() string {
	if w.Transport == "QUIC" {
		return nodeOf("quic")
	}
	return nodeOf("tcp")
}

func nodeOf(transport string) string { return "edge-" + transport }
