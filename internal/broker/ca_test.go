package broker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

func (r *running) step(t *testing.T, step string, force bool) admin.CAStatus {
	t.Helper()
	s, err := r.client.StepCA(t.Context(), step, admin.CAStepRequest{Force: force})
	if err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	return s
}

// awaitCA returns when no connected node is waited for.
func (r *running) awaitCA(t *testing.T) admin.CAStatus {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		s, err := r.client.CA(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(s.WaitingFor) == 0 {
			return s
		}
		select {
		case <-r.logs.written: // what nodes say is logged
		case <-deadline:
			t.Fatalf("still waiting: %+v", s)
		}
	}
}

// TestRotateCA: through a whole rotation streams go on, and who was off, or knows the old CA alone, is served after it.
func TestRotateCA(t *testing.T) {
	dir := t.TempDir()
	r := startBroker(t, dir)
	r.addTenant(t, "acme")
	oldBundle := r.bundle(t, "acme", 10)
	off := newBox(t, oldBundle, "off")
	egress := r.issueEgress(t, "acme")
	oldFile := egress.CA
	oldHash := oldBundle.CACertHashes[0]

	var pipes []*pipe
	var sessions []*tunnel.Session
	for name, tr := range map[string]tunnel.Transport{"edge-1": tunnel.TransportQUIC, "edge-2": tunnel.TransportTCP} {
		sessions = append(sessions, newBox(t, oldBundle, name).live(t, tr, r.cfg.Front.Listen))
		r.logs.await(t, `msg="node connected" tenant=acme node=`+name)
		p, err := openPipe(t, egress, oldFile, name+":10250")
		if err != nil {
			t.Fatal(err)
		}
		pipes = append(pipes, p)
	}
	alive := func(what string) {
		t.Helper()
		for _, p := range pipes {
			p.carries(t, what)
		}
		for _, s := range sessions {
			if s.Err() != nil {
				t.Fatalf("%s: a session was cut: %v", what, s.Err())
			}
		}
	}

	added := r.step(t, "add", false)
	newHash := added.CAs[1].Hash
	if s := r.awaitCA(t); s.Trusting != 2 || s.Phase != "add" {
		t.Errorf("after add: %+v", s)
	}
	alive("after add")
	if pins := r.bundle(t, "acme", 1).CACertHashes; !slices.Equal(pins, []string{oldHash, newHash}) {
		t.Errorf("a join bundle during add pins %v", pins)
	}

	r.step(t, "switch", false)
	if s := r.awaitCA(t); s.Renewed != 2 || s.Behind != 1 || s.CAs[0].Hash != newHash || s.Enrolled != 3 {
		t.Errorf("after switch: %+v", s)
	}
	alive("after switch")

	if _, err := r.client.StepCA(t.Context(), "retire", admin.CAStepRequest{}); err == nil || !strings.Contains(err.Error(), "acme") || !strings.Contains(err.Error(), "egress issue") {
		t.Errorf("retire while an API server holds an old certificate: %v", err)
	}
	fresh := r.issueEgress(t, "acme")
	r.step(t, "retire", false)
	alive("after retire")
	if _, err := openPipe(t, egress, oldFile, "edge-1:10250"); err == nil {
		t.Error("an egress certificate of the retired CA was accepted")
	}
	if p, err := openPipe(t, fresh, oldFile, "edge-1:10250"); err != nil {
		t.Errorf("an API server with the old CA file: %v", err)
	} else {
		p.carries(t, "a new stream")
	}
	if pins := r.bundle(t, "acme", 1).CACertHashes; !slices.Equal(pins, []string{newHash}) {
		t.Errorf("a join bundle afterwards pins %v", pins)
	}

	backAfterRotation(t, r, off, newHash)
	newBox(t, oldBundle, "late") // an old join bundle

	r.stop()
	noOldKey(t, r.cfg.DataDir)
	r = startBroker(t, dir)
	if s, err := r.client.CA(t.Context()); err != nil || s.Phase != "settled" || s.CAs[0].Hash != newHash {
		t.Errorf("after a restart: %+v, %v", s, err)
	}
	audit := readFile(t, r.cfg.DataDir+"/audit.log")
	for _, want := range []string{`"action":"add"`, `"action":"switch"`, `"action":"retire"`, newHash} {
		if !strings.Contains(audit, want) {
			t.Errorf("the audit log lacks %s", want)
		}
	}
}

// backAfterRotation is a node that was off through it all.
func backAfterRotation(t *testing.T, r *running, off *box, newHash string) {
	t.Helper()
	for _, tr := range []tunnel.Transport{tunnel.TransportQUIC, tunnel.TransportTCP} {
		if _, err := off.connect(t, tr, r.cfg.Front.Listen); !tunnel.CertificateRefused(err) {
			t.Errorf("%s: a certificate of the retired CA: %v; want it refused as such", tr, err)
		}
	}
	if err := off.renew(); err != nil {
		t.Fatal(err)
	}
	if _, issuer := off.trusts(); issuer != newHash {
		t.Errorf("renewed by %q", issuer)
	}
	off.live(t, tunnel.TransportQUIC, r.cfg.Front.Listen)
	r.logs.await(t, `msg="node connected" tenant=acme node=off`)
}

