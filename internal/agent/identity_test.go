package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/join/jointest"
	"github.com/mooring-edge/mooring/pkg/join/kubelet"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// age makes a box's files those of one that was off for long: both its certificates have expired.
func (s *shore) age(cfg *config.Agent) {
	s.t.Helper()
	s.ageNode(cfg)
	s.ageKubelet(cfg)
}

func (s *shore) ageNode(cfg *config.Agent) {
	s.t.Helper()
	key := s.read(cfg, "node.key")
	private, err := pki.ParseKeyPEM(key)
	if err != nil {
		s.t.Fatal(err)
	}
	csrPEM, err := pki.MakeCSR(private, jointest.Node)
	if err != nil {
		s.t.Fatal(err)
	}
	csr, err := pki.ParseCSR(csrPEM, 1<<16)
	if err != nil {
		s.t.Fatal(err)
	}
	who := pki.Identity{TrustDomain: s.broker.CA.TrustDomain(), Role: pki.RoleNode, Tenant: jointest.Tenant, Name: jointest.Node}
	old, err := s.broker.CA.IssueNode(csr, who, time.Now().Add(-4*time.Minute), time.Minute)
	if err != nil {
		s.t.Fatal(err)
	}
	var id map[string]any
	if err := json.Unmarshal(s.read(cfg, "identity.json"), &id); err != nil {
		s.t.Fatal(err)
	}
	id["certificate"] = string(old)
	data, err := json.Marshal(id)
	if err == nil {
		err = os.WriteFile(filepath.Join(cfg.StateDir, "identity.json"), data, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *shore) ageKubelet(cfg *config.Agent) {
	s.t.Helper()
	cert, key := s.api.KubeletPair(s.t, jointest.Node, time.Now().Add(-time.Hour))
	if err := kubelet.PathsIn(cfg.StateDir, cfg.Kubelet.RootDir).SavePair(cert, key, time.Now().Add(-2*time.Hour)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shore) read(cfg *config.Agent, name string) []byte {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(cfg.StateDir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

// TestBackAfterYears: a box that was off until both its certificates had run out comes back with nobody there,
// and without its join bundle. Its kubelet is not started while it could only end again.
func TestBackAfterYears(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	_, stop := run(t, cfg)
	until(t, cfg.Socket, "ready", isReady)
	s.session()
	stop()
	if _, err := mustNew(t, cfg).stopKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.age(cfg)
	if err := os.Remove(cfg.JoinFile); err != nil {
		t.Fatal(err)
	}
	s.api.RejectNext(1 << 30)

	run(t, cfg)
	st := until(t, cfg.Socket, "connected, with its kubelet waiting", func(s *Status) bool {
		return s.Tunnel.Connected && strings.Contains(s.Kubelet.Message, "not started: the kubelet's client certificate expired")
	})
	if st.Kubelet.Running || condition(st, condCertificate).Status != health.True || condition(st, condBootstrap).Status != health.False {
		t.Errorf("status %+v", st)
	}
	s.api.RejectNext(0)
	until(t, cfg.Socket, "ready", isReady)
	if enrols, _, _ := s.broker.Counts(); enrols != 1 || s.broker.Renews() != 1 {
		t.Errorf("%d enrolments and %d renewals, want one each", enrols, s.broker.Renews())
	}
}

// TestKubeletEndsOverItsCertificate: it gets a new one before it is started again.
func TestKubeletEndsOverItsCertificate(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	run(t, cfg)
	first := until(t, cfg.Socket, "ready", isReady)
	s.ageKubelet(cfg)
	if err := syscall.Kill(first.Kubelet.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := until(t, cfg.Socket, "ready again", func(s *Status) bool { return s.Ready && s.Kubelet.Running && s.Kubelet.PID != first.Kubelet.PID })
	if s.api.Requests() != 2 || !second.Kubelet.Running {
		t.Errorf("%d certificate requests, want 2; status %+v", s.api.Requests(), second)
	}
}

// TestCertificateRefusedByTheBroker: a running node whose certificate is not taken gets another at once.
func TestCertificateRefusedByTheBroker(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	run(t, cfg)
	until(t, cfg.Socket, "ready", isReady)
	s.ageNode(cfg)
	_ = s.session().Close(wire.Shutdown, "")
	s.session()
	until(t, cfg.Socket, "ready again", isReady)
	if s.broker.Renews() != 1 {
		t.Errorf("%d renewals", s.broker.Renews())
	}
}

func (s *shore) status() wire.Status {
	s.t.Helper()
	select {
	case st := <-s.told:
		return st
	case <-time.After(time.Minute):
		s.t.Fatal("no status within a minute")
		return wire.Status{}
	}
}

// TestBundleIsKept: CAs that the broker sends are kept, answered for, and, where the issuer is another one, are
// followed by a renewal; all over one session.
func TestBundleIsKept(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	runWith(t, cfg, Options{issuerSpread: time.Millisecond})
	until(t, cfg.Socket, "ready", isReady)
	sess := s.session()
	ours := s.broker.CA.Hash()
	next, err := pki.NewCA(s.broker.CA.TrustDomain(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	both := string(s.broker.CA.CertPEM()) + string(next.CertPEM())
	if err := sess.SendBundle(wire.Bundle{CABundle: both, Issuer: ours}); err != nil {
		t.Fatal(err)
	}
	if st := s.status(); !slices.Equal(st.Trusts, []string{ours, next.Hash()}) || st.CertificateIssuer != ours || st.CertificateNotAfter.Before(time.Now()) {
		t.Errorf("status %+v", st)
	}
	// One that is no bundle is not taken; the good one stays, and the session too.
	if err := sess.SendBundle(wire.Bundle{CABundle: "nonsense", Issuer: ours}); err != nil {
		t.Fatal(err)
	}
	s.broker.Tamper(func(r *enrollapi.EnrolResponse) { r.CABundle = both })
	if err := sess.SendBundle(wire.Bundle{CABundle: both, Issuer: next.Hash()}); err != nil {
		t.Fatal(err)
	}
	before := s.status()
	after := s.status()
	if !slices.Equal(before.Trusts, after.Trusts) || !after.CertificateNotAfter.After(before.CertificateNotAfter.Add(-time.Second)) || s.broker.Renews() != 1 {
		t.Errorf("before the renewal %+v, after it %+v, %d renewals", before, after, s.broker.Renews())
	}
	if sess.Err() != nil || !strings.Contains(string(s.read(cfg, "identity.json")), strings.ReplaceAll(string(next.CertPEM())[30:60], "\n", `\n`)) {
		t.Errorf("session %v", sess.Err())
	}
	// A session that the broker has let in ends one instance.
	_ = sess.Close(wire.Shutdown, "")
	if h := s.session().PeerHello(); !slices.Contains(h.Ancestors, sess.PeerHello().Instance) || h.Volatile {
		t.Errorf("hello %+v after %+v", h, sess.PeerHello())
	}
}

func TestTurnedAway(t *testing.T) {
	for code, want := range map[wire.Code]struct{ reason, says string }{
		wire.Quarantined: {"Quarantined", "broker node resolve acme/edge-1 --keep"},
		wire.Revoked:     {"Revoked", "removed, or revoked"},
	} {
		t.Run(want.reason, func(t *testing.T) {
			s := newShore(t)
			cfg := s.node()
			a, _ := run(t, cfg)
			until(t, cfg.Socket, "ready", isReady)
			sess := s.session()
			_ = sess.Close(code, "because")
			st := until(t, cfg.Socket, want.reason, func(s *Status) bool { return condition(s, condTunnel).Reason == want.reason })
			if c := condition(st, condTunnel); !strings.Contains(c.Message, want.says) || !strings.Contains(c.Message, "because") {
				t.Errorf("condition %+v", c)
			}
			if !st.Kubelet.Running {
				t.Error("the kubelet was stopped")
			}
			for range 100 {
				if d := a.pace(sess.Err()); d != 0 {
					t.Errorf("an end of our own waits %s", d)
				}
			}
		})
	}
}

// TestRemovedNodeFindsItsNewToken: a node that was removed is let in again by a new join bundle, put on the box
// before or after.
func TestRemovedNodeFindsItsNewToken(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	run(t, cfg)
	until(t, cfg.Socket, "ready", isReady)
	sess := s.session()
	s.broker.Remove()
	old := s.broker.Token.String()
	data, err := os.ReadFile(cfg.JoinFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.JoinFile, []byte(strings.Replace(string(data), old, s.broker.NewToken().String(), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = sess.Close(wire.Revoked, "removed")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if enrols, _, _ := s.broker.Counts(); enrols == 2 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the new token was not used within a minute")
		}
	}
}

// TestWaitsForApproval: what an operator needs is in the status, the log's condition and on the console.
func TestWaitsForApproval(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	cfg.Node.Console = filepath.Join(t.TempDir(), "console")
	cfg.Node.Serial = "SN-0815"
	if err := os.WriteFile(cfg.Node.Console, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pending := &enrollapi.Error{Code: enrollapi.CodePending, Message: "noted", RetryAfter: 1}
	s.broker.FailNext(pending, pending)
	run(t, cfg)
	st := until(t, cfg.Socket, "waiting", func(s *Status) bool { return condition(s, condEnrolled).Reason == "Pending" })
	if st.Fingerprint == "" || st.Serial != "SN-0815" || st.Identity != nil || !strings.Contains(st.Summary, st.Fingerprint) {
		t.Errorf("status %+v", st)
	}
	until(t, cfg.Socket, "ready", isReady)
	said, err := os.ReadFile(cfg.Node.Console)
	if err != nil || strings.Count(string(said), st.Fingerprint) != 1 || !strings.Contains(string(said), "SN-0815") {
		t.Errorf("the console shows %q, %v; want the fingerprint once", said, err)
	}
	if s.broker.Serial() != "SN-0815" {
		t.Errorf("the broker was told the serial number %q", s.broker.Serial())
	}
}

// TestFault41ClockInTheStatus: a box in 1970 enrols and connects, says what is wrong, and has its kubelet wait
// for the clock to be set, which it does itself if it may.
func TestFault41ClockInTheStatus(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	var ahead atomic.Int64 // of 1970
	begin := time.Now()
	now := func() time.Time { return time.Unix(9, 0).Add(time.Since(begin) + time.Duration(ahead.Load())) }
	setTo := make(chan time.Time, 10)
	set := func(to time.Time) error {
		ahead.Store(int64(to.Sub(now())))
		setTo <- to
		return nil
	}
	_, stop := runWith(t, cfg, Options{now: now, setTime: set})
	st := until(t, cfg.Socket, "waiting for its clock", func(s *Status) bool {
		return s.Tunnel.Connected && condition(s, condClock).Status == health.False && strings.Contains(s.Kubelet.Message, "not started")
	})
	if c := condition(st, condClock); !strings.Contains(c.Message, "this machine's clock says 1970-01-01") || !strings.Contains(c.Message, "the broker says 20") {
		t.Errorf("condition %+v", c)
	}
	if st.Identity == nil || st.Kubelet.Running || len(setTo) != 0 {
		t.Errorf("status %+v, set %d times", st, len(setTo))
	}
	stop()

	cfg.Node.SetClock = true
	runWith(t, cfg, Options{now: now, setTime: set})
	until(t, cfg.Socket, "ready", isReady)
	if d := time.Since(<-setTo); d < -time.Minute || d > 10*time.Minute {
		t.Errorf("the clock was set %s off", d)
	}
	if enrols, joins, _ := s.broker.Counts(); enrols != 1 || joins != 1 {
		t.Errorf("%d enrolments, %d joins, want one each", enrols, joins)
	}
}

func TestSerial(t *testing.T) {
	root := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := machineSerial(root); got != "" {
		t.Errorf("with nothing there: %q", got)
	}
	put(serialFiles[1], "10000000abcdef01\x00")
	for in, want := range map[string]string{
		" 7XK-22 \n": "7XK-22", "To be filled by O.E.M.\n": "10000000abcdef01", "None": "10000000abcdef01", "0": "10000000abcdef01", "0000000000": "10000000abcdef01",
		"": "10000000abcdef01", "a\x01b": "10000000abcdef01", strings.Repeat("x", 129): "10000000abcdef01", strings.Repeat("x", 128) + "\n": strings.Repeat("x", 128),
	} {
		put(serialFiles[0], in)
		if got := machineSerial(root); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// FuzzSerial: whatever firmware says, what is told is short and printable.
func FuzzSerial(f *testing.F) {
	f.Add("To be filled by O.E.M.")
	f.Add("10000000abcdef01\x00")
	f.Fuzz(func(t *testing.T, s string) {
		got := cleanSerial(s)
		if len(got) > enrollapi.MaxSerial || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) || cleanSerial(got) != got {
			t.Fatalf("%q is taken for %q", s, got)
		}
	})
}

func TestConsole(t *testing.T) {
	dir := t.TempDir()
	absent := &console{path: filepath.Join(dir, "absent")}
	absent.say("hello")
	if _, err := os.Stat(absent.path); err == nil {
		t.Error("a file was made where there is no console")
	}
	(&console{}).say("hello")
	path := filepath.Join(dir, "console")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := &console{path: path}
	c.say("one")
	c.say("two")
	if data, err := os.ReadFile(path); err != nil || !strings.Contains(string(data), "one") || strings.Contains(string(data), "two") {
		t.Errorf("%q, %v, want the first only", data, err)
	}
}
