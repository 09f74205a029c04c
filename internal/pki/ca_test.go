package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const week = 7 * 24 * time.Hour

func newCA(t testing.TB) *CA {
	t.Helper()
	ca, err := NewCA(td, now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func node(tenant, name string) Identity { return Identity{td, RoleNode, tenant, name} }

func parseCert(t testing.TB, data []byte) *x509.Certificate {
	t.Helper()
	block, err := onePEM(data, pemCert)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCA(t *testing.T) {
	ca := newCA(t)
	cert := parseCert(t, ca.CertPEM())
	if !cert.IsCA || cert.MaxPathLenZero || cert.MaxPathLen > 0 || !cert.NotBefore.Equal(now.Add(-5*time.Minute)) || !cert.NotAfter.Equal(now.Add(3650*24*time.Hour)) {
		t.Errorf("CA %v, path length %v, valid %v to %v", cert.IsCA, cert.MaxPathLen, cert.NotBefore, cert.NotAfter)
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		t.Errorf("key is %T, want P-256", cert.PublicKey)
	}
	if got, want := ca.Hash(), SPKIHash(cert.PublicKey); got != want || ValidHash(got) != nil {
		t.Errorf("Hash = %s, want %s", got, want)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadCA(ca.CertPEM(), key)
	if err != nil {
		t.Fatal(err)
	}
	if again.Hash() != ca.Hash() || again.TrustDomain() != td || !again.NotAfter().Equal(cert.NotAfter) {
		t.Errorf("loaded: %s of %s", again.Hash(), again.TrustDomain())
	}
	if !again.Pool().Equal(ca.Pool()) {
		t.Error("the loaded CA has another pool")
	}
}

func TestNewCARefusesTrustDomains(t *testing.T) {
	for _, name := range []string{"", "UPPER", "10.0.0.1", "a/b", "a:1", "a..b", strings.Repeat("a", 64)} {
		if _, err := NewCA(name, now); !errors.Is(err, ErrIdentity) {
			t.Errorf("NewCA(%q) = %v, want ErrIdentity", name, err)
		}
	}
}

func TestLoadCARefuses(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	leaf, leafKey, err := ca.IssueAPIServer("acme", now, week)
	if err != nil {
		t.Fatal(err)
	}
	foreign := func(edit func(*x509.Certificate)) []byte {
		tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "x"}, NotBefore: now, NotAfter: now.Add(week), IsCA: true,
			BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: scheme, Host: td}}}
		edit(tmpl)
		der, err := sign(tmpl, tmpl, ca.key.Public(), ca.key)
		if err != nil {
			t.Fatal(err)
		}
		return certPEM(der)
	}
	if _, err := LoadCA(foreign(func(*x509.Certificate) {}), key); err != nil {
		t.Errorf("the case that the others are edits of: %v", err)
	}
	for name, tc := range map[string]struct{ cert, key []byte }{
		"no certificate":    {nil, key},
		"no key":            {ca.CertPEM(), nil},
		"cut short":         {ca.CertPEM()[:100], key},
		"swapped":           {key, ca.CertPEM()},
		"another's key":     {other.CertPEM(), key},
		"a leaf":            {leaf, leafKey},
		"no DER":            {pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: []byte("x")}), key},
		"no trust domain":   {foreign(func(c *x509.Certificate) { c.URIs = nil }), key},
		"path in the URI":   {foreign(func(c *x509.Certificate) { c.URIs[0].Path = "/x" }), key},
		"port in the URI":   {foreign(func(c *x509.Certificate) { c.URIs[0].Host = td + ":1" }), key},
		"another scheme":    {foreign(func(c *x509.Certificate) { c.URIs[0].Scheme = "https" }), key},
		"bad trust domain":  {foreign(func(c *x509.Certificate) { c.URIs[0].Host = "UPPER" }), key},
		"may sign no other": {foreign(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), key},
	} {
		if _, err := LoadCA(tc.cert, tc.key); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func TestIssueNodeTakesOnlyTheKey(t *testing.T) {
	ca, key := newCA(t), ecKey(t, elliptic.P256())
	data, err := ca.IssueNode(request(t, key), node("acme", "edge-1"), now, week)
	if err != nil {
		t.Fatal(err)
	}
	cert := parseCert(t, data)
	wantLeaf(t, ca, cert, node("acme", "edge-1"), x509.ExtKeyUsageClientAuth)
	if !key.PublicKey.Equal(cert.PublicKey) {
		t.Error("the certificate is for another key")
	}
	if len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) > 0 {
		t.Errorf("names of the request got in: %v %v", cert.DNSNames, cert.IPAddresses)
	}
	if s := cert.Subject.String(); strings.Contains(s, "system:") {
		t.Errorf("the subject of the request got in: %s", s)
	}
}

func TestIssueAPIServer(t *testing.T) {
	ca := newCA(t)
	data, keyData, err := ca.IssueAPIServer("acme", now, week)
	if err != nil {
		t.Fatal(err)
	}
	cert := parseCert(t, data)
	wantLeaf(t, ca, cert, Identity{td, RoleAPIServer, "acme", ""}, x509.ExtKeyUsageClientAuth)
	key, err := ParseKeyPEM(keyData)
	if err != nil || !key.PublicKey.Equal(cert.PublicKey) {
		t.Errorf("the key does not fit: %v", err)
	}
}

