package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/mooring-edge/mooring/bench/internal/metrics"

	"github.com/mooring-edge/mooring/bench/internal/proc"
	"github.com/mooring-edge/mooring/bench/internal/shore"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

const (
	// churnPeriod is from one measurement to the next.
	churnPeriod = time.Minute
	// nodeWorkers have nodes go and come, dataWorkers dial them, all at the same time.
	nodeWorkers = 16
	dataWorkers = 16
	// maxBytes is the most that one connection carries each way.
	maxBytes = 256 << 10
	// calmTimeout bounds the time from the end of the churn until all nodes have their one session.
	calmTimeout = 2 * time.Minute
	// referenceMinute is what the end is compared with, tolerance by how much it may be above.
	referenceMinute = 5
	tolerance       = 0.05
)

// churn has nodes come and go, while an API server dials them.
type churn struct {
	shore *shore.Shore
	fleet *fleet
	api   *apiServer
	say   func(string, ...any)

	busy sync.Map // the nodes that a worker is at
	done tally
}

// startChurn starts the broker, and nodes that are all up when it returns. It begins no churn.
func startChurn(ctx context.Context, s *shore.Shore, ids []*identity, transports []tunnel.Transport, connecting int, say func(string, ...any)) (*churn, error) {
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	api, err := newAPIServer(ctx, s)
	if err != nil {
		return nil, err
	}
	f := newFleet(s.Config.Front.PublicEndpoint, ids, transports...)
	f.heartbeat, f.silence = s.Config.Tunnel.HeartbeatInterval.Duration, s.Config.Tunnel.HeartbeatTimeout.Duration
	ctx, cancel := context.WithTimeoutCause(ctx, backTimeout, fmt.Errorf("after %s", backTimeout))
	defer cancel()
	if err := errors.Join(f.start(ctx, connecting), f.await(ctx, allUp)); err != nil {
		f.stop()
		return nil, err
	}
	return &churn{shore: s, fleet: f, api: api, say: say}, nil
}

// tally counts what was done.
type tally struct {
	restarts, cuts, deaf, superseded atomic.Int64
	dials, failed, resets, bytes     atomic.Int64
}

func (t *tally) String() string {
	return fmt.Sprintf("%d restarts, %d connections cut, %d made deaf, %d superseded; %d dials (%d of them failed, %d reset), %s",
		t.restarts.Load(), t.cuts.Load(), t.deaf.Load(), t.superseded.Load(),
		t.dials.Load(), t.failed.Load(), t.resets.Load(), mb(t.bytes.Load()))
}

// run churns for d, and returns when every node has its session again and no connection is open.
func (c *churn) run(ctx context.Context, d time.Duration) error {
	work, stop := context.WithTimeout(ctx, d)
	defer stop()
	var wg sync.WaitGroup
	for range nodeWorkers {
		wg.Go(func() { c.disturb(ctx, work) })
	}
	for range dataWorkers {
		wg.Go(func() { c.carry(ctx, work) })
	}
	wg.Wait()
	calm, cancel := context.WithTimeoutCause(ctx, calmTimeout, fmt.Errorf("%s after the last was disturbed", calmTimeout))
	defer cancel()
	if err := c.fleet.await(calm, allUp); err != nil {
		return err
	}
	return c.awaitOneEach(calm)
}

// awaitOneEach returns once the broker has as many sessions as there are nodes: the superseded and the deaf are gone. It
// says so in its metrics only, so it is asked again and again.
func (c *churn) awaitOneEach(ctx context.Context) error {
	for {
		s, err := metrics.Read(ctx, c.shore.Config.HealthAddress)
		if err != nil {
			return err
		}
		have := s.Sum("mooring_tunnel_sessions")
		if int(have) == len(c.fleet.nodes) {
			return nil
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("the broker has %g sessions of %d nodes: %w", have, len(c.fleet.nodes), err)
		}
	}
}

