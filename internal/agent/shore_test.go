package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/pkg/join/jointest"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// TestMain runs this binary as the kubelet where the agent under test starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("MOORING_TEST_KUBELET") != "" {
		os.Exit(fakeKubelet())
	}
	goleak.VerifyTestMain(m)
}

// fakeKubelet listens where its configuration says and echoes lines, until it is told to end.
func fakeKubelet() int {
	var port int
	for _, arg := range os.Args {
		if path, ok := strings.CutPrefix(arg, "--config="); ok {
			data, _ := os.ReadFile(path)
			for line := range strings.SplitSeq(string(data), "\n") {
				if v, ok := strings.CutPrefix(line, "port: "); ok {
					port, _ = strconv.Atoi(v)
				}
			}
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	<-c
	return 0
}

// shore is the whole other side: broker, tunnel, API server.
type shore struct {
	t      *testing.T
	api    *jointest.API
	broker *jointest.Broker
	up     chan *tunnel.Session
	told   chan wire.Status // what nodes say of their certificates
	named  chan wire.Trace  // the first few names of their streams to the API server
	stop   func()           // of the tunnel's end
}

func newShore(t *testing.T) *shore {
	s := &shore{t: t, api: jointest.NewAPI(t), up: make(chan *tunnel.Session, 16), told: make(chan wire.Status, 16), named: make(chan wire.Trace, 4)}
	s.broker = jointest.NewBroker(t, s.api)
	s.listen()
	return s
}

// listen opens the tunnel's end, in UDP on the port that enrolment has in TCP.
func (s *shore) listen() {
	s.t.Helper()
	cert, err := s.broker.CA.IssueBroker("b1", nil, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Now(), time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	acceptor := tunnel.NewAcceptor(tunnel.AcceptorConfig{
		TLS: pki.ServerTLS(func() (*tls.Certificate, error) { return &cert, nil },
			pki.VerifyPeer(s.broker.CA.Pool, x509.ExtKeyUsageClientAuth, time.Now, nil), pki.ServerOptions{}),
		Config:    tunnel.Config{Handler: s.handle, OnStatus: func(_ *tunnel.Session, st wire.Status) { s.told <- st }},
		OnSession: func(_ context.Context, sess *tunnel.Session) { s.up <- sess },
	})
	pc, err := net.ListenPacket("udp", s.broker.Endpoint)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = acceptor.ServeQUIC(ctx, pc) }()
	stopped := false
	s.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			<-done
			pc.Close()
		}
	}
	s.t.Cleanup(func() { s.stop() })
}

// handle takes the node's streams to the API server there.
func (s *shore) handle(_ context.Context, _ *tunnel.Session, r *tunnel.Request) {
	if r.Kind != wire.KindAPI {
		_ = r.Refuse(wire.BadRequest, "")
		return
	}
	select {
	case s.named <- r.Trace:
	default:
	}
	conn, err := net.Dial("tcp", s.api.Address)
	if err != nil {
		_ = r.Refuse(wire.Unavailable, err.Error())
		return
	}
	stream, err := r.Accept()
	if err != nil {
		conn.Close()
		return
	}
	_, _, _ = splice.Splice(stream, conn)
}

// session waits for the node's next one.
func (s *shore) session() *tunnel.Session {
	s.t.Helper()
	select {
	case sess := <-s.up:
		return sess
	case <-time.After(time.Minute):
		s.t.Fatal("no session within a minute")
		return nil
	}
}

// freePort is one that nobody had a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// node is the configuration of a box at the shore, with the join file in place.
func (s *shore) node() *config.Agent {
	s.t.Helper()
	s.t.Setenv("MOORING_TEST_KUBELET", "1")
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	dir := s.t.TempDir()
	cfg := config.DefaultAgent()
	cfg.JoinFile, cfg.StateDir, cfg.Socket = filepath.Join(dir, "join.yaml"), filepath.Join(dir, "state"), filepath.Join(dir, "run", "a.sock")
	cfg.HealthAddress = fmt.Sprintf("127.0.0.1:%d", freePort(s.t))
	cfg.APIAddress = fmt.Sprintf("127.0.0.1:%d", freePort(s.t))
	cfg.Tunnel.Transport = "quic"
	cfg.Node.Console = ""
	cfg.Node.Name, cfg.Node.Addresses = "edge-1", []string{"192.168.1.10"}
	cfg.Kubelet.Mode, cfg.Kubelet.Path, cfg.Kubelet.RootDir, cfg.Kubelet.Port = "child", self, filepath.Join(dir, "kubelet"), freePort(s.t)
	bundle, err := config.Marshal(config.JoinBundle{
		TypeMeta: config.TypeMeta{APIVersion: config.APIVersion, Kind: config.KindJoinBundle},
		Endpoint: s.broker.Endpoint, Tenant: jointest.Tenant, Token: s.broker.Token.String(), CACertHashes: []string{s.broker.CA.Hash()},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(cfg.JoinFile, bundle, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		a := mustNew(s.t, cfg)
		if _, err := a.stopKubelet(context.Background()); err != nil {
			s.t.Errorf("stop the kubelet: %v", err)
		}
	})
	return cfg
}

func testLogger(t *testing.T) *slog.Logger {
	level := slog.LevelError + 1 // what these tests break is told at length
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
}

func mustNew(t *testing.T, cfg *config.Agent) *Agent {
	t.Helper()
	a, err := New(cfg, Options{Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// run runs an agent; the result ends it.
func run(t *testing.T, cfg *config.Agent) (a *Agent, stop func()) {
	t.Helper()
	a = mustNew(t, cfg)
	return a, runAgent(t, a)
}

func runAgent(t *testing.T, a *Agent) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// until waits for the agent's status, as its socket gives it, to be as wanted.
func until(t *testing.T, socket, what string, ok func(*Status) bool) *Status {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		s, err := FetchStatus(t.Context(), socket)
		if err == nil && ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %s within a minute: %+v, %v", what, s, err)
		}
		time.Sleep(20 * time.Millisecond) // polls a condition with a deadline
	}
}

// untilListening waits for a kubelet that runs to listen too.
func untilListening(t *testing.T, port int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func isReady(s *Status) bool { return s.Ready }