func TestIssueBroker(t *testing.T) {
	ca := newCA(t)
	pair, err := ca.IssueBroker("b0", []string{"edge.example"}, []net.IP{net.IPv4(127, 0, 0, 1)}, now, week)
	if err != nil {
		t.Fatal(err)
	}
	wantLeaf(t, ca, pair.Leaf, Identity{td, RoleBroker, "", "b0"}, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	for _, host := range []string{"edge.example", "127.0.0.1"} {
		if err := pair.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if len(pair.Certificate) != 2 || !bytes.Equal(pair.Certificate[0], pair.Leaf.Raw) || !bytes.Equal(pair.Certificate[1], ca.cert.Raw) {
		t.Error("the chain is not the leaf and the CA")
	}
}

func wantLeaf(t *testing.T, ca *CA, cert *x509.Certificate, id Identity, usages ...x509.ExtKeyUsage) {
	t.Helper()
	if got, err := ParseIdentity(cert); err != nil || got != id {
		t.Errorf("identity = %+v, %v, want %+v", got, err, id)
	}
	if !slices.Equal(cert.ExtKeyUsage, usages) || cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.IsCA {
		t.Errorf("usages %v, %v, CA %v", cert.ExtKeyUsage, cert.KeyUsage, cert.IsCA)
	}
	if !cert.NotBefore.Equal(now.Add(-5*time.Minute)) || !cert.NotAfter.Equal(now.Add(week)) {
		t.Errorf("valid %v to %v", cert.NotBefore, cert.NotAfter)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), CurrentTime: now, KeyUsages: usages[:1]}); err != nil {
		t.Error(err)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := newCA(t)
	good := request(t, ecKey(t, elliptic.P256()))
	forged := *good
	forged.PublicKey = ecKey(t, elliptic.P256()).Public()
	ok := node("acme", "edge-1")
	for name, tc := range map[string]struct {
		csr *x509.CertificateRequest
		id  Identity
		now time.Time
		ttl time.Duration
	}{
		"bad tenant":           {good, node("a.b", "edge-1"), now, week},
		"bad node":             {good, node("acme", "Edge"), now, week},
		"no node":              {good, node("acme", ""), now, week},
		"API server's":         {good, Identity{td, RoleAPIServer, "acme", ""}, now, week},
		"broker's":             {good, Identity{td, RoleBroker, "", "b"}, now, week},
		"another trust domain": {good, Identity{"evil.example", RoleNode, "acme", "edge-1"}, now, week},
		"weak key":             {request(t, ecKey(t, elliptic.P224())), ok, now, week},
		"another's key":        {&forged, ok, now, week},
		"empty request":        {&x509.CertificateRequest{}, ok, now, week},
		"no lifetime":          {good, ok, now, 0},
		"before the CA":        {good, ok, now.Add(-time.Hour), week},
		"after the CA":         {good, ok, now.Add(caLifetime), week},
	} {
		if _, err := ca.IssueNode(tc.csr, tc.id, tc.now, tc.ttl); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	if _, err := ca.IssueNode(good, ok, now, week); err != nil {
		t.Errorf("the case that the others are edits of: %v", err)
	}
	if _, _, err := ca.IssueAPIServer("a/b", now, week); !errors.Is(err, ErrIdentity) {
		t.Errorf("API server of a bad tenant: %v", err)
	}
	if _, err := ca.IssueBroker("b/c", nil, nil, now, week); !errors.Is(err, ErrIdentity) {
		t.Errorf("broker of a bad id: %v", err)
	}
	for _, name := range []string{"*", "*.", "a.*.example", "*.*.example", "*example", "a_b.example"} {
		if _, err := ca.IssueBroker("b", []string{name}, nil, now, week); !errors.Is(err, ErrIdentity) {
			t.Errorf("broker of the bad DNS name %q: %v", name, err)
		}
	}
	if _, err := ca.IssueBroker("b", []string{"*.example"}, nil, now, week); err != nil {
		t.Errorf("broker of a wildcard: %v", err)
	}
}

func TestIssueEndsWithTheCA(t *testing.T) {
	ca := newCA(t)
	late := ca.NotAfter().Add(-time.Hour)
	data, err := ca.IssueNode(request(t, ecKey(t, elliptic.P256())), node("acme", "e"), late, week)
	if err != nil {
		t.Fatal(err)
	}
	if got := parseCert(t, data).NotAfter; !got.Equal(ca.NotAfter()) {
		t.Errorf("ends %v, want the CA's %v", got, ca.NotAfter())
	}
}

func TestSerialsDiffer(t *testing.T) {
	ca, csr := newCA(t), request(t, ecKey(t, elliptic.P256()))
	seen := map[string]bool{}
	for range 50 {
		data, err := ca.IssueNode(csr, node("acme", "e"), now, week)
		if err != nil {
			t.Fatal(err)
		}
		serial := parseCert(t, data).SerialNumber
		if n := serial.BitLen(); n < 113 || n > 128 || serial.Cmp(big.NewInt(0)) <= 0 {
			t.Errorf("serial %v has %d bits", serial, n)
		}
		if seen[serial.String()] {
			t.Errorf("serial %v was given twice", serial)
		}
		seen[serial.String()] = true
	}
}