func noOldKey(t *testing.T, dir string) {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	it, err := st.Get(t.Context(), caKey)
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(it.Value, []byte("BEGIN PRIVATE KEY")); n != 1 {
		t.Errorf("the CA's record holds %d keys, want the issuer's alone", n)
	}
}

// A connected node that does not say what it holds is waited for, unless the operator says otherwise.
func TestRotateWaitsForSilentNodes(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	s, err := b.connect(t, tunnel.TransportTCP, r.cfg.Front.Listen)
	if err != nil {
		t.Fatal(err)
	}
	r.logs.await(t, `msg="node connected"`)
	if _, err := r.client.StepCA(t.Context(), "switch", admin.CAStepRequest{}); err == nil || !strings.Contains(err.Error(), "next step") {
		t.Errorf("switch before add: %v", err)
	}
	r.step(t, "add", false)
	for _, step := range []string{"switch", "retire"} {
		_, err := r.client.StepCA(t.Context(), step, admin.CAStepRequest{})
		if e, ok := errors.AsType[*admin.Error](err); !ok || e.Status != http.StatusConflict {
			t.Errorf("%s: %v, want a conflict", step, err)
		}
	}
	if st, err := r.client.CA(t.Context()); err != nil || !slices.Equal(st.WaitingFor, []string{"acme/edge-1"}) {
		t.Errorf("status %+v, %v", st, err)
	}
	r.step(t, "switch", true)
	if _, err := r.client.StepCA(t.Context(), "retire", admin.CAStepRequest{}); err == nil || !strings.Contains(err.Error(), "acme/edge-1") {
		t.Errorf("retire: %v", err)
	}
	r.step(t, "retire", true)
	if s.Err() != nil {
		t.Errorf("the session was cut: %v", s.Err())
	}
	if err := b.renew(); err != nil {
		t.Errorf("renewal by who knows the old CA alone: %v", err)
	}
}

// Several brokers over one store: what one changes the other has at once, and of two changes at once one is told.
func TestAuthorityFollowsTheStore(t *testing.T) {
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	log := slog.New(slog.DiscardHandler)
	open := func() *authority {
		a, err := openAuthority(t.Context(), st, "mooring.test", log)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a, b := open(), open()
	if a.Keyring().Hash() != b.Keyring().Hash() {
		t.Fatal("two brokers made two CAs")
	}
	changed := make(chan struct{}, 8)
	b.changed = func() { changed <- struct{}{} }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.watch(ctx) }()
	cfg := config.DefaultBroker()
	cfg.Front.PublicEndpoint = "edge.example:443"
	cert := newServerCert(b.Keyring, cfg)
	first, err := cert.get()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func(*pki.Keyring) (*pki.Keyring, error){
		func(k *pki.Keyring) (*pki.Keyring, error) { return k.Add(time.Now()) }, (*pki.Keyring).Switch,
	} {
		ring, err := a.Change(t.Context(), step)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatal("the other broker never heard of it")
		}
		if b.Keyring().Hash() != ring.Hash() || b.Keyring().Phase() != ring.Phase() || a.Keyring().Phase() != ring.Phase() {
			t.Errorf("the other broker has %s in phase %s", b.Keyring().Hash(), b.Keyring().Phase())
		}
	}
	if second, err := cert.get(); err != nil || second == first || len(second.Certificate) != 4 {
		t.Errorf("the serving certificate was not issued anew: %v", err)
	}
	_, err = a.Change(t.Context(), func(k *pki.Keyring) (*pki.Keyring, error) {
		if _, err := b.Change(t.Context(), (*pki.Keyring).Retire); err != nil {
			t.Error(err)
		}
		return k.Retire()
	})
	if !errors.Is(err, admin.ErrConflict) {
		t.Errorf("two changes at once: %v, want ErrConflict", err)
	}
	before := b.Keyring()
	if err := st.Commit(t.Context(), store.Put(caKey, []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	if item, err := st.Get(t.Context(), caKey); err != nil || b.take(item) == nil || b.Keyring() != before {
		t.Error("a record that can't be used was taken")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A node that missed as many rotations as links lead back, and one more. The longest chain goes over QUIC as well.
func TestOffForManyRotations(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	off, too := newBox(t, r.bundle(t, "acme", 1), "off"), newBox(t, r.bundle(t, "acme", 1), "too-long")
	rotate := func() {
		for _, step := range []string{"add", "switch", "retire"} {
			r.step(t, step, false)
		}
	}
	for range pki.MaxPast {
		rotate()
	}
	for _, tr := range []tunnel.Transport{tunnel.TransportQUIC, tunnel.TransportTCP} {
		if _, err := off.connect(t, tr, r.cfg.Front.Listen); !tunnel.CertificateRefused(err) {
			t.Errorf("%s: %v; want the broker verified, and the certificate refused", tr, err)
		}
	}
	if err := off.renew(); err != nil {
		t.Fatal(err)
	}
	off.live(t, tunnel.TransportQUIC, r.cfg.Front.Listen)
	r.logs.await(t, `msg="node connected" tenant=acme node=off`)
	added := r.step(t, "add", false)
	if len(added.CAs) != 2+pki.MaxPast {
		t.Errorf("%d CAs are known", len(added.CAs))
	}
	r.awaitCA(t)
	r.step(t, "switch", false)
	if err := too.renew(); err == nil || !strings.Contains(err.Error(), "new join bundle") {
		t.Errorf("one rotation too many: %v; want what to do", err)
	}
}
