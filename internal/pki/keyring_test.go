package pki

import (
	"bytes"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func newKeyring(t testing.TB) *Keyring {
	t.Helper()
	k, err := NewKeyring(td, now)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// step is a step of a rotation, kept and read again as brokers do.
func step(t testing.TB, k *Keyring, f func() (*Keyring, error)) *Keyring {
	t.Helper()
	next, err := f()
	if err != nil {
		t.Fatal(err)
	}
	data, err := next.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if next, err = ParseKeyring(data); err != nil {
		t.Fatal(err)
	}
	return next
}

// rotate goes through a whole rotation.
func rotate(t testing.TB, k *Keyring, at time.Time) *Keyring {
	t.Helper()
	k = step(t, k, func() (*Keyring, error) { return k.Add(at) })
	k = step(t, k, k.Switch)
	return step(t, k, k.Retire)
}

func brokerChain(t testing.TB, k *Keyring, at time.Time) (tls.Certificate, tls.ConnectionState) {
	t.Helper()
	cert, err := k.IssueBroker("b0", []string{"edge.example"}, nil, at, week)
	if err != nil {
		t.Fatal(err)
	}
	var certs []*x509.Certificate
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
	return cert, state(certs...)
}

// TestFormerCAsStillVerifyTheBroker: a party that knows one CA alone, by its certificate or its hash, verifies a
// broker of each of the MaxPast CAs that follow, and is told what to do about one that comes later.
func TestFormerCAsStillVerifyTheBroker(t *testing.T) {
	first := newKeyring(t)
	byCA := VerifyPeer(first.Pool, x509.ExtKeyUsageServerAuth, clock(now), nil)
	byHash := VerifyPinned(first.Pins(), clock(now), nil)
	k := first
	for n := range MaxPast + 1 {
		_, cs := brokerChain(t, k, now)
		wantErr(t, fmt.Sprintf("by the CA, %d rotations later", n), byCA(cs), "")
		wantErr(t, fmt.Sprintf("by the hash, %d rotations later", n), byHash(cs), "")
		if n > 0 && len(cs.PeerCertificates) != 2+2*n {
			t.Errorf("the chain after %d rotations has %d certificates", n, len(cs.PeerCertificates))
		}
		k = rotate(t, k, now)
	}
	_, cs := brokerChain(t, k, now)
	wantErr(t, "by a CA too old", byCA(cs), "new join bundle")
	wantErr(t, "by a hash too old", byHash(cs), "broker token create")
	if n := len(cs.PeerCertificates); n != maxChain {
		t.Errorf("the longest chain has %d certificates, want %d", n, maxChain)
	}
	if n := len(k.CAs()); n != 1+MaxPast {
		t.Errorf("%d CAs are kept, want the issuer and %d", n, MaxPast)
	}
}

// A stock client (kube-apiserver) verifies by name and an old CA file, in a real handshake.
func TestStockClientWithAnOldCAFile(t *testing.T) {
	first := newKeyring(t)
	file := x509.NewCertPool()
	if !file.AppendCertsFromPEM(first.BundlePEM()) {
		t.Fatal("no certificate in the bundle")
	}
	k := first
	for n := range 4 {
		cert, _ := brokerChain(t, k, now)
		server := ServerTLS(func() (*tls.Certificate, error) { return &cert, nil }, nil, ServerOptions{Clients: ClientNone, AllowTLS12: true})
		client := &tls.Config{RootCAs: file, ServerName: "edge.example", Time: clock(now)}
		if _, _, cerr, serr := shake(t, client, server); cerr != nil || serr != nil {
			t.Errorf("%d rotations later: client %v, server %v", n, cerr, serr)
		}
		whole := cert.Certificate
		cert.Certificate = WithoutRoots(whole)
		if len(cert.Certificate) != 1+n || len(whole) != 2+2*n {
			t.Errorf("%d rotations later: %d certificates, %d without roots", n, len(whole), len(cert.Certificate))
		}
		if _, _, cerr, serr := shake(t, client, server); cerr != nil || serr != nil {
			t.Errorf("%d rotations later, without roots: client %v, server %v", n, cerr, serr)
		}
		client.ServerName = "other.example"
		if _, _, cerr, _ := shake(t, client, server); cerr == nil {
			t.Error("another name was accepted")
		}
		k = rotate(t, k, now)
	}
}

func TestPhases(t *testing.T) {
	k := newKeyring(t)
	old := k.Hash()
	oldKey, err := k.Issuer().KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(k *Keyring, what string, f func() (*Keyring, error)) {
		t.Helper()
		if _, err := f(); !errors.Is(err, ErrPhase) {
			t.Errorf("%s in phase %q: %v", what, k.Phase(), err)
		}
	}
	refuse(k, "Switch", k.Switch)
	refuse(k, "Retire", k.Retire)

	add := step(t, k, func() (*Keyring, error) { return k.Add(now) })
	next := add.CAs()[1].Hash
	if add.Phase() != PhaseAdd || add.Hash() != old || !slices.Equal(add.Pins(), []string{old, next}) {
		t.Errorf("after Add: phase %q, issuer %s, pins %v", add.Phase(), add.Hash(), add.Pins())
	}
	refuse(add, "Add", func() (*Keyring, error) { return add.Add(now) })
	refuse(add, "Retire", add.Retire)

	sw := step(t, add, add.Switch)
	if sw.Phase() != PhaseSwitch || sw.Hash() != next || !slices.Equal(sw.Pins(), []string{next}) {
		t.Errorf("after Switch: phase %q, issuer %s, pins %v", sw.Phase(), sw.Hash(), sw.Pins())
	}
	data, err := sw.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if keyText, _ := json.Marshal(string(oldKey)); bytes.Contains(data, keyText[1:100]) || bytes.Count(data, []byte("PRIVATE KEY")) != 2 {
		t.Error("the record after the switch holds another key than the issuer's")
	}
	refuse(sw, "Add", func() (*Keyring, error) { return sw.Add(now) })
	refuse(sw, "Switch", sw.Switch)

	end := step(t, sw, sw.Retire)
	if end.Phase() != PhaseSettled || end.Hash() != next {
		t.Errorf("after Retire: phase %q, issuer %s", end.Phase(), end.Hash())
	}
	for phase, want := range map[*Keyring][]string{k: {old}, add: {old, next}, sw: {next, old}, end: {next}} {
		if got := bundleHashes(t, phase.BundlePEM()); !slices.Equal(got, want) {
			t.Errorf("bundle in phase %q: %v; want %v", phase.Phase(), got, want)
		}
	}
}

func bundleHashes(t *testing.T, bundle []byte) (hashes []string) {
	t.Helper()
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		hashes = append(hashes, SPKIHash(parseCert(t, pem.EncodeToMemory(block)).PublicKey))
	}
	return hashes
}

// TestWhoIsTrusted: nodes of the previous CA are let in until it is retired, and links open no way around that.
func TestWhoIsTrusted(t *testing.T) {
	k := newKeyring(t)
	csr := request(t, ecKey(t, elliptic.P256()))
	issue := func(k *Keyring) *x509.Certificate {
		data, err := k.IssueNode(csr, node("acme", "e"), now, week)
		if err != nil {
			t.Fatal(err)
		}
		return parseCert(t, data)
	}
	add := step(t, k, func() (*Keyring, error) { return k.Add(now) })
	sw := step(t, add, add.Switch)
	end := step(t, sw, sw.Retire)
	_, chain := brokerChain(t, end, now)
	for _, tc := range []struct {
		name   string
		ring   *Keyring
		issuer *Keyring
		want   string
	}{
		{"old node, added", add, k, ""},
		{"new node, added", add, sw, ""},
		{"old node, switched", sw, k, ""},
		{"new node, switched", sw, sw, ""},
		{"old node, retired", end, k, "unknown authority"},
		{"new node, retired", end, sw, ""},
		{"new node, before it all", k, sw, "unknown authority"},
	} {
		verify := VerifyPeer(tc.ring.Pool, x509.ExtKeyUsageClientAuth, clock(now), nil)
		wantErr(t, tc.name, verify(state(issue(tc.issuer))), tc.want)
	}
	// With all the CAs and links that a broker shows.
	verify := VerifyPeer(end.Pool, x509.ExtKeyUsageClientAuth, clock(now), nil)
	wantErr(t, "old node with links", verify(state(append([]*x509.Certificate{issue(k)}, chain.PeerCertificates[1:]...)...)), "unknown authority")
}

func TestLinkKeepsTheNameConstraint(t *testing.T) {
	k := newKeyring(t)
	add := step(t, k, func() (*Keyring, error) { return k.Add(now) })
	sw := step(t, add, add.Switch)
	link := sw.link
	if !link.IsCA || !slices.Equal(link.PermittedURIDomains, []string{td}) || !link.PermittedDNSDomainsCritical {
		t.Errorf("link: CA %v, permitted %v, critical %v", link.IsCA, link.PermittedURIDomains, link.PermittedDNSDomainsCritical)
	}
	if link.NotAfter.After(k.Issuer().NotAfter()) {
		t.Error("the link outlasts who signed it")
	}
	foreign := leaf(t, sw.Issuer(), "spiffe://evil.example/broker/b", nil)
	verify := VerifyPeer(k.Pool, x509.ExtKeyUsageServerAuth, clock(now), nil)
	wantErr(t, "a foreign name over the link", verify(state(foreign, link)), "not permitted")
	wantErr(t, "ours", verify(state(leaf(t, sw.Issuer(), "spiffe://mooring.local/broker/b", nil), link)), "")
}

func TestForgedLinks(t *testing.T) {
	k, evil := newKeyring(t), newKeyring(t)
	// The attacker's own link from a CA that claims the name of the old one.
	forged := step(t, evil, func() (*Keyring, error) { return evil.Add(now) })
	forged = step(t, forged, forged.Switch)
	tmpl := caTemplate(td, forged.issuer.cert.Subject, now)
	tmpl.SubjectKeyId = forged.issuer.cert.SubjectKeyId
	parent := *k.issuer.cert
	parent.PublicKey = evil.issuer.cert.PublicKey // else the library would not sign
	der, err := sign(tmpl, &parent, forged.issuer.cert.PublicKey, evil.issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	link, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	b := leaf(t, forged.issuer, "spiffe://mooring.local/broker/b", nil)
	certs := []*x509.Certificate{b, forged.issuer.cert, link, k.issuer.cert, forged.link, evil.issuer.cert}
	wantErr(t, "by the CA", VerifyPeer(k.Pool, x509.ExtKeyUsageServerAuth, clock(now), nil)(state(certs...)), "verify peer")
	wantErr(t, "by the hash", VerifyPinned(k.Pins(), clock(now), nil)(state(certs...)), "verify peer")
	// A node's certificate is no CA, even with a link's place in the chain.
	nodeKey := ecKey(t, elliptic.P256())
	nodeCert := leaf(t, k.Issuer(), "spiffe://mooring.local/tenant/acme/node/e", func(c *x509.Certificate) { c.PublicKey = nodeKey.Public() })
	sub := leaf(t, &CA{cert: nodeCert, key: nodeKey, trustDomain: td}, "spiffe://mooring.local/broker/b", nil)
	wantErr(t, "a node as CA", VerifyPeer(k.Pool, x509.ExtKeyUsageServerAuth, clock(now), nil)(state(sub, nodeCert)), "verify peer")
}

func TestParseKeyringRefuses(t *testing.T) {
	k := rotate(t, newKeyring(t), now)
	k = step(t, k, func() (*Keyring, error) { return k.Add(now) })
	other := rotate(t, newKeyring(t), now)
	foreign, err := NewKeyring("other.example", now)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(r *keyringRecord)) []byte {
		data, err := k.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		var r keyringRecord
		if err := json.Unmarshal(data, &r); err != nil {
			t.Fatal(err)
		}
		f(&r)
		if data, err = json.Marshal(r); err != nil {
			t.Fatal(err)
		}
		return data
	}
	if _, err := ParseKeyring(edit(func(*keyringRecord) {})); err != nil {
		t.Errorf("the case that the others are edits of: %v", err)
	}
	foreignRec, _ := foreign.issuer.record(nil)
	for name, data := range map[string][]byte{
		"empty":                  nil,
		"no JSON":                []byte("x"),
		"too long":               bytes.Repeat([]byte(" "), maxRecord+1),
		"no issuer's key":        edit(func(r *keyringRecord) { r.Key = "" }),
		"no next key":            edit(func(r *keyringRecord) { r.Next.Key = "" }),
		"next and previous":      edit(func(r *keyringRecord) { r.Previous = &r.Past[0] }),
		"another's link":         edit(func(r *keyringRecord) { r.Link = linkPEM(other.link) }),
		"next's link":            edit(func(r *keyringRecord) { r.Next.Link = r.Link }),
		"a self-signed link":     edit(func(r *keyringRecord) { r.Link = r.Certificate }),
		"no link":                edit(func(r *keyringRecord) { r.Link = "x" }),
		"past is no certificate": edit(func(r *keyringRecord) { r.Past[0].Certificate = "" }),
		"past of another domain": edit(func(r *keyringRecord) { r.Past[0] = foreignRec }),
		"next of another domain": edit(func(r *keyringRecord) { r.Next = &foreignRec }),
		"another CA in the past": edit(func(r *keyringRecord) { r.Past[0] = other.past[0].record() }),
	} {
		if _, err := ParseKeyring(data); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

// The record of a broker of one CA is a keyring's; a certificate of then, with path length 0, works but can't
// be rotated.
func TestOldRecord(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	tmpl := caTemplate(td, newCA(t).cert.Subject, now)
	tmpl.MaxPathLenZero = true
	der, err := sign(tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyText, err := keyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := json.Marshal(map[string]string{"certificate": string(certPEM(der)), "key": string(keyText)})
	k, err := ParseKeyring(data)
	if err != nil {
		t.Fatal(err)
	}
	_, cs := brokerChain(t, k, now)
	wantErr(t, "old CA", VerifyPinned(k.Pins(), clock(now), nil)(cs), "")
	if _, err := k.Add(now); err == nil || !strings.Contains(err.Error(), "path length 0") || !strings.Contains(err.Error(), "join bundles") {
		t.Errorf("Add: %v; want an error that says what to do", err)
	}
}

// After a CA has ended there is nobody to sign the link, and a rotation is the way to go on nevertheless.
func TestRotateAfterTheEnd(t *testing.T) {
	k := newKeyring(t)
	late := k.Issuer().NotAfter().Add(time.Hour)
	k = rotate(t, k, late)
	_, cs := brokerChain(t, k, late)
	if len(cs.PeerCertificates) != 2 {
		t.Errorf("the chain has %d certificates", len(cs.PeerCertificates))
	}
	wantErr(t, "new", VerifyPinned(k.Pins(), clock(late), nil)(cs), "")
}

// A link that has ended, with the CA before it, is not presented any more.
func TestEndedLinksAreLeftOut(t *testing.T) {
	k := rotate(t, newKeyring(t), now.Add(caLifetime/2))
	late := now.Add(caLifetime + time.Hour)
	if _, cs := brokerChain(t, k, late); len(cs.PeerCertificates) != 2 {
		t.Errorf("the chain has %d certificates", len(cs.PeerCertificates))
	}
}

func FuzzParseKeyring(f *testing.F) {
	k := rotate(f, newKeyring(f), now)
	data, err := k.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseKeyring(data)
		if err != nil {
			return
		}
		again, err := k.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseKeyring(again); err != nil {
			t.Fatalf("what was read is written so that it can't be read: %v", err)
		}
	})
}