// disturb takes one node after the other, until work ends. What it began it brings to an end.
func (c *churn) disturb(ctx, work context.Context) {
	for work.Err() == nil {
		n := c.fleet.nodes[rand.IntN(len(c.fleet.nodes))]
		if _, taken := c.busy.LoadOrStore(n, true); taken {
			continue
		}
		switch rand.IntN(4) {
		case 0:
			n.stop()
			_ = sleep(work, rand.N(2*time.Second))
			n.start()
			c.done.restarts.Add(1)
		case 1:
			if s := n.session(); s != nil && s.Transport() == tunnel.TransportTCP && cutSocket(s.LocalAddr()) == nil {
				c.done.cuts.Add(1)
			}
		case 2:
			if s := n.session(); s != nil && deafenSocket(s.LocalAddr()) == nil {
				c.done.deaf.Add(1)
				c.once(ctx, n) // who asks for it finds that it is silent
			}
		case 3:
			c.supersede(ctx, n)
		}
		c.busy.Delete(n)
		_ = sleep(work, rand.N(time.Second))
	}
}

// supersede has a node begin a second session, as if the first had been lost without its knowledge. The broker ends
// the first.
func (c *churn) supersede(ctx context.Context, n *node) {
	n.mu.Lock()
	was := n.run
	n.mu.Unlock()
	n.start()
	select {
	case <-was.done: // it ends by itself, see node.down
		c.done.superseded.Add(1)
	case <-ctx.Done():
		was.cancel()
		<-was.done
	}
}

// carry dials one node after the other, until work ends.
func (c *churn) carry(ctx, work context.Context) {
	for work.Err() == nil {
		c.once(ctx, c.fleet.nodes[rand.IntN(len(c.fleet.nodes))])
		_ = sleep(work, rand.N(100*time.Millisecond))
	}
}

// once dials a node, has some bytes echoed, and ends the connection in one way or another.
func (c *churn) once(ctx context.Context, n *node) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c.done.dials.Add(1)
	conn, err := c.api.dial(ctx, n.id.Node)
	if err != nil {
		c.done.failed.Add(1)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	size := rand.Int64N(maxBytes)
	reset := rand.IntN(4) == 0
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.CopyN(conn, zeros{}, size)
		if !reset {
			_ = conn.CloseWrite()
		}
	})
	defer wg.Wait()
	if reset {
		n, _ := io.CopyN(io.Discard, conn, size/2)
		c.done.bytes.Add(n)
		c.done.resets.Add(1)
		abort(conn)
		return
	}
	got, err := io.Copy(io.Discard, conn)
	c.done.bytes.Add(got)
	if err != nil || got != size {
		c.done.failed.Add(1)
	}
}

