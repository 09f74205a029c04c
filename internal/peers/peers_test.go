package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hereFunc is what a broker's own nodes do.
type hereFunc func(ctx context.Context, tenant, node, addr string) (net.Conn, error)

func (f hereFunc) DialHere(ctx context.Context, tenant, node, addr string) (net.Conn, error) {
	return f(ctx, tenant, node, addr)
}

type peer struct {
	dir   *Directory
	links *Links
	stop  func()
}

type world struct {
	ca    *pki.CA
	store *store.Store
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ca, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &world{ca, s}
}

// broker starts one; it ends with the test, or by stop.
func (w *world) broker(t *testing.T, name string, here hereFunc) *peer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := w.ca.IssueBroker(name, nil, nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	get := func() (*tls.Certificate, error) { return &cert, nil }
	isBroker := func(id pki.Identity) error {
		if id.Role != pki.RoleBroker {
			return errors.New("no broker")
		}
		return nil
	}
	dir := NewDirectory(DirectoryConfig{Store: w.store, Name: name, Address: ln.Addr().String(), TTL: 2 * time.Second, Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	links := NewLinks(LinksConfig{
		Directory: dir, Here: here,
		Client: pki.ClientTLS(get, pki.VerifyPeer(w.ca.Pool, x509.ExtKeyUsageServerAuth, time.Now, isBroker)),
		Server: pki.ServerTLS(get, pki.VerifyPeer(w.ca.Pool, x509.ExtKeyUsageClientAuth, time.Now, isBroker), pki.ServerOptions{}),
	})
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if err := dir.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	all.Go(func() {
		if err := links.Serve(ctx, ln); err != nil {
			t.Error(err)
		}
	})
	p := &peer{dir, links, sync.OnceFunc(func() { cancel(); all.Wait() })}
	t.Cleanup(p.stop)
	return p
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// await looks again each time that the store may have told something; only a failure reaches its deadline.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (p *peer) finds(tenant, node string) bool {
	_, ok := p.dir.Find(tenant, node)
	return ok
}

// nobody has no nodes.
func nobody(context.Context, string, string, string) (net.Conn, error) {
	return nil, &tunnel.RefusedError{Code: wire.NotFound, Message: "no such node"}
}

// echo is a node that sends back what it gets.
func echo(context.Context, string, string, string) (net.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	far, err := l.Accept()
	if err != nil {
		return nil, err
	}
	go func() {
		defer far.Close()
		io.Copy(far, far)
		far.(*net.TCPConn).CloseWrite()
	}()
	return near, nil
}

// TestForward: a node at one broker is reached from the other, by what that is asked, with half-close; what the node
// refuses comes through as it was said.
func TestForward(t *testing.T) {
	w := newWorld(t)
	asked := make(chan string, 10)
	b := w.broker(t, "b", func(ctx context.Context, tenant, node, addr string) (net.Conn, error) {
		asked <- tenant + " " + node + " " + addr + " " + tunnel.TraceOf(ctx).String()
		if addr == "edge-1:22" {
			return nil, &tunnel.RefusedError{Code: wire.Denied, Message: "port 22 is not the kubelet's"}
		}
		if addr == "edge-1:23" {
			return nil, fmt.Errorf("open: %w", &tunnel.ClosedError{Code: wire.HeartbeatLost, Message: "silent"})
		}
		return echo(ctx, tenant, node, addr)
	})
	a := w.broker(t, "a", nobody)
	b.dir.Attach("acme", "edge-1", []netip.Addr{netip.MustParseAddr("192.168.1.10")})
	await(t, "a finds the node", func() bool { return a.finds("acme", "edge-1") })
	if b.finds("acme", "edge-1") {
		t.Error("a broker finds its own node elsewhere")
	}
	if a.finds("globex", "edge-1") || a.finds("acme", "edge-2") {
		t.Error("found what is not there")
	}
	if got := a.dir.Having("acme", netip.MustParseAddr("192.168.1.10")); !slices.Equal(got, []string{"edge-1"}) {
		t.Errorf("having the address: %v", got)
	}
	if got := a.dir.Nodes("acme"); !slices.Equal(got, []string{"edge-1"}) {
		t.Errorf("nodes: %v", got)
	}
	r, _ := a.dir.Find("acme", "edge-1")
	trace := wire.NewTrace()
	ctx := tunnel.WithTrace(t.Context(), trace)
	conn, err := a.links.Dial(ctx, r, "acme", "edge-1", "edge-1:10250")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, want := <-asked, "acme edge-1 edge-1:10250 "+trace.String(); got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
	sent := bytes.Repeat([]byte("mooring "), 100_000)
	go func() {
		conn.Write(sent)
		conn.(*tunnel.Stream).CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d came back, %v", len(got), len(sent), err)
	}
	var refused *tunnel.RefusedError
	_, err = a.links.Dial(t.Context(), r, "acme", "edge-1", "edge-1:22")
	if !errors.As(err, &refused) || refused.Code != wire.Denied || !strings.Contains(refused.Message, "port 22") {
		t.Errorf("refused by the node: %v", err)
	}
	// A session that ended meanwhile is no time limit: another node may be asked in this one's place. Seen failing with all that is no
	// refusal told as timed out.
	_, err = a.links.Dial(t.Context(), r, "acme", "edge-1", "edge-1:23")
	if !errors.As(err, &refused) || refused.Code != wire.Unavailable || !strings.Contains(refused.Message, "silent") {
		t.Errorf("the node's session ended: %v", err)
	}
	if _, err = a.links.Dial(t.Context(), r, "acme", "edge-1", strings.Repeat("x", 600)+":1"); !errors.As(err, &refused) || refused.Code != wire.BadRequest {
		t.Errorf("too long: %v", err)
	}
}

// TestMove: a node that comes to another broker is found there, whichever of the two writes last; one that left is not found.
// Seen failing without the second look at another's claim (contested).
func TestMove(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.broker(t, "a", nobody), w.broker(t, "b", nobody), w.broker(t, "c", nobody)
	at := func(p *peer) func() bool {
		return func() bool { r, ok := c.dir.Find("acme", "edge-1"); return ok && r.Broker == p.dir.ID() }
	}
	leaveA := a.dir.Attach("acme", "edge-1", nil)
	await(t, "found at a", at(a))
	leaveB := b.dir.Attach("acme", "edge-1", nil)
	await(t, "found at b", at(b))
	leaveA() // as the session there is superseded
	leaveA2 := a.dir.Attach("acme", "edge-1", nil)
	await(t, "found at a again", at(a))
	leaveA2() // and what a writes late must not hide that b has it
	await(t, "found at b again", at(b))
	leaveB()
	await(t, "found nowhere", func() bool { return !c.finds("acme", "edge-1") })
}

// TestAside: what may be at two brokers at one time is found at the one that said so last, and at the other when that has left; neither
// writes for as long as both are there. Seen failing (the two wrote against each other once a second) with yields not looked at.
func TestAside(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.broker(t, "a", nobody), w.broker(t, "b", nobody), w.broker(t, "c", nobody)
	at := func(p *peer) func() bool {
		return func() bool { r, ok := c.dir.Find("acme", "edge-1~x"); return ok && r.Broker == p.dir.ID() }
	}
	leaveA := a.dir.AttachAside("acme", "edge-1~x", nil)
	await(t, "found at a", at(a))
	leaveB := b.dir.AttachAside("acme", "edge-1~x", nil)
	await(t, "found at b", at(b))
	for end := time.Now().Add(2 * contested); time.Now().Before(end); time.Sleep(5 * time.Millisecond) { // for as long as it would take
		if !at(b)() {
			t.Fatal("a took it back while b has it")
		}
	}
	leaveB()
	await(t, "found at a again", at(a))
	leaveA()
	await(t, "found nowhere", func() bool { return !c.finds("acme", "edge-1~x") })
}

// TestBrokerGone: what a broker had is not found once it stopped; one that is killed is forgotten with its lease.
func TestBrokerGone(t *testing.T) {
	w := newWorld(t)
	a, b := w.broker(t, "a", nobody), w.broker(t, "b", hereFunc(echo))
	b.dir.Attach("acme", "edge-1", nil)
	await(t, "found", func() bool { return a.finds("acme", "edge-1") })
	r, _ := a.dir.Find("acme", "edge-1")
	conn, err := a.links.Dial(t.Context(), r, "acme", "edge-1", "edge-1:10250")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b.stop()
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || err == io.EOF {
		t.Errorf("of a connection through a broker that stopped: %d, %v; want an error that is no clean end", n, err)
	}
	await(t, "not found", func() bool { return !a.finds("acme", "edge-1") })
	var refused *tunnel.RefusedError
	if _, err := a.links.Dial(t.Context(), r, "acme", "edge-1", "edge-1:10250"); !errors.As(err, &refused) || refused.Code != wire.Unavailable {
		t.Errorf("dial by an old route: %v", err)
	}
	if left, err := w.store.List(t.Context(), "/mooring/"); err != nil || len(left) != 1 {
		t.Errorf("left in the store: %v, %v; want a's own record", left, err)
	}
}

// flaky is a store whose next commit fails once.
type flaky struct {
	*store.Store
	fail atomic.Bool
}

func (f *flaky) Commit(ctx context.Context, ops ...store.Op) error {
	if f.fail.Swap(false) {
		return errors.New("leader changed")
	}
	return f.Store.Commit(ctx, ops...)
}

// TestFailedWriteTakesNothingAway: a commit that failed is made again, and what was written before stands meanwhile. Seen
// failing with a new lease after each failure.
func TestFailedWriteTakesNothingAway(t *testing.T) {
	w := newWorld(t)
	c := w.broker(t, "c", nobody)
	f := &flaky{Store: w.store}
	d := NewDirectory(DirectoryConfig{Store: f, Name: "a", Address: "127.0.0.1:1", TTL: 10 * time.Second})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	d.Attach("acme", "edge-1", nil)
	await(t, "the first is found", func() bool { return c.finds("acme", "edge-1") })
	f.fail.Store(true)
	d.Attach("acme", "edge-2", nil)
	await(t, "the second is found", func() bool {
		if !c.finds("acme", "edge-1") {
			t.Fatal("the first is not found any more")
		}
		return c.finds("acme", "edge-2")
	})
	if f.fail.Load() {
		t.Error("no commit failed")
	}
}

// TestOnlyBrokers: nobody else's certificate opens the port between brokers, a node's least of all; and a broker that is asked for
// something else refuses it.
func TestOnlyBrokers(t *testing.T) {
	w := newWorld(t)
	b := w.broker(t, "b", nobody)
	address := func() string {
		items, err := w.store.List(t.Context(), brokerPrefix)
		if err != nil || len(items) != 1 {
			return ""
		}
		_, rest, _ := strings.Cut(string(items[0].Value), `"address":"`)
		a, _, _ := strings.Cut(rest, `"`)
		return a
	}
	await(t, "b is in the store", func() bool { return address() != "" })
	dial := func(cert tls.Certificate) (*tunnel.Session, error) {
		d := tunnel.Dialer{Endpoint: address(), Transport: tunnel.TransportTCP, TLS: pki.ClientTLS(
			func() (*tls.Certificate, error) { return &cert, nil }, pki.VerifyPeer(w.ca.Pool, x509.ExtKeyUsageServerAuth, time.Now, nil))}
		return d.Dial(t.Context())
	}
	certPEM, keyPEM, err := w.ca.IssueAPIServer("acme", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := dial(pair); err == nil {
		s.Close(wire.Shutdown, "")
		t.Error("an API server's certificate was let in among brokers")
	}
	other, err := w.ca.IssueBroker("c", nil, nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s, err := dial(other)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(wire.Shutdown, "")
	var refused *tunnel.RefusedError
	if _, err := s.Open(t.Context(), wire.KindDial, "edge-1:10250"); !errors.As(err, &refused) || refused.Code != wire.BadRequest {
		t.Errorf("another kind of stream: %v", err)
	}
	if _, err := s.Open(t.Context(), wire.KindForward, "acme"); !errors.As(err, &refused) || refused.Code != wire.BadRequest {
		t.Errorf("no target: %v", err)
	}
	_ = b
}

// TestDialGivenUp: who gives a dial up gets his answer at once, though the node's broker waits on.
func TestDialGivenUp(t *testing.T) {
	w := newWorld(t)
	asked, release := make(chan struct{}), make(chan struct{})
	b := w.broker(t, "b", func(context.Context, string, string, string) (net.Conn, error) {
		close(asked)
		<-release
		return nobody(context.Background(), "", "", "")
	})
	defer close(release)
	a := w.broker(t, "a", nobody)
	b.dir.Attach("acme", "edge-1", nil)
	await(t, "found", func() bool { return a.finds("acme", "edge-1") })
	r, _ := a.dir.Find("acme", "edge-1")
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := a.links.Dial(ctx, r, "acme", "edge-1", "edge-1:10250"); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

func TestTargets(t *testing.T) {
	for _, c := range []struct{ tenant, node, addr, target, back string }{
		{"acme", "edge-1", "edge-1:10250", "acme/edge-1/:10250", "edge-1:10250"},
		{"acme", "edge-1", "EDGE-1:10250", "acme/edge-1/:10250", "edge-1:10250"},
		{"acme", "edge-1", "10.0.0.1:443", "acme/edge-1/10.0.0.1:443", "10.0.0.1:443"},
		{"acme", "edge-1", "[fd00::1]:443", "acme/edge-1/[fd00::1]:443", "[fd00::1]:443"},
	} {
		got, err := appendTarget(c.tenant, c.node, c.addr)
		if err != nil || got != c.target {
			t.Errorf("%s: %q, %v; want %q", c.addr, got, err, c.target)
		}
		tenant, node, addr, err := parseTarget(got)
		if err != nil || tenant != c.tenant || node != c.node || addr != c.back {
			t.Errorf("%s: back %q %q %q, %v", got, tenant, node, addr, err)
		}
	}
	for _, bad := range []string{"", "acme", "acme/edge-1", "acme/edge-1/", "acme//:1", "/edge-1/:1", "acme/edge-1/x", "acme/edge-1/x:"} {
		if _, _, _, err := parseTarget(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// FuzzForwardTarget: what is taken of another broker's target says the same when it is said again.
func FuzzForwardTarget(f *testing.F) {
	for _, s := range []string{"acme/edge-1/:10250", "acme/edge-1/[fd00::1]:443", "a/b/c/d:1", "//:", "a/b/[:1", "0/1/[1]:0", "0/[/:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tenant, node, addr, err := parseTarget(s)
		if err != nil {
			return
		}
		again, err := appendTarget(tenant, node, addr)
		if err != nil && len(s) < wire.MaxTarget {
			t.Fatalf("%q: %v", s, err)
		}
		if err != nil {
			return
		}
		host, port, _ := net.SplitHostPort(addr) // which knows "[x]:1" and "x:1" for the same
		a, b, c, err := parseTarget(again)
		if h, p, splitErr := net.SplitHostPort(c); err != nil || splitErr != nil || a != tenant || b != node || !strings.EqualFold(h, host) || p != port {
			t.Fatalf("%q: %q %q %q, again %q: %q %q %q, %v", s, tenant, node, addr, again, a, b, c, err)
		}
	})
}
