package join

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/join/jointest"
)

// TestMain runs this binary as a box to be killed where a test starts it as one.
func TestMain(m *testing.M) {
	if data := os.Getenv(childEnv); data != "" {
		box(data)
	}
	goleak.VerifyTestMain(m)
}

// site is a box with a broker and a control plane to join.
type site struct {
	t      *testing.T
	api    *jointest.API
	broker *jointest.Broker
	cfg    Config

	mu       sync.Mutex // guards progress
	progress []Progress
}

func newSite(t *testing.T) *site {
	s := &site{t: t, api: jointest.NewAPI(t)}
	s.broker = jointest.NewBroker(t, s.api)
	s.cfg = Config{
		StateDir: filepath.Join(t.TempDir(), "state"),
		Bundle: func() (Bundle, error) {
			return Bundle{Endpoint: s.broker.Endpoint, Tenant: jointest.Tenant, Token: s.broker.Token.String(), CACertHashes: []string{s.broker.CA.Hash()}}, nil
		},
		Hostname: "edge-1", Version: "v0", APIAddress: s.api.Address,
		Kubelet:      Kubelet{RootDir: filepath.Join(t.TempDir(), "kubelet"), Port: 10250},
		RefusedRetry: 10 * time.Millisecond, IssuerSpread: 10 * time.Millisecond, BackoffMin: time.Millisecond, BackoffMax: 10 * time.Millisecond,
		RequestTimeout: 30 * time.Second, IssueTimeout: 30 * time.Second,
		Report: func(p Progress) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.progress = append(s.progress, p)
		},
	}
	return s
}

// errs are the failures reported so far.
func (s *site) errs() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, p := range s.progress {
		if p.Err != nil {
			out = append(out, p.Err.Error())
		}
	}
	return strings.Join(out, "\n")
}

// all takes a box the whole way, as a freshly started process would.
func (s *site) all(cfg Config) (*Identity, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 60*time.Second)
	defer cancel()
	j := New(cfg)
	id, err := j.Enrol(ctx)
	if err != nil {
		return nil, err
	}
	rec, err := j.Bootstrap(ctx, id)
	if err != nil {
		return nil, err
	}
	r, err := j.Render(rec)
	if err != nil {
		return nil, err
	}
	_, err = r.Write()
	return id, err
}

func (s *site) mustAll() *Identity {
	s.t.Helper()
	id, err := s.all(s.cfg)
	if err != nil {
		s.t.Fatalf("join: %v\nreported:\n%s", err, s.errs())
	}
	return id
}

// key is the hash of the node's key on disk.
func (s *site) key() string {
	s.t.Helper()
	key, err := readKey(New(s.cfg).keyFile())
	if err != nil {
		s.t.Fatal(err)
	}
	return pki.SPKIHash(&key.PublicKey)
}

func TestJoin(t *testing.T) {
	s := newSite(t)
	id := s.mustAll()
	if id.Node != jointest.Node || id.Tenant != jointest.Tenant || id.Endpoint != s.broker.Endpoint {
		t.Errorf("identity: %+v", id)
	}
	j := New(s.cfg)
	rec, err := j.Ready(id)
	if err != nil {
		t.Fatalf("not ready after the join: %v", err)
	}
	if rec.Labels["site"] != "shop-7" {
		t.Errorf("labels: %v", rec.Labels)
	}
	for _, secret := range []string{s.broker.Token.Secret, ".0123456789abcdef"} {
		for _, f := range []string{j.identityFile(), j.recordFile()} {
			if data, _ := os.ReadFile(f); strings.Contains(string(data), secret) {
				t.Errorf("%s holds the secret %q", f, secret)
			}
		}
	}
	for _, f := range []string{j.keyFile(), j.identityFile(), j.recordFile()} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 0600", f, info, err)
		}
	}

	// A second start asks nobody for anything.
	s.mustAll()
	if enrols, joins, _ := s.broker.Counts(); enrols != 1 || joins != 1 {
		t.Errorf("the broker was asked for %d enrolments and %d joins, want 1 and 1", enrols, joins)
	}
}

var milestones = []milestone{
	keyWritten, enrolAnswered, identityWritten, joinAnswered, recordWritten,
	pendingWritten, csrCreated, csrIssued, pairWritten, pendingRemoved,
}

// stopAt has the work end at a milestone, as if killed there.
func stopAt(cfg Config, at milestone) Config {
	cfg.after = func(m milestone) error {
		if m == at {
			return errStopped
		}
		return nil
	}
	return cfg
}

// TestKilledAnywhereGoesOn ends the work at each milestone, on a fresh box each time.
func TestKilledAnywhereGoesOn(t *testing.T) {
	for _, at := range milestones {
		t.Run(strings.ReplaceAll(string(at), " ", "_"), func(t *testing.T) {
			s := newSite(t)
			if _, err := s.all(stopAt(s.cfg, at)); !errors.Is(err, errStopped) {
				t.Fatalf("stopped at %q: %v", at, err)
			}
			s.checkJoined(s.key())
		})
	}
}

// TestKilledEverywhereGoesOn ends the work at each milestone in turn, on one box.
func TestKilledEverywhereGoesOn(t *testing.T) {
	s := newSite(t)
	// With the certificate written, a process that starts has nothing left to do: no milestone follows.
	for _, at := range milestones[:len(milestones)-1] {
		if _, err := s.all(stopAt(s.cfg, at)); !errors.Is(err, errStopped) {
			t.Fatalf("stopped at %q: %v", at, err)
		}
	}
	s.checkJoined(s.key())
}

// checkJoined starts once more and checks that the node is the one that key made, and that no request was
// left lying at the API server.
func (s *site) checkJoined(key string) {
	s.t.Helper()
	id := s.mustAll()
	if id.Fingerprint() != key || s.key() != key {
		s.t.Errorf("the node's key has changed from %s to %s", key, s.key())
	}
	if _, _, owner := s.broker.Counts(); owner != key {
		s.t.Errorf("the broker knows the node by %s, its key is %s", owner, key)
	}
	if n := s.api.Requests(); n != 1 {
		s.t.Errorf("%d certificate requests were made, want 1", n)
	}
	if _, err := New(s.cfg).Ready(id); err != nil {
		s.t.Errorf("not ready: %v", err)
	}
	if _, err := os.Stat(New(s.cfg).pendingFile()); !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("the key of the certificate request is still there (%v)", err)
	}
}

func TestResetLeavesNothingButPodsData(t *testing.T) {
	s := newSite(t)
	s.mustAll()
	volume := filepath.Join(s.cfg.Kubelet.RootDir, "pods", "data")
	if err := os.MkdirAll(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	removed, err := New(s.cfg).Reset()
	if err != nil || len(removed) < 7 {
		t.Errorf("removed %q, %v", removed, err)
	}
	if left, _ := os.ReadDir(s.cfg.StateDir); len(left) != 0 {
		t.Errorf("left in the state directory: %v", left)
	}
	if left, _ := os.ReadDir(filepath.Join(s.cfg.Kubelet.RootDir, "pki")); len(left) != 0 {
		t.Errorf("left of the kubelet's credentials: %v", left)
	}
	if _, err := os.Stat(volume); err != nil {
		t.Errorf("a pod's data is gone: %v", err)
	}
	if removed, err := New(s.cfg).Reset(); err != nil || len(removed) != 0 {
		t.Errorf("a second reset removed %q, %v", removed, err)
	}
}