// abort resets a TCP connection.
func abort(conn *tls.Conn) {
	if tcp, ok := conn.NetConn().(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
		_ = tcp.Close()
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// level is what both processes hold while every node has its session, and nothing else goes on.
type level struct {
	BrokerGoroutines, BrokerFiles, AgentsGoroutines, AgentsFiles int64
	BrokerRSS, AgentsRSS                                         int64
}

const (
	// levelSamples are taken a second apart, and the lowest counts: a scrape, a timer or the collector at work
	// is no leak.
	levelSamples = 10
	// collections are how many rounds the broker's collector makes before: what the churn left is gone then, and
	// the runtime has begun to give it back.
	collections = 2
)

// level measures. The broker's collector is kept going by reading its metrics, which is garbage to it; nothing in it is
// told to collect.
func (c *churn) level(ctx context.Context) (l level, err error) {
	s, err := metrics.Read(ctx, c.shore.Config.HealthAddress)
	if err != nil {
		return l, err
	}
	for last := s["go_gc_duration_seconds_count"] + collections; s["go_gc_duration_seconds_count"] < last; {
		if s, err = metrics.Read(ctx, c.shore.Config.HealthAddress); err != nil {
			return l, err
		}
	}
	debug.FreeOSMemory()
	return c.lowest(ctx)
}

// lowest is the lowest of some samples.
func (c *churn) lowest(ctx context.Context) (l level, err error) {
	for i := range levelSamples {
		if err := sleep(ctx, time.Second); err != nil {
			return l, err
		}
		now, err := c.sample(ctx)
		if err != nil {
			return l, err
		}
		if i == 0 {
			l = now
		}
		for _, v := range l.pairs(&now) {
			*v.a = min(*v.a, *v.b)
		}
	}
	return l, nil
}

func (c *churn) sample(ctx context.Context) (l level, err error) {
	pid := c.shore.Broker.PID()
	s, err := metrics.Read(ctx, c.shore.Config.HealthAddress)
	if err != nil {
		return l, err
	}
	files, err := proc.OpenFiles(pid)
	if err != nil {
		return l, err
	}
	own, err := proc.OpenFiles(os.Getpid())
	if err != nil {
		return l, err
	}
	if l.BrokerRSS, err = proc.RSS(pid); err != nil {
		return l, err
	}
	if l.AgentsRSS, err = proc.RSS(os.Getpid()); err != nil {
		return l, err
	}
	l.BrokerGoroutines, l.BrokerFiles = int64(s["go_goroutines"]), int64(files)
	l.AgentsGoroutines, l.AgentsFiles = int64(runtime.NumGoroutine()), int64(own)
	return l, nil
}

// pair is one figure of two levels.
type pair struct {
	name  string
	a, b  *int64
	bytes bool // of memory, not a count
}

func (l *level) pairs(o *level) []pair {
	return []pair{
		{"the broker's goroutines", &l.BrokerGoroutines, &o.BrokerGoroutines, false},
		{"the broker's open files", &l.BrokerFiles, &o.BrokerFiles, false},
		{"the broker's RSS", &l.BrokerRSS, &o.BrokerRSS, true},
		{"the agents' goroutines", &l.AgentsGoroutines, &o.AgentsGoroutines, false},
		{"the agents' open files", &l.AgentsFiles, &o.AgentsFiles, false},
		{"the agents' RSS", &l.AgentsRSS, &o.AgentsRSS, true},
	}
}

// risen says what of now is more than the tolerance above l; empty: nothing.
func (l level) risen(now level) (out []string) {
	for _, p := range l.pairs(&now) {
		if float64(*p.b) > float64(*p.a)*(1+tolerance) {
			out = append(out, fmt.Sprintf("%s: %d, were %d (+%.1f%%)", p.name, *p.b, *p.a, 100*float64(*p.b-*p.a)/float64(*p.a)))
		}
	}
	return out
}

// soak churns for the time asked for, and measures each minute. It fails if at the end something is above what it
// was at minute five.
func (c *churn) soak(ctx context.Context, d time.Duration, out io.Writer) error {
	tw := tabwriter.NewWriter(out, 9, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\t\tbroker\t\t\tagents\t\t")
	fmt.Fprintln(tw, "minute\tgoroutines\tfiles\tRSS\tgoroutines\tfiles\tRSS\t")
	var reference, last level
	begin := time.Now()
	for minute := 1; time.Since(begin) < d; minute++ {
		if err := c.run(ctx, time.Until(begin.Add(time.Duration(minute)*churnPeriod))); err != nil {
			return err
		}
		var err error
		if last, err = c.level(ctx); err != nil {
			return err
		}
		minute = int(time.Since(begin).Round(churnPeriod) / churnPeriod)
		fmt.Fprintf(tw, "%d\t%d\t%d\t%s\t%d\t%d\t%s\t\n", minute, last.BrokerGoroutines, last.BrokerFiles, mb(last.BrokerRSS),
			last.AgentsGoroutines, last.AgentsFiles, mb(last.AgentsRSS))
		if err := tw.Flush(); err != nil {
			return err
		}
		c.say("minute %d: %s", minute, &c.done)
		if reference == (level{}) && (minute >= referenceMinute || d < (referenceMinute+1)*churnPeriod) {
			reference = last
		}
	}
	if risen := reference.risen(last); len(risen) > 0 {
		return fmt.Errorf("after %s of churn these are more than %g%% above minute %d: %v", d, 100*tolerance, referenceMinute, risen)
	}
	return nil
}
