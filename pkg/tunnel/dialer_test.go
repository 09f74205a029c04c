package tunnel

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestDialerErrors(t *testing.T) {
	for want, d := range map[string]*Dialer{
		"host:port":            {Endpoint: "edge.example", TLS: agentTLS()},
		"port of 1 to 65535":   {Endpoint: "edge.example:0", TLS: agentTLS()},
		"no TLS configuration": {Endpoint: "edge.example:443"},
		`transport "udp"`:      {Endpoint: "edge.example:443", TLS: agentTLS(), Transport: "udp"},
	} {
		if _, err := d.Dial(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}

func TestDialNobodyThere(t *testing.T) {
	t.Parallel() // it mostly waits
	ln, pc := listenBoth(t)
	addr := ln.Addr().String()
	_ = ln.Close()
	_ = pc.Close()
	d := dialer(addr, TransportAuto, Config{HandshakeTimeout: time.Second})
	d.HeadStart = 10 * time.Millisecond
	_, err := d.Dial(t.Context())
	if err == nil || !strings.Contains(err.Error(), "tcp: ") || !strings.Contains(err.Error(), "quic: ") {
		t.Errorf("got %v, want what both transports had to say", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's end", err)
	}
}

func TestDialTimesOut(t *testing.T) {
	t.Parallel()            // it mostly waits
	ln, pc := listenBoth(t) // takes everything, says nothing
	defer ln.Close()
	defer pc.Close()
	eachTransport(t, func(t *testing.T, tr Transport) {
		_, err := dialer(ln.Addr().String(), tr, Config{HandshakeTimeout: 200 * time.Millisecond}).Dial(t.Context())
		if err == nil || !strings.Contains(err.Error(), "no answer") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAutoTakesQUIC(t *testing.T) {
	b := startBroker(t, AcceptorConfig{})
	agent, brk := dialTo(t, b, b.addr, TransportAuto, Config{})
	if agent.Transport() != TransportQUIC || brk.Transport() != TransportQUIC {
		t.Errorf("over %q, want QUIC where it works", agent.Transport())
	}
}

// TestAutoByName: a name with more than one address, of which not all work.
func TestAutoByName(t *testing.T) {
	b := startBroker(t, AcceptorConfig{})
	_, port, _ := net.SplitHostPort(b.addr)
	eachTransport(t, func(t *testing.T, tr Transport) {
		agent, _ := dialTo(t, b, "localhost:"+port, tr, Config{})
		if agent.Transport() != tr {
			t.Errorf("over %q", agent.Transport())
		}
	})
}

// TestFault01UDPBlocked: the packets vanish, TCP gets through.
func TestFault01UDPBlocked(t *testing.T) {
	t.Parallel() // it mostly waits
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	ln, pc := listenBoth(t)
	defer pc.Close() // never read
	a := NewAcceptor(AcceptorConfig{TLS: brokerTLS()})
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := ln.Accept()
		if err == nil {
			a.ServeConn(context.Background(), c)
		}
	}()
	d := dialer(ln.Addr().String(), TransportAuto, Config{Metrics: m})
	d.HeadStart = 100 * time.Millisecond
	start := time.Now()
	s, err := d.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Transport() != TransportTCP || time.Since(start) < d.HeadStart {
		t.Errorf("over %q after %s", s.Transport(), time.Since(start))
	}
	_ = s.Close(wire.Shutdown, "")
	_ = ln.Close()
	<-served
	waitFor(t, func() bool { return testutil.ToFloat64(m.dials.WithLabelValues("quic", "lost")) == 1 }, "the loser to be counted")
	if got := testutil.ToFloat64(m.dials.WithLabelValues("tcp", "ok")); got != 1 {
		t.Errorf("%v dials over TCP counted", got)
	}
}

// TestAutoAfterMuteQUIC: the handshake passes, and nothing after it.
func TestAutoAfterMuteQUIC(t *testing.T) {
	t.Parallel() // it mostly waits
	b := startBroker(t, AcceptorConfig{})
	e, err := dialer(b.addr, TransportAuto, Config{HandshakeTimeout: 300 * time.Millisecond}).prepare()
	if err != nil {
		t.Fatal(err)
	}
	mute := func(context.Context) (*link, error) {
		l, _, hole := memLinks()
		hole.Store(true)
		return l, nil
	}
	s, err := e.dialAny(t.Context(), []attempt{e.attempt(TransportQUIC, 0, mute), e.attempt(TransportTCP, time.Hour, e.dialTCP)})
	if err != nil {
		t.Fatal(err)
	}
	if s.Transport() != TransportTCP {
		t.Errorf("over %q", s.Transport())
	}
	_ = s.Close(wire.Shutdown, "")
}

// TestRace drives the race by itself, in fake time.
func TestRace(t *testing.T) {
	type entry struct {
		after, takes time.Duration
		fails        bool
	}
	s := time.Second
	for name, tc := range map[string]struct {
		entries []entry
		winner  int // -1: none
		at      time.Duration
		closed  int64 // losers that had a link
	}{
		"the first in its head start": {[]entry{{0, 1 * s, false}, {2 * s, 0, false}}, 0, 1 * s, 0},
		"the second passes the first": {[]entry{{0, 9 * s, false}, {2 * s, 1 * s, false}}, 1, 3 * s, 0},
		"the first all the same":      {[]entry{{0, 3 * s, false}, {2 * s, 5 * s, false}}, 0, 3 * s, 0},
		"a failure starts the next":   {[]entry{{0, 1 * s, true}, {20 * s, 1 * s, false}}, 1, 2 * s, 0},
		"both fail":                   {[]entry{{0, 1 * s, true}, {2 * s, 1 * s, true}}, -1, 2 * s, 0},
		"one alone":                   {[]entry{{5 * s, 1 * s, false}}, 0, 1 * s, 0},
		"a tie leaves one":            {[]entry{{0, 3 * s, false}, {1 * s, 2 * s, false}}, -2, 3 * s, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var attempts []attempt
				for _, e := range tc.entries {
					attempts = append(attempts, attempt{name: "x", after: e.after, dial: func(ctx context.Context) (*link, error) {
						select {
						case <-time.After(e.takes):
						case <-ctx.Done():
							return nil, ctx.Err()
						}
						if e.fails {
							return nil, errors.New("failed")
						}
						return &link{}, nil
					}})
				}
				var closed atomic.Int64
				start := time.Now()
				l, i, err := race(t.Context(), attempts, func(*link) { closed.Add(1) })
				if (l == nil) != (err != nil) || tc.winner >= -1 && i != tc.winner {
					t.Errorf("won by %d, %v; want %d", i, err, tc.winner)
				}
				if d := time.Since(start); d != tc.at {
					t.Errorf("took %s, want %s", d, tc.at)
				}
				synctest.Wait()
				if closed.Load() > tc.closed {
					t.Errorf("%d links were closed, want at most %d", closed.Load(), tc.closed)
				}
			})
		})
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	p := newPair(t, TransportTCP, true, Config{Metrics: m}) // both ends count
	st := p.open(t)
	if _, err := st.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	_ = st.CloseWrite()
	for readErr(st) == nil {
	}
	_ = st.Close()
	_, _ = p.acceptor.Open(t.Context(), wire.KindAPI, "") // refused: the agent has no handler
	for what, c := range map[string]struct {
		got  prometheus.Collector
		want float64
	}{
		"sessions":  {m.sessions.WithLabelValues("tcp"), 2},
		"bytes in":  {m.bytes.WithLabelValues("tcp", "in"), 2000},
		"bytes out": {m.bytes.WithLabelValues("tcp", "out"), 2000},
		"opens out": {m.opens.WithLabelValues("tcp", "out", "dial", "ok"), 1},
		"opens in":  {m.opens.WithLabelValues("tcp", "in", "dial", "ok"), 1},
		"refusals":  {m.opens.WithLabelValues("tcp", "out", "api", "denied by policy"), 1},
	} {
		if got := testutil.ToFloat64(c.got); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
	_ = p.opener.Close(wire.Shutdown, "")
	<-p.acceptor.Done()
	if got := testutil.ToFloat64(m.sessions.WithLabelValues("tcp")); got != 0 {
		t.Errorf("%v sessions after the end", got)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
