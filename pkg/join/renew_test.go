package join

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

// TestRotatedWhileOff: a box that was off while the broker's CA was replaced, more than once, verifies the broker
// by the links between the CAs and gets a certificate and the CAs of today; and so does one that enrols by a
// bundle that pins the CA of old.
func TestRotatedWhileOff(t *testing.T) {
	for _, rotations := range []int{1, 3} {
		s, first := expired(t)
		bundle := s.cfg.Bundle
		b, _ := bundle()
		s.forget()
		for range rotations {
			s.broker.Rotate(t)
		}
		id, err := s.enrol(s.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := id.Trusts(); len(got) != 1 || got[0] != s.broker.CA.Hash() || id.Issuer() != s.broker.CA.Hash() || id.Fingerprint() != first.Fingerprint() {
			t.Errorf("after %d rotations: trusts %v, issued by %s", rotations, got, id.Issuer())
		}
		if _, err := New(s.cfg).join(t.Context(), id); err != nil {
			t.Errorf("and joins: %v", err)
		}
		// The old bundle, on a box with the same key that has lost its identity.
		if err := os.Remove(New(s.cfg).identityFile()); err != nil {
			t.Fatal(err)
		}
		s.cfg.Bundle = func() (Bundle, error) { return b, nil }
		if id, err = s.enrol(s.cfg); err != nil || id.Issuer() != s.broker.CA.Hash() || b.CACertHashes[0] == s.broker.CA.Hash() {
			t.Errorf("enrolled by a pin of old: %v", err)
		}
	}
}

// forget takes the join bundle away, as on a box that joined from standard input.
func (s *site) forget() {
	s.cfg.Bundle = func() (Bundle, error) { return Bundle{}, errors.New("no join bundle") }
}

func TestRenewNeedsNoBundle(t *testing.T) {
	s := newSite(t)
	first := s.mustAll()
	s.forget()
	reg := prometheus.NewRegistry()
	s.cfg.Metrics = NewMetrics(reg)
	renewed, err := New(s.cfg).Renew(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if renewed.Fingerprint() != first.Fingerprint() || renewed.SPIFFE() != first.SPIFFE() || renewed.leaf.SerialNumber.Cmp(first.leaf.SerialNumber) == 0 {
		t.Errorf("renewed %+v", renewed)
	}
	onDisk, err := New(s.cfg).LoadIdentity()
	if err != nil || onDisk.Certificate != renewed.Certificate || onDisk.TokenID != first.TokenID || onDisk.Endpoint != first.Endpoint {
		t.Errorf("on disk: %+v, %v", onDisk, err)
	}
	if enrols, _, _ := s.broker.Counts(); enrols != 1 || s.broker.Renews() != 1 {
		t.Errorf("%d enrolments, %d renewals", enrols, s.broker.Renews())
	}
	if got := testutil.ToFloat64(s.cfg.Metrics.attempts.WithLabelValues("renew", "ok")); got != 1 {
		t.Errorf("counted %v renewals", got)
	}
}

// expired makes a box whose certificate ran out long ago, and where the broker now gives better ones.
func expired(t *testing.T) (*site, *Identity) {
	s := newSite(t)
	s.broker.Now = func() time.Time { return time.Now().Add(-4 * time.Minute) }
	s.broker.TTL = time.Minute
	id := s.mustAll()
	s.broker.Now, s.broker.TTL = time.Now, time.Hour
	if !id.Expired(time.Now()) {
		t.Fatal("the certificate has not expired: the test proves nothing")
	}
	return s, id
}

func TestExpiredIdentityIsRenewedByItsKey(t *testing.T) {
	s, old := expired(t)
	s.forget()
	s.broker.FailNext(fails(enrollapi.CodeUnavailable), fails(enrollapi.CodeRefused))
	id, err := s.enrol(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if id.Fingerprint() != old.Fingerprint() || id.Expired(time.Now()) {
		t.Errorf("renewed %+v", id)
	}
	if enrols, _, _ := s.broker.Counts(); enrols != 1 || s.broker.Renews() != 3 {
		t.Errorf("%d enrolments, %d renewals, want 1 and 3", enrols, s.broker.Renews())
	}
	if got := s.errs(); !strings.Contains(got, "removed, or revoked?") {
		t.Errorf("reported %q", got)
	}
}

func TestRemovedNode(t *testing.T) {
	s, old := expired(t)
	s.broker.Remove()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := New(s.cfg).Enrol(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err %v", err)
	}
	if enrols, _, _ := s.broker.Counts(); enrols != 1 {
		t.Errorf("%d enrolments: the old token was sent again", enrols)
	}
	if id, err := New(s.cfg).LoadIdentity(); err != nil || id.Certificate != old.Certificate {
		t.Errorf("the identity was given up: %v", err)
	}

	// A new bundle is put on the box: the same key is enrolled again, with no hand on the rest.
	s.broker.NewToken()
	id, err := s.enrol(s.cfg)
	if err != nil || id.Fingerprint() != old.Fingerprint() || id.TokenID == old.TokenID {
		t.Fatalf("enrolled anew: %+v, %v", id, err)
	}
	if enrols, _, _ := s.broker.Counts(); enrols != 2 {
		t.Errorf("%d enrolments, want 2", enrols)
	}
	if _, err := New(s.cfg).Renew(t.Context()); err != nil {
		t.Errorf("and renewed: %v", err)
	}
}

func TestRenewalAsAnother(t *testing.T) {
	s := newSite(t)
	s.mustAll()
	s.broker.Tamper(func(r *enrollapi.EnrolResponse) { r.CABundle = "" })
	if _, err := New(s.cfg).Renew(t.Context()); err == nil {
		t.Error("an answer without CAs was taken")
	}
	if _, err := New(s.cfg).LoadIdentity(); err != nil {
		t.Error(err)
	}
}

// TestRenewalOnADiskThatFails: the certificate serves from memory, and goes to disk when there is room.
func TestRenewalOnADiskThatFails(t *testing.T) {
	s := newSite(t)
	first := s.mustAll()
	var full atomic.Bool
	s.cfg.WriteFile = func(path string, data []byte, perm fs.FileMode) error {
		if full.Load() {
			return &fs.PathError{Op: "write", Path: path, Err: syscall.EIO}
		}
		return durable.WriteFile(path, data, perm)
	}
	full.Store(true)
	j := New(s.cfg)
	renewed, err := j.Renew(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if now, err := j.LoadIdentity(); err != nil || now.Certificate != renewed.Certificate || j.Kept() {
		t.Errorf("in use: %v, kept %t", err, j.Kept())
	}
	if disk, err := New(s.cfg).LoadIdentity(); err != nil || disk.Certificate != first.Certificate {
		t.Errorf("on disk: %v", err)
	}
	full.Store(false)
	j.Flush()
	if disk, err := New(s.cfg).LoadIdentity(); err != nil || disk.Certificate != renewed.Certificate || !j.Kept() {
		t.Errorf("with room again: %v, kept %t", err, j.Kept())
	}
}

func TestPendingIsAskedAgain(t *testing.T) {
	s := newSite(t)
	pending := &enrollapi.Error{Code: enrollapi.CodePending, Message: "approve sha256:..", RetryAfter: 1}
	s.broker.FailNext(pending, &enrollapi.Error{Code: enrollapi.CodePending, Message: "approve"})
	s.cfg.StopOnRefusal = true // waiting is not being refused
	s.cfg.Serial = "SN-1"
	if _, err := s.enrol(s.cfg); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := s.broker.Counts(); n != 3 || s.broker.Serial() != "SN-1" {
		t.Errorf("asked %d times, with serial %q", n, s.broker.Serial())
	}
	var waits []time.Duration
	for _, p := range s.progress {
		if _, ok := Pending(p.Err); ok {
			waits = append(waits, p.RetryIn)
		}
	}
	if len(waits) != 2 || waits[0] < 800*time.Millisecond || waits[0] > 1200*time.Millisecond || waits[1] > 12*time.Millisecond {
		t.Errorf("waited %v", waits)
	}
}

func TestPollPace(t *testing.T) {
	j := New(Config{StateDir: t.TempDir()})
	for after, want := range map[int]time.Duration{0: 30 * time.Second, -5: 30 * time.Second, 1: time.Second, 30: 30 * time.Second, 1 << 40: 10 * time.Minute} {
		if got := j.pollPace(&enrollapi.Error{RetryAfter: after}); got != want {
			t.Errorf("%d: %s, want %s", after, got, want)
		}
	}
}

func TestBundleOfNoTenant(t *testing.T) {
	s := newSite(t)
	bundle := s.cfg.Bundle
	s.cfg.Bundle = func() (Bundle, error) {
		b, err := bundle()
		b.Tenant = ""
		return b, err
	}
	if id := s.mustAll(); id.Tenant != "acme" {
		t.Errorf("tenant %q, want the broker's word", id.Tenant)
	}
}

// certificate makes an identity with a certificate of its own.
func certificate(t *testing.T, ca *pki.CA, ttl time.Duration) *Identity {
	t.Helper()
	_, key, err := pki.MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	return certificateFor(t, ca, key, ttl)
}

func certificateFor(t *testing.T, ca *pki.CA, key *ecdsa.PrivateKey, ttl time.Duration) *Identity {
	t.Helper()
	csrPEM, err := pki.MakeCSR(key, "x")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseCSR(csrPEM, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	who := pki.Identity{TrustDomain: ca.TrustDomain(), Role: pki.RoleNode, Tenant: "acme", Name: "edge-1"}
	chain, err := ca.IssueNode(csr, who, time.Now(), ttl)
	if err != nil {
		t.Fatal(err)
	}
	id := &Identity{Tenant: "acme", Node: "edge-1", TrustDomain: ca.TrustDomain(), Certificate: string(chain), CABundle: string(ca.CertPEM())}
	if err := id.complete(key); err != nil {
		t.Fatal(err)
	}
	return id
}

func newCA(t *testing.T, domain string) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(domain, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// TestRenewAt: each certificate has its own moment, the same at each look, between 2/3 and 23/30 of its life.
func TestRenewAt(t *testing.T) {
	const life = 7 * 24 * time.Hour
	ca := newCA(t, "mooring.test")
	earliest, latest := time.Duration(1<<62), time.Duration(0)
	for range 50 {
		id := certificate(t, ca, life)
		if !id.RenewAt().Equal(id.RenewAt()) {
			t.Fatal("the moment is another at each look")
		}
		age := id.RenewAt().Sub(id.NotAfter().Add(-life))
		earliest, latest = min(earliest, age), max(latest, age)
	}
	if earliest < life*2/3 || latest > life*2/3+life/10 || latest-earliest < life/40 {
		t.Errorf("from %s to %s of a life of %s", earliest, latest, life)
	}
	if id := certificate(t, ca, time.Minute); !id.RenewAt().After(time.Now()) {
		t.Error("a short certificate is due at once")
	}
}

func TestFingerprint(t *testing.T) {
	s := newSite(t)
	if _, err := New(s.cfg).Fingerprint(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a key: %v", err)
	}
	id := s.mustAll()
	if got, err := New(s.cfg).Fingerprint(); err != nil || got != id.Fingerprint() {
		t.Errorf("%s, %v, want %s", got, err, id.Fingerprint())
	}
	if _, err := os.Stat(filepath.Join(s.cfg.StateDir, "clock")); err != nil {
		t.Error(err)
	}
}
