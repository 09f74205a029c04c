package egressproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// klog's flush daemon is started by the import of konnectivity's client and has no end.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// limit is how long a test waits for what should happen at once.
const limit = 10 * time.Second

// fixture is a sidecar and its broker, which is all nodes too: what is dialled comes to the test.
type fixture struct {
	ca     *pki.CA
	dir    string
	socket string
	proxy  *Proxy
	logs   *logBuffer
	broker *testBroker
	nodes  chan *tunnel.Stream // accepted dials, but those to a target named below
	held   chan context.Context
	stop   func()
}

// testBroker is a broker that can be stopped and started on its port.
type testBroker struct {
	f        *fixture
	addr     string
	sessions chan *tunnel.Session
	stop     func()
}

// start makes a sidecar that has a session, unless an option has stopped the broker.
func start(t *testing.T, options ...func(*Config)) *fixture {
	t.Helper()
	f := prepare(t)
	f.run(t, options...)
	f.session(t)
	return f
}

// prepare makes all but the sidecar itself.
func prepare(t *testing.T) *fixture {
	t.Helper()
	ca, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	f := &fixture{
		ca: ca, dir: filepath.Join(base, "egress"), socket: filepath.Join(base, "p.sock"), logs: &logBuffer{more: make(chan struct{})},
		nodes: make(chan *tunnel.Stream, 16), held: make(chan context.Context, 16),
	}
	f.broker = &testBroker{f: f, sessions: make(chan *tunnel.Session, 16)}
	f.broker.start(t, "127.0.0.1:0")
	f.issue(t, "acme", time.Hour)
	return f
}

func (f *fixture) run(t *testing.T, options ...func(*Config)) {
	t.Helper()
	f.logs = &logBuffer{more: make(chan struct{})} // what an earlier one said is not this one's
	cfg := Config{
		Dir: f.dir, Socket: f.socket, Transport: tunnel.TransportTCP, lookInterval: 20 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(f.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, set := range options {
		set(&cfg)
	}
	f.proxy = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.proxy.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * limit):
			t.Error("Run does not return")
		}
	})
	t.Cleanup(f.stop)
	f.logs.await(t, "condition=Socket status=True")
}

// issue writes a new identity to the directory, as `broker egress issue` does.
func (f *fixture) issue(t *testing.T, tenant string, ttl time.Duration) {
	t.Helper()
	f.write(t, f.dir, tenant, ttl)
}

func (f *fixture) write(t *testing.T, dir, tenant string, ttl time.Duration) {
	t.Helper()
	cert, key, err := f.ca.IssueAPIServer(tenant, time.Now(), ttl)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		fileCert: string(cert), fileKey: string(key), fileCA: string(f.ca.CertPEM()), fileBroker: f.broker.addr + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *testBroker) start(t *testing.T, addr string) {
	t.Helper()
	server, err := b.f.ca.IssueBroker("b", []string{"localhost"}, nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	acceptor := tunnel.NewAcceptor(tunnel.AcceptorConfig{
		TLS: pki.ServerTLS(func() (*tls.Certificate, error) { return &server, nil },
			pki.VerifyPeer(b.f.ca.Pool, x509.ExtKeyUsageClientAuth, time.Now, nil), pki.ServerOptions{}),
		Config:    tunnel.Config{Handler: b.f.handle, MaxPending: 256},
		OnSession: func(_ context.Context, s *tunnel.Session) { b.sessions <- s },
	})
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { acceptor.ServeConn(ctx, c) })
		}
	})
	b.stop = sync.OnceFunc(func() { cancel(); l.Close(); all.Wait() })
	t.Cleanup(b.stop)
}

// session is the next session that the broker sees.
func (f *fixture) session(t *testing.T) *tunnel.Session {
	t.Helper()
	select {
	case s := <-f.broker.sessions:
		return s
	case <-time.After(limit):
		t.Fatalf("no session came:\n%s", f.logs)
	}
	return nil
}

// node is the far end of the next connection.
func (f *fixture) node(t *testing.T) *tunnel.Stream {
	t.Helper()
	select {
	case s := <-f.nodes:
		t.Cleanup(func() { s.Close() })
		return s
	case <-time.After(limit):
		t.Fatalf("no connection came:\n%s", f.logs)
	}
	return nil
}

// handle is the broker's. Some targets have a meaning.
func (f *fixture) handle(ctx context.Context, _ *tunnel.Session, r *tunnel.Request) {
	switch {
	case r.Target == "absent:1":
		_ = r.Refuse(wire.NotFound, `no connected node has the name or address "absent"`)
	case strings.HasPrefix(r.Target, "hold"):
		f.held <- ctx
		<-ctx.Done()
	case strings.HasPrefix(r.Target, "echo"):
		if s, err := r.Accept(); err == nil {
			_, _ = io.Copy(s, s)
			s.Close()
		}
	default:
		if s, err := r.Accept(); err == nil {
			f.nodes <- s
		}
	}
}

// logBuffer is a log that may be waited for.
type logBuffer struct {
	mu   sync.Mutex // guards the following
	b    strings.Builder
	more chan struct{} // closed, and made anew, with each line
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) await(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(limit)
	for {
		l.mu.Lock()
		all, more := l.b.String(), l.more
		l.mu.Unlock()
		if strings.Contains(all, text) {
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("the log never said %q:\n%s", text, all)
		}
	}
}

func wantEcho(t *testing.T, c io.ReadWriter, words string) {
	t.Helper()
	if _, err := io.WriteString(c, words); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(words))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != words {
		t.Fatalf("%q came back for %q: %v", got, words, err)
	}
}

// wantReset wants a node's end to have been cut, and not ended.
func wantReset(t *testing.T, s *tunnel.Stream, code wire.Code) {
	t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(limit))
	rest, err := io.ReadAll(s)
	if e, ok := err.(*tunnel.ResetError); !ok || !e.Remote || e.Code != code {
		t.Errorf("the node read %d bytes, %v; want a reset with %s", len(rest), err, code)
	}
}

// wantEnd wants a node's end to have read this and an end in the ordinary way.
func wantEnd(t *testing.T, s *tunnel.Stream, want string) {
	t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(limit))
	if got, err := io.ReadAll(s); err != nil || string(got) != want {
		t.Errorf("the node read %.60q (%d bytes), %v; want %.60q (%d) and an end", got, len(got), err, want, len(want))
	}
}

func within(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(limit):
		t.Fatalf("waited in vain for %s", what)
	}
}
