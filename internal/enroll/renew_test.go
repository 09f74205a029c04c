package enroll

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

const year = 365 * 24 * time.Hour

func renewRequest(t *testing.T, key any) enrollapi.RenewRequest {
	t.Helper()
	csr, err := pki.MakeCSR(key.(*ecdsa.PrivateKey), "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	return enrollapi.RenewRequest{CSR: string(csr), Version: "test"}
}

// certify has a CA issue a certificate of the identity for the key.
func certify(t *testing.T, ca *pki.CA, id pki.Identity, key *ecdsa.PrivateKey, now time.Time) tls.Certificate {
	t.Helper()
	raw, err := pki.MakeCSR(key, "x")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseCSR(raw, maxCSRPEM)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.IssueNode(csr, id, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(chain)
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
}

func nodeOf(domain, name string) pki.Identity {
	return pki.Identity{TrustDomain: domain, Role: pki.RoleNode, Tenant: "acme", Name: name}
}

// The key that was pinned is enough: with a certificate that ran out 400 days ago, and with one of a CA that nobody
// knows any more.
func TestRenewByThePinnedKey(t *testing.T) {
	b := newBench(t, nil)
	expired := b.enrol("edge-1")
	b.clk.advance(400 * 24 * time.Hour)
	retired, err := pki.NewCA("example.org", b.clk.now())
	if err != nil {
		t.Fatal(err)
	}
	ofAnother := certify(t, retired, nodeOf("example.org", "edge-1"), expired.PrivateKey.(*ecdsa.PrivateKey), b.clk.now())
	for what, cert := range map[string]tls.Certificate{"expired": expired, "of a CA that is no more": ofAnother} {
		if status, body := b.post(enrollapi.PathJoin, &cert, enrollapi.JoinRequest{}); status != 403 {
			t.Errorf("join with a certificate that is %s: %d %s", what, status, body)
		}
		status, body := b.post(enrollapi.PathRenew, &cert, renewRequest(t, cert.PrivateKey))
		var resp enrollapi.EnrolResponse
		if err := json.Unmarshal(body, &resp); err != nil || status != 200 {
			t.Fatalf("%s: %d %s", what, status, body)
		}
		block, _ := pem.Decode([]byte(resp.Certificate))
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := pki.ParseIdentity(leaf); err != nil || id != nodeOf("example.org", "edge-1") || !resp.Time.Equal(b.clk.now()) {
			t.Errorf("%s: identity %v, %v; answer %+v", what, id, err, resp)
		}
		rec, err := b.nodes.Get(t.Context(), "acme", "edge-1")
		if err != nil || !rec.CertificateNotAfter.Equal(leaf.NotAfter) || rec.CertificateIssuer != b.ca.Hash() {
			t.Errorf("%s: record %+v, %v; certificate until %s", what, rec, err, leaf.NotAfter)
		}
		fresh := tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: cert.PrivateKey}
		if status, body := b.post(enrollapi.PathJoin, &fresh, enrollapi.JoinRequest{}); status != 200 {
			t.Errorf("%s: join with the new certificate: %d %s", what, status, body)
		}
	}
	if n := testutil.ToFloat64(b.server.cfg.Metrics.renewals.WithLabelValues("renewed")); n != 2 {
		t.Errorf("%v counted as renewed", n)
	}
	if log := b.audit.String(); strings.Count(log, `"event":"renew","outcome":"ok"`) != 2 {
		t.Errorf("audit log:\n%s", log)
	}
}

// All that is wrong has one answer.
func TestRenewRefusesAlike(t *testing.T) {
	b := newBench(t, func(c *ServerConfig) { c.ExpiredGrace = year })
	good, revoked, removed, old := b.enrol("edge-1"), b.enrol("edge-2"), b.enrol("edge-3"), b.enrol("edge-4")
	now := b.clk.now()
	key := func(c tls.Certificate) *ecdsa.PrivateKey { return c.PrivateKey.(*ecdsa.PrivateKey) }
	if _, err := b.nodes.Revoke(t.Context(), "acme", "edge-2", "stolen", now); err != nil {
		t.Fatal(err)
	}
	if err := b.nodes.Remove(t.Context(), "acme", "edge-3"); err != nil {
		t.Fatal(err)
	}
	other := newKey(t)
	elsewhere, err := pki.NewCA("elsewhere.org", now)
	if err != nil {
		t.Fatal(err)
	}
	apiPEM, apiKeyPEM, err := b.ca.IssueAPIServer("acme", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	apiserver, err := tls.X509KeyPair(apiPEM, apiKeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	otherKey := certify(t, b.ca, nodeOf("example.org", "edge-1"), other, now)
	stranger := certify(t, elsewhere, nodeOf("elsewhere.org", "edge-1"), key(good), now)
	first := ""
	for _, tc := range []struct {
		what string
		cert *tls.Certificate
		csr  any
		wait time.Duration
	}{
		{what: "no certificate", csr: key(good)},
		{what: "another key", cert: &otherKey, csr: other},
		{what: "another trust domain", cert: &stranger, csr: key(good)},
		{what: "an API server", cert: &apiserver, csr: apiserver.PrivateKey},
		{what: "a request for another key", cert: &good, csr: other},
		{what: "revoked", cert: &revoked, csr: key(revoked)},
		{what: "removed", cert: &removed, csr: key(removed)},
		{what: "beyond grace", cert: &old, csr: key(old), wait: year + 8*24*time.Hour},
	} {
		b.clk.advance(tc.wait)
		status, body := b.post(enrollapi.PathRenew, tc.cert, renewRequest(t, tc.csr))
		wantError(t, status, body, enrollapi.CodeRefused)
		if first == "" {
			first = string(body)
		}
		if string(body) != first || status != 403 {
			t.Errorf("%s: answer %d %s differs from %s", tc.what, status, body, first)
		}
	}
	if n := strings.Count(b.audit.String(), `"event":"renew","outcome":"refused"`); n != 8 {
		t.Errorf("%d refusals in the audit log:\n%s", n, b.audit)
	}
	for _, want := range []string{"revoked by an operator", "longer ago than identity.expiredGrace", "is enrolled with another key"} {
		if !strings.Contains(b.audit.String(), want) {
			t.Errorf("the audit log does not say %q", want)
		}
	}
	if rec, err := b.nodes.Get(t.Context(), "acme", "edge-1"); err != nil || rec.CertificateNotAfter.After(now.Add(8*24*time.Hour)) {
		t.Errorf("a refusal changed the record: %+v, %v", rec, err)
	}
	if status, body := b.post(enrollapi.PathRenew, &good, enrollapi.RenewRequest{CSR: "junk"}); status != 400 {
		t.Errorf("junk for a CSR: %d %s", status, body)
	}
}

// Up to the end of the grace time, and not after it.
func TestRenewGraceEnds(t *testing.T) {
	b := newBench(t, func(c *ServerConfig) { c.ExpiredGrace = year })
	cert := b.enrol("edge-1")
	b.clk.advance(DefaultCertificateTTL + year - time.Second)
	if status, body := b.post(enrollapi.PathRenew, &cert, renewRequest(t, cert.PrivateKey)); status != 200 {
		t.Errorf("in the last second: %d %s", status, body)
	}
	b.clk.advance(DefaultCertificateTTL + year)
	if status, _ := b.post(enrollapi.PathRenew, &cert, renewRequest(t, cert.PrivateKey)); status != 403 {
		t.Errorf("after the last second: %d", status)
	}
}

// A revocation that comes while a renewal is under way is seen by it.
func TestRevocationBeatsARenewalUnderWay(t *testing.T) {
	s := openStore(t)
	tokens, nodes := NewTokens(s, nil, discard), NewNodes(s, discard)
	c := claimOf(createToken(t, tokens, TokenSpec{Tenant: "acme"}), "edge-1")
	c.NotAfter = time.Now().Add(time.Hour)
	if _, _, err := tokens.Claim(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	late := &interposed{Store: s, before: func() {
		if _, err := nodes.Revoke(t.Context(), "acme", "edge-1", "", time.Now()); err != nil {
			t.Error(err)
		}
	}}
	_, err := NewNodes(late, discard).Renew(t.Context(), "acme", "edge-1", RenewedCertificate{SPKI: c.SPKI, NotAfter: c.NotAfter, Now: time.Now()})
	if renewalOutcome(err) != "revoked" || late.before != nil {
		t.Errorf("renewal: %v", err)
	}
}
