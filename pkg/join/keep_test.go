package join

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

// keeping runs KeepCertificate; each new identity is sent.
func (s *site) keeping(nudges chan Nudge) (renewed chan *Identity) {
	ctx, cancel := context.WithCancel(context.Background())
	renewed = make(chan *Identity, 100)
	done := make(chan error, 1)
	go func() { done <- New(s.cfg).KeepCertificate(ctx, nudges, func(id *Identity) { renewed <- id }) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			s.t.Errorf("KeepCertificate: %v", err)
		}
	})
	return renewed
}

func (s *site) next(renewed chan *Identity) *Identity {
	s.t.Helper()
	select {
	case id := <-renewed:
		return id
	case <-time.After(time.Minute):
		s.t.Fatalf("no renewal within a minute; reported:\n%s", s.errs())
		return nil
	}
}

func TestCertificateIsKept(t *testing.T) {
	s := newSite(t)
	s.broker.TTL = 3 * time.Second // due after two or so
	first := s.mustAll()
	s.broker.FailNext(fails(enrollapi.CodeUnavailable))
	renewed := s.keeping(make(chan Nudge))
	second := s.next(renewed)
	third := s.next(renewed)
	if !second.NotAfter().After(first.NotAfter()) || !third.NotAfter().After(second.NotAfter()) {
		t.Errorf("good until %s, then %s, then %s", first.NotAfter(), second.NotAfter(), third.NotAfter())
	}
}

func TestNudges(t *testing.T) {
	s := newSite(t)
	s.mustAll()
	nudges := make(chan Nudge, 1)
	renewed := s.keeping(nudges)
	for _, n := range []Nudge{NudgeRefused, NudgeIssuer, NudgeRefused} {
		nudges <- n
		s.next(renewed)
	}
	if got := s.broker.Renews(); got != 3 {
		t.Errorf("%d renewals, want 3", got)
	}
}

func TestSaveBundle(t *testing.T) {
	s := newSite(t)
	id := s.mustAll()
	j := New(s.cfg)
	next := newCA(t, "mooring.test")
	both := string(s.broker.CA.CertPEM()) + string(next.CertPEM())
	saved, err := j.SaveBundle(both)
	if err != nil {
		t.Fatal(err)
	}
	if got := saved.Trusts(); len(got) != 2 || got[0] != s.broker.CA.Hash() || got[1] != next.Hash() || saved.Issuer() != s.broker.CA.Hash() {
		t.Errorf("trusts %v, issued by %s", got, saved.Issuer())
	}
	// The other CA alone, while the certificate is still the old one's: it is of use all the same.
	if saved, err = j.SaveBundle(string(next.CertPEM())); err != nil || saved.Issuer() != "" {
		t.Errorf("the new CA alone: %v", err)
	}
	if again, err := New(s.cfg).LoadIdentity(); err != nil || again.CABundle != string(next.CertPEM()) || again.Certificate != id.Certificate {
		t.Errorf("on disk: %v", err)
	}
	// And the broker, which is the old CA's, is not believed any more.
	if _, err := New(s.cfg).Renew(t.Context()); err == nil {
		t.Error("a broker of a CA that is gone was believed")
	}
	if _, err := j.SaveBundle(both); err != nil {
		t.Fatal(err)
	}
	leaf := certificate(t, next, time.Hour).Certificate
	for name, bad := range map[string]string{
		"nothing":           "",
		"garbage":           "hello",
		"another domain's":  string(newCA(t, "elsewhere.test").CertPEM()),
		"one good, one not": both + string(newCA(t, "elsewhere.test").CertPEM()),
		"no CA":             leaf,
		"a CA and a leaf":   both + leaf,
		"too many":          strings.Repeat(both, 5),
		"too long":          both + strings.Repeat("#", maxBundle),
	} {
		if _, err := j.SaveBundle(bad); !errors.Is(err, errBundle) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if now, err := New(s.cfg).LoadIdentity(); err != nil || now.CABundle != both {
		t.Errorf("a bad bundle was kept: %v", err)
	}
}

// FuzzBundle: what is taken are CAs of the domain, and few.
func FuzzBundle(f *testing.F) {
	ca, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(ca.CertPEM()))
	f.Add(strings.Repeat(string(ca.CertPEM()), 3) + "x")
	f.Fuzz(func(t *testing.T, bundle string) {
		cas, err := parseBundle(bundle, "mooring.test")
		if err != nil {
			return
		}
		if len(cas) == 0 || len(cas) > maxBundleCAs {
			t.Fatalf("%d CAs taken", len(cas))
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(bundle)) {
			t.Fatal("taken, and yet of no use")
		}
	})
}
