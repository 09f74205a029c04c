package pki

import (
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"
)

func clock(at time.Time) func() time.Time { return func() time.Time { return at } }

func state(certs ...*x509.Certificate) tls.ConnectionState {
	return tls.ConnectionState{PeerCertificates: certs, HandshakeComplete: true}
}

// leaf signs a certificate that the CA's own methods would not make.
func leaf(t testing.TB, ca *CA, uri string, edit func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: "x"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, URIs: []*url.URL{u},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	pub := ecKey(t, elliptic.P256()).Public()
	if edit != nil {
		edit(tmpl)
	}
	if tmpl.PublicKey != nil {
		pub = tmpl.PublicKey
	}
	der, err := sign(tmpl, ca.cert, pub, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func usage(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtKeyUsage = u }
}

func TestVerifyPeer(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	const nodeURI = "spiffe://mooring.local/tenant/acme/node/edge-1"
	good := leaf(t, ca, nodeURI, nil)
	weak := ecKey(t, elliptic.P224()).Public()
	sub := leaf(t, ca, nodeURI, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign })

	for name, tc := range map[string]struct {
		certs []*x509.Certificate
		at    time.Time
		want  string // in the error; "" = accepted
	}{
		"good":                   {[]*x509.Certificate{good}, now, ""},
		"with its CA":            {[]*x509.Certificate{good, ca.cert}, now, ""},
		"none":                   {nil, now, "no certificate"},
		"too many":               {append([]*x509.Certificate{good}, make([]*x509.Certificate, maxChain)...), now, "at most"},
		"another CA's":           {[]*x509.Certificate{leaf(t, other, nodeURI, nil)}, now, "unknown authority"},
		"another CA's, with it":  {[]*x509.Certificate{leaf(t, other, nodeURI, nil), other.cert}, now, "unknown authority"},
		"good behind another's":  {[]*x509.Certificate{leaf(t, other, nodeURI, nil), good, ca.cert}, now, "unknown authority"},
		"expired":                {[]*x509.Certificate{good}, now.Add(2 * time.Hour), "clock"},
		"not yet":                {[]*x509.Certificate{good}, now.Add(-2 * time.Hour), "clock"},
		"server only":            {[]*x509.Certificate{leaf(t, ca, nodeURI, usage(x509.ExtKeyUsageServerAuth))}, now, "usage"},
		"the CA itself":          {[]*x509.Certificate{ca.cert}, now, "verify peer"},
		"a CA":                   {[]*x509.Certificate{sub}, now, "leaf"},
		"weak key":               {[]*x509.Certificate{leaf(t, ca, nodeURI, func(c *x509.Certificate) { c.PublicKey = weak })}, now, "P-224"},
		"foreign trust domain":   {[]*x509.Certificate{leaf(t, ca, "spiffe://evil.example/broker/b", nil)}, now, "not permitted"},
		"sub trust domain":       {[]*x509.Certificate{leaf(t, ca, "spiffe://a.mooring.local/broker/b", nil)}, now, "not of its CA"},
		"no identity":            {[]*x509.Certificate{leaf(t, ca, nodeURI, func(c *x509.Certificate) { c.URIs = nil })}, now, "exactly one"},
		"identity and something": {[]*x509.Certificate{leaf(t, ca, nodeURI+"?x", nil)}, now, "URI"},
		"refused by the check":   {[]*x509.Certificate{leaf(t, ca, "spiffe://mooring.local/tenant/evil/node/edge-1", nil)}, now, "another tenant"},
	} {
		acme := func(id Identity) error {
			if id.Tenant != "acme" {
				return errors.New("another tenant")
			}
			return nil
		}
		wantErr(t, name, VerifyPeer(ca.Pool, x509.ExtKeyUsageClientAuth, clock(tc.at), acme)(state(tc.certs...)), tc.want)
		pool := ca.Pool()
		verify := VerifyRepeated(func() *x509.CertPool { return pool }, x509.ExtKeyUsageClientAuth, clock(tc.at), acme)
		for _, time := range []string{", first", ", again"} {
			wantErr(t, name+time, verify(state(tc.certs...)), tc.want)
		}
	}
}

