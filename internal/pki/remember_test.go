package pki

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"
)

func TestVerifyRepeatedForgets(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	pool, at := ca.Pool(), now
	var refuse error
	verify := VerifyRepeated(func() *x509.CertPool { return pool }, x509.ExtKeyUsageClientAuth, func() time.Time { return at },
		func(Identity) error { return refuse })
	good := leaf(t, ca, "spiffe://mooring.local/tenant/acme/node/edge-1", nil)
	twin := leaf(t, other, "spiffe://mooring.local/tenant/acme/node/edge-1", nil)
	step := func(name, want string, certs ...*x509.Certificate) {
		t.Helper()
		wantErr(t, name, verify(state(certs...)), want)
	}
	step("first", "", good)
	step("again", "", good)
	step("another's with its name", "unknown authority", twin)
	step("another's with it behind", "unknown authority", twin, good)
	refuse = errors.New("another tenant")
	step("refused by the check", "another tenant", good)
	refuse = nil
	at = now.Add(2 * time.Hour)
	step("expired", "clock", good)
	at = now.Add(-2 * time.Hour)
	step("the clock set back", "clock", good)
	at = now
	step("the clock set right", "", good)
	pool = other.Pool()
	step("the CA is gone", "unknown authority", good)
	step("the other CA", "", twin)
	pool = nil
	step("no CA", "no CA", twin)
}

func TestVerifyRepeatedSkipsSignatures(t *testing.T) {
	ca := newCA(t)
	pool := ca.Pool()
	verify := VerifyRepeated(func() *x509.CertPool { return pool }, x509.ExtKeyUsageClientAuth, clock(now), nil)
	good := leaf(t, ca, "spiffe://mooring.local/tenant/acme/node/edge-1", nil)
	wantErr(t, "first", verify(state(good)), "")
	broken := *good
	broken.Signature = nil // Raw, by which it is known, is as it was
	wantErr(t, "a signature that nobody looks at", verify(state(&broken)), "")
	pool = ca.Pool()
	wantErr(t, "with a pool that is new", verify(state(&broken)), "verify peer")
}

// TestVerifyRepeatedRemembersFew: those who are refused, and those who present more than they need, take no room.
func TestVerifyRepeatedRemembersFew(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	good := leaf(t, ca, "spiffe://mooring.local/tenant/acme/node/edge-1", nil)
	broken := *good
	broken.Signature = nil
	for name, tc := range map[string]struct {
		certs, again []*x509.Certificate
		first        error
	}{
		"refused": {[]*x509.Certificate{good}, []*x509.Certificate{&broken}, errors.New("another tenant")},
		"junk":    {[]*x509.Certificate{good, other.cert}, []*x509.Certificate{&broken, other.cert}, nil},
	} {
		pool, refuse := ca.Pool(), tc.first
		verify := VerifyRepeated(func() *x509.CertPool { return pool }, x509.ExtKeyUsageClientAuth, clock(now), func(Identity) error { return refuse })
		if err := verify(state(tc.certs...)); !errors.Is(err, tc.first) {
			t.Errorf("%s: %v", name, err)
		}
		refuse = nil
		wantErr(t, name+", again with a signature that is looked at", verify(state(tc.again...)), "verify peer")
	}
}

func TestChainsAreBounded(t *testing.T) {
	c := chains{all: map[chainKey]goodChain{}}
	for i := range 2 * maxRemembered {
		c.add(chainKey{byte(i), byte(i >> 8)}, goodChain{})
	}
	if n := len(c.all); n != maxRemembered {
		t.Errorf("%d chains, want %d", n, maxRemembered)
	}
}

func BenchmarkVerify(b *testing.B) {
	ca := newCA(b)
	pool := ca.Pool()
	roots := func() *x509.CertPool { return pool }
	s := state(leaf(b, ca, "spiffe://mooring.local/tenant/acme/node/edge-1", nil))
	b.Run("each time", func(b *testing.B) {
		verify := VerifyPeer(roots, x509.ExtKeyUsageClientAuth, clock(now), nil)
		for b.Loop() {
			if err := verify(s); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("repeated", func(b *testing.B) {
		verify := VerifyRepeated(roots, x509.ExtKeyUsageClientAuth, clock(now), nil)
		for b.Loop() {
			if err := verify(s); err != nil {
				b.Fatal(err)
			}
		}
	})
}
