package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/join/jointest"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

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
	if st.Ready || st.Identity != nil || !strings.Contains(st.Summary, "trying again in ") {
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
