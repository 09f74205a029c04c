package tenant

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mooring-edge/mooring/internal/proxyproto"
)

// world is a network in which each address answers, refuses, or says nothing.
type world struct {
	mu     sync.Mutex        // guards the following
	says   map[string]string // "up", "refuses"; else nothing
	dialed []string
}

var errRefused = errors.New("connection refused")

func (w *world) dial(ctx context.Context, address string) (net.Conn, error) {
	w.mu.Lock()
	says := w.says[address]
	w.dialed = append(w.dialed, address)
	w.mu.Unlock()
	switch says {
	case "up":
		near, far := net.Pipe()
		far.Close()
		return named{near, address}, nil
	case "refuses":
		return nil, errRefused
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (w *world) set(address, says string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.says[address] = says
}

// asked returns what was dialled since it was last called.
func (w *world) asked() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.dialed
	w.dialed = nil
	return d
}

type named struct {
	net.Conn
	address string
}

func withUpstreams(addresses ...string) Tenant {
	t := someTenant("acme")
	t.Address, t.Upstreams = addresses[0], addresses[1:]
	return t
}

// TestFailover: whatever an address does, another that answers is had within the dial's time, and the dials after that don't
// wait for the bad one, until the probe has found it well again. Mechanism: dialFirst, health.note, health.order, health.probe. Seen failing
// with headStart an hour ("says nothing": no other is tried), with note doing nothing (each dial waits a second anew), and without
// probe (the first address is never dialled first again).
func TestFailover(t *testing.T) {
	for _, tc := range []struct {
		says string
		wait time.Duration
	}{{"refuses", 0}, {"nothing", headStart}} {
		t.Run(tc.says, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{says: map[string]string{"a:1": tc.says, "b:1": "up", "c:1": "up"}}
				h := newHealth(slog.New(slog.DiscardHandler))
				h.dialOne = w.dial
				acme := withUpstreams("a:1", "b:1", "c:1")
				want := func(wait time.Duration, address string, asked ...string) {
					t.Helper()
					began := time.Now()
					c, err := h.dial(t.Context(), acme)
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					got := w.asked()
					if c.(named).address != address || time.Since(began) != wait || !slices.Equal(got, asked) {
						t.Fatalf("%s after %s, dialled %v; want %s after %s, dialled %v", c.(named).address, time.Since(began), got, address, wait, asked)
					}
				}
				want(tc.wait, "b:1", "a:1", "b:1")
				want(0, "b:1", "b:1")
				if u := h.of(acme); u[0].Err == nil || u[1].Err != nil || u[2].Err != nil {
					t.Errorf("known: %+v", u)
				}
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				defer running.Wait()
				defer cancel()
				running.Go(func() { h.run(ctx, func(string) (Tenant, bool) { return acme, true }) })
				time.Sleep(3 * (probeEvery + probeTimeout)) // it is tried, and still away
				if got := w.asked(); len(got) < 2 || slices.ContainsFunc(got, func(a string) bool { return a != "a:1" }) {
					t.Errorf("the probes dialled %v, want a:1 alone, again and again", got)
				}
				want(0, "b:1", "b:1")
				w.set("a:1", "up")
				time.Sleep(probeEvery + probeTimeout)
				synctest.Wait()
				w.asked()
				want(0, "a:1", "a:1")
			})
		})
	}
}

// TestAllDown: each address is told of, within the dial's time, and those who hang up have shown nothing.
func TestAllDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{says: map[string]string{"a:1": "nothing", "b:1": "refuses"}}
		h := newHealth(slog.New(slog.DiscardHandler))
		h.dialOne = w.dial
		acme := withUpstreams("a:1", "b:1")
		impatient, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		if _, err := h.dial(impatient, acme); !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
		if u := h.of(acme); u[0].Err != nil || u[1].Err != nil {
			t.Errorf("who hung up has shown: %+v", u)
		}
		began := time.Now()
		_, err := h.dial(t.Context(), acme)
		if err == nil || !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "a:1") || time.Since(began) != dialTimeout {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		if u := h.of(acme); u[0].Err == nil || u[1].Err == nil {
			t.Errorf("known: %+v", u)
		}
		// What is nobody's address any more is forgotten.
		h.probe(t.Context(), func(string) (Tenant, bool) { return withUpstreams("b:1"), true })
		if len(h.down) != 1 {
			t.Errorf("known of addresses that are gone: %v", h.down)
		}
	})
}

// TestUpstreamsOverTCP: the registry's own dials, the metric, and the PROXY header where it is wanted.
func TestUpstreamsOverTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	acme := withUpstreams(dead.Addr().String(), l.Addr().String())
	acme.ProxyProtocol = true
	s := openStore(t)
	r := startRegistry(t, s)
	if err := r.Add(t.Context(), acme); err != nil {
		t.Fatal(err)
	}
	told := make(chan change, 1)
	defer r.Subscribe(func(t Tenant, deleted bool) { told <- change{t, deleted} })()
	next(t, told)
	client := &net.TCPAddr{IP: net.ParseIP("192.0.2.7"), Port: 4242}
	for _, from := range []net.Addr{client, nil} {
		c, err := r.DialAPIFor(t.Context(), "acme", from)
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		header, err := io.ReadAll(far)
		far.Close()
		got, rerr := proxyproto.Read(bytes.NewReader(header))
		if err := errors.Join(err, rerr); err != nil || got != proxyproto.AddrPort(from) {
			t.Errorf("for %v: header %q, %v", from, header, err)
		}
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(r)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP mooring_tenant_upstream_up 1 while the last connection to this address of a tenant's API server was made (or none was tried yet), 0 since one failed.
# TYPE mooring_tenant_upstream_up gauge
mooring_tenant_upstream_up{tenant="acme",upstream="`+l.Addr().String()+`"} 1
mooring_tenant_upstream_up{tenant="acme",upstream="`+dead.Addr().String()+`"} 0
`)); err != nil {
		t.Error(err)
	}
	if u := r.Upstreams("acme"); len(u) != 2 || u[0].Err == nil || u[1].Err != nil {
		t.Errorf("%+v", u)
	}
}