func wantErr(t *testing.T, name string, err error, want string) {
	t.Helper()
	if want == "" && err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: %v, want an error with %q", name, err, want)
	}
}

func TestVerifyPeerFollowsTheRoots(t *testing.T) {
	old, next := newCA(t), newCA(t)
	pool := old.Pool()
	verify := VerifyPeer(func() *x509.CertPool { return pool }, x509.ExtKeyUsageClientAuth, clock(now), nil)
	cert := leaf(t, next, "spiffe://mooring.local/broker/b", nil)
	wantErr(t, "before", verify(state(cert)), "unknown authority")
	pool = next.Pool()
	wantErr(t, "after", verify(state(cert)), "")
	pool = nil // must not fall back to the system's
	wantErr(t, "none", verify(state(cert)), "no CA")
}

func TestVerifyPinned(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	const uri = "spiffe://mooring.local/broker/b"
	good := leaf(t, ca, uri, nil)
	pin := []string{ca.Hash()}
	for name, tc := range map[string]struct {
		pins  []string
		certs []*x509.Certificate
		at    time.Time
		want  string
	}{
		"good":                      {pin, []*x509.Certificate{good, ca.cert}, now, ""},
		"one of two pins":           {[]string{other.Hash(), ca.Hash()}, []*x509.Certificate{good, ca.cert}, now, ""},
		"nothing presented":         {pin, nil, now, "no certificate"},
		"no CA presented":           {pin, []*x509.Certificate{good}, now, "pinned"},
		"no pin":                    {nil, []*x509.Certificate{good, ca.cert}, now, "pinned"},
		"empty pin":                 {[]string{""}, []*x509.Certificate{good, ca.cert}, now, "pinned"},
		"pin of the leaf":           {[]string{SPKIHash(good.PublicKey)}, []*x509.Certificate{good, ca.cert}, now, "pinned"},
		"another CA":                {pin, []*x509.Certificate{leaf(t, other, uri, nil), other.cert}, now, "pinned"},
		"another's leaf, pinned CA": {pin, []*x509.Certificate{leaf(t, other, uri, nil), ca.cert}, now, "unknown authority"},
		"another's with both CAs":   {pin, []*x509.Certificate{leaf(t, other, uri, nil), other.cert, ca.cert}, now, "unknown authority"},
		"the CA as its own server":  {pin, []*x509.Certificate{ca.cert}, now, "verify peer"},
		"expired":                   {pin, []*x509.Certificate{good, ca.cert}, now.Add(2 * time.Hour), "clock"},
		"client only":               {pin, []*x509.Certificate{leaf(t, ca, uri, usage(x509.ExtKeyUsageClientAuth)), ca.cert}, now, "usage"},
		"a node":                    {pin, []*x509.Certificate{leaf(t, ca, "spiffe://mooring.local/tenant/a/node/b", nil), ca.cert}, now, "not a broker"},
		"an API server":             {pin, []*x509.Certificate{leaf(t, ca, "spiffe://mooring.local/tenant/a/apiserver", nil), ca.cert}, now, "not a broker"},
		"refused by the check":      {pin, []*x509.Certificate{leaf(t, ca, "spiffe://mooring.local/broker/c", nil), ca.cert}, now, "another broker"},
	} {
		verify := VerifyPinned(tc.pins, clock(tc.at), func(id Identity) error {
			if id.Name != "b" {
				return errors.New("another broker")
			}
			return nil
		})
		wantErr(t, name, verify(state(tc.certs...)), tc.want)
	}
}

func TestPeerIdentity(t *testing.T) {
	ca := newCA(t)
	cert := leaf(t, ca, "spiffe://mooring.local/broker/b", nil)
	if id, err := PeerIdentity(state(cert)); err != nil || id != (Identity{td, RoleBroker, "", "b"}) {
		t.Errorf("%+v, %v", id, err)
	}
	if _, err := PeerIdentity(state()); !errors.Is(err, ErrIdentity) {
		t.Errorf("no certificate: %v", err)
	}
	if _, err := PeerIdentity(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}); err == nil {
		t.Error("before the handshake's end: want an error")
	}
}
