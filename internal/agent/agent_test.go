package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
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
	stop   func() // of the tunnel's end
}

func newShore(t *testing.T) *shore {
	s := &shore{t: t, api: jointest.NewAPI(t), up: make(chan *tunnel.Session, 16)}
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
		Config:    tunnel.Config{Handler: s.handle},
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
	case <-time.After(20 * time.Second):
		s.t.Fatal("no session within 20 s")
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

func mustNew(t *testing.T, cfg *config.Agent) *Agent {
	t.Helper()
	level := slog.LevelError
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	a, err := New(cfg, Options{Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// run runs an agent; the result ends it.
func run(t *testing.T, cfg *config.Agent) (a *Agent, stop func()) {
	t.Helper()
	a = mustNew(t, cfg)
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
	return a, stop
}

// until waits for the agent's status, as its socket gives it, to be as wanted.
func until(t *testing.T, socket, what string, ok func(*Status) bool) *Status {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		s, err := FetchStatus(t.Context(), socket)
		if err == nil && ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %s within 20 s: %+v, %v", what, s, err)
		}
		time.Sleep(20 * time.Millisecond) // polls a condition with a deadline
	}
}

// untilListening waits for a kubelet that runs to listen too.
func untilListening(t *testing.T, port int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
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

func TestNodeFromPowerOnToReadyAndBack(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	_, stop := run(t, cfg)
	sess := s.session()
	if h := sess.PeerHello(); h.Node != "edge-1" || len(h.Addresses) != 1 || h.Addresses[0].String() != "192.168.1.10" || h.Generation != 1 {
		t.Errorf("hello %+v", h)
	}
	if id, err := pki.PeerIdentity(sess.ConnectionState()); err != nil || id.Name != "edge-1" || id.Tenant != jointest.Tenant {
		t.Errorf("the session is %v's, %v", id, err)
	}
	st := until(t, cfg.Socket, "ready", isReady)
	if st.Identity == nil || st.Identity.Node != "edge-1" || !st.Tunnel.Connected || st.Tunnel.Transport != "quic" || !st.Kubelet.Running {
		t.Errorf("status %+v", st)
	}
	pid := st.Kubelet.PID
	untilListening(t, cfg.Kubelet.Port)

	t.Run("the broker reaches the kubelet", func(t *testing.T) { reachKubelet(t, sess, cfg.Kubelet.Port) })
	t.Run("and nothing else", func(t *testing.T) { reachNothingElse(t, sess, cfg) })
	t.Run("health endpoints", func(t *testing.T) { healthEndpoints(t, cfg) })
	t.Run("a second agent is refused", func(t *testing.T) {
		other := *cfg
		if err := mustNew(t, &other).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another edge-agent (run, pid ") {
			t.Errorf("err %v", err)
		}
		if _, err := mustNew(t, &other).Join(t.Context()); err == nil || !strings.Contains(err.Error(), "another edge-agent (run, pid ") {
			t.Errorf("err %v", err)
		}
		if _, err := mustNew(t, &other).Reset(t.Context()); err == nil || !strings.Contains(err.Error(), "another edge-agent (run, pid ") {
			t.Errorf("err %v", err)
		}
	})

	// The agent is restarted: the kubelet is not.
	stop()
	_, stop = run(t, cfg)
	if h := s.session().PeerHello(); h.Generation != 2 {
		t.Errorf("generation %d, want 2", h.Generation)
	}
	if st := until(t, cfg.Socket, "ready again", isReady); st.Kubelet.PID != pid {
		t.Errorf("kubelet %d, it was %d before the agent's restart", st.Kubelet.PID, pid)
	}

	// The broker goes away: the kubelet does not. The box restarts meanwhile: it starts without the broker.
	s.stop()
	until(t, cfg.Socket, "cut off", func(s *Status) bool { return !s.Tunnel.Connected })
	stop()
	if _, err := mustNew(t, cfg).stopKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, cfg)
	st = until(t, cfg.Socket, "running its kubelet", func(s *Status) bool { return s.Kubelet.Running })
	if st.Ready || st.Tunnel.Connected || st.Kubelet.PID == pid {
		t.Errorf("status of a box that is cut off: %+v", st)
	}
	s.listen()
	until(t, cfg.Socket, "ready at last", isReady)
	if enrols, joins, _ := s.broker.Counts(); enrols != 1 || joins != 1 || s.api.Requests() != 1 {
		t.Errorf("%d enrolments, %d joins, %d certificate requests, want one each", enrols, joins, s.api.Requests())
	}
}

func reachKubelet(t *testing.T, sess *tunnel.Session, port int) {
	for _, host := range []string{"edge-1", "EDGE-1", "192.168.1.10"} {
		stream, err := sess.Open(t.Context(), wire.KindDial, fmt.Sprintf("%s:%d", host, port))
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		fmt.Fprintln(stream, "hello")
		if line, err := bufio.NewReader(stream).ReadString('\n'); err != nil || line != "hello\n" {
			t.Errorf("%s: read %q, %v", host, line, err)
		}
		stream.Close()
	}
}

func reachNothingElse(t *testing.T, sess *tunnel.Session, cfg *config.Agent) {
	for _, target := range []string{
		fmt.Sprintf("127.0.0.1:%d", cfg.Kubelet.Port), cfg.APIAddress, cfg.HealthAddress, "169.254.169.254:80",
		fmt.Sprintf("edge-2:%d", cfg.Kubelet.Port), fmt.Sprintf("localhost:%d", cfg.Kubelet.Port), "edge-1:22",
	} {
		_, err := sess.Open(t.Context(), wire.KindDial, target)
		var refused *tunnel.RefusedError
		if !errors.As(err, &refused) || refused.Code != wire.Denied {
			t.Errorf("%s: %v, want a denial", target, err)
		}
	}
	_, err := sess.Open(t.Context(), wire.KindAPI, "")
	var refused *tunnel.RefusedError
	if !errors.As(err, &refused) || refused.Code != wire.BadRequest {
		t.Errorf("an API stream to a node: %v", err)
	}
}

func healthEndpoints(t *testing.T, cfg *config.Agent) {
	transport := &http.Transport{DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/metrics": 200, "/status": 404} {
		res, err := client.Get("http://" + cfg.HealthAddress + path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %s", path, res.Status)
		}
		for _, metric := range []string{"mooring_agent_tunnel_up 1", `mooring_condition{type="Kubelet"} 1`, `mooring_agent_join_attempts_total{outcome="ok",step="enrol"} 1`} {
			if path == "/metrics" && !strings.Contains(string(body), metric) {
				t.Errorf("%q is not among the metrics", metric)
			}
		}
	}
	if info, err := os.Stat(cfg.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("admin socket: %v, %v", info, err)
	}
}

func TestJoinThenRunThenReset(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	id, err := mustNew(t, cfg).Join(t.Context())
	if err != nil || id.Node != "edge-1" {
		t.Fatalf("join: %+v, %v", id, err)
	}
	s.session()
	if _, err := os.Stat(filepath.Join(cfg.StateDir, "kubelet.kubeconfig")); err != nil {
		t.Error(err)
	}
	if _, err := mustNew(t, cfg).Join(t.Context()); err != nil { // nothing left to do
		t.Errorf("second join: %v", err)
	}
	_, stop := run(t, cfg)
	until(t, cfg.Socket, "ready", isReady)
	stop()
	if enrols, _, _ := s.broker.Counts(); enrols != 1 {
		t.Errorf("%d enrolments", enrols)
	}
	said, err := mustNew(t, cfg).Reset(t.Context())
	if err != nil || !strings.Contains(said[0], "stopped the kubelet") {
		t.Errorf("reset: %q, %v", said, err)
	}
	if _, err := os.Stat(filepath.Join(cfg.StateDir, "node.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key is still there: %v", err)
	}
}

func TestJoinIsRefused(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	s.broker.Token.Secret = strings.Repeat("z", 32) // not the one in the join file
	a, err := New(cfg, Options{StopOnRefusal: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Join(t.Context()); err == nil || !strings.Contains(err.Error(), "token not accepted") {
		t.Errorf("err %v", err)
	}
	// Run goes on instead: an operator may put it right.
	_, _ = run(t, cfg)
	st := until(t, cfg.Socket, "refused", func(s *Status) bool { return strings.Contains(s.Summary, "token not accepted") })
	if st.Ready || st.Identity != nil || !strings.Contains(st.Summary, "trying again in 1m") {
		t.Errorf("status %+v", st)
	}
}

func TestNoJoinFileYet(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	cfg.JoinFile += ".not-yet"
	run(t, cfg)
	st := until(t, cfg.Socket, "waiting", func(s *Status) bool { return strings.Contains(s.Summary, "no join bundle at") })
	if !strings.Contains(st.Summary, "broker token create") {
		t.Errorf("summary %q does not say what to do", st.Summary)
	}
}

func TestPortInUse(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	l, err := net.Listen("tcp", cfg.APIAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := mustNew(t, cfg).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "apiAddress") {
		t.Errorf("err %v", err)
	}
	if enrols, _, _ := s.broker.Counts(); enrols != 0 {
		t.Error("a token was spent by an agent that can't start")
	}
}

func TestDialCodes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	open := netip.MustParseAddrPort(l.Addr().String())
	closed := netip.AddrPortFrom(open.Addr(), uint16(freePort(t)))
	defer l.Close()
	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	canceled, cancelNow := context.WithCancel(t.Context())
	cancelNow()
	for name, c := range map[string]struct {
		ctx    context.Context
		kind   wire.Kind
		target string
		to     netip.AddrPort
		want   wire.Code
	}{
		"open":         {t.Context(), wire.KindDial, "edge-1:10250", open, wire.OK},
		"closed":       {t.Context(), wire.KindDial, "edge-1:10250", closed, wire.DialRefused},
		"too slow":     {expired, wire.KindDial, "edge-1:10250", open, wire.DialTimeout},
		"given up":     {canceled, wire.KindDial, "edge-1:10250", open, wire.Canceled},
		"denied":       {t.Context(), wire.KindDial, "edge-2:10250", open, wire.Denied},
		"another kind": {t.Context(), wire.KindAPI, "edge-1:10250", open, wire.BadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			d := &kubeletDialer{policy: func() policy { p := testPolicy(); p.kubelet = func() netip.AddrPort { return c.to }; return p }}
			conn, code, err := d.dial(c.ctx, c.kind, c.target)
			if code != c.want || (err == nil) != (c.want == wire.OK) {
				t.Errorf("%s, %v, want %s", code, err, c.want)
			}
			if conn != nil {
				conn.Close()
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	parse := func(in ...string) (out []netip.Addr) {
		for _, s := range in {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	got := nodeAddresses(t.Context(), parse("192.168.1.10", "127.0.0.1", "::ffff:192.168.1.10", "169.254.1.1", "fe80::1", "2001:db8::1", "0.0.0.0", "224.0.0.1"), "x:1")
	if want := parse("192.168.1.10", "2001:db8::1"); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("configured: %v, want %v", got, want)
	}
	// A broker on this machine is reached from loopback, which is nobody's address.
	for _, a := range nodeAddresses(t.Context(), nil, "127.0.0.1:1") {
		if !attestable(a) {
			t.Errorf("detected: %s", a)
		}
	}
	if a, ok := routeSource(t.Context(), "127.0.0.1:1"); ok {
		t.Errorf("route to loopback: %s", a)
	}
}

func TestGenerationNeverGoesBack(t *testing.T) {
	dir := t.TempDir()
	g := newGeneration(dir, slog.New(slog.DiscardHandler))
	for want := uint64(1); want <= 3; want++ {
		if got := g.next(); got != want {
			t.Errorf("%d, want %d", got, want)
		}
	}
	if got := newGeneration(dir, slog.New(slog.DiscardHandler)).next(); got != 4 {
		t.Errorf("after a restart: %d, want 4", got)
	}
	// Torn while running: the count in memory goes on.
	if err := os.WriteFile(g.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := g.next(); got != 4 {
		t.Errorf("after the file was torn: %d, want 4", got)
	}
}

func TestLeftoverSocketIsReplacedALivingOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "a.sock")
	first, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another edge-agent") {
		t.Errorf("beside a living one: %v", err)
	}
	first.(unixListener).Listener.Close() // as a killed process would: the file stays
	second, err := listenUnix(path)
	if err != nil {
		t.Fatalf("after a killed one: %v", err)
	}
	second.Close()
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
