package pki

import (
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// shake runs a handshake over a pipe and a byte after it, since a TLS 1.3
// client learns only by reading that the server refused it.
func shake(t *testing.T, client, server *tls.Config) (cs, ss tls.ConnectionState, cerr, serr error) {
	t.Helper()
	a, b := net.Pipe()
	c, s := tls.Client(a, client), tls.Server(b, server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer b.Close()
		if serr = s.Handshake(); serr == nil {
			_, serr = s.Write([]byte{1})
		}
		ss = s.ConnectionState()
	}()
	if cerr = c.Handshake(); cerr == nil {
		_, cerr = c.Read(make([]byte, 1))
	}
	cs = c.ConnectionState()
	a.Close()
	<-done
	return cs, ss, cerr, serr
}

// party holds what the tests of both ends need.
type party struct {
	ca     *CA
	broker func() (*tls.Certificate, error)
	node   func() (*tls.Certificate, error)
}

func newParty(t *testing.T) party {
	t.Helper()
	ca := newCA(t)
	broker, err := ca.IssueBroker("b", []string{"edge.example"}, nil, now, week)
	if err != nil {
		t.Fatal(err)
	}
	keyData, key, err := MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	certData, err := ca.IssueNode(request(t, key), node("acme", "edge-1"), now, week)
	if err != nil {
		t.Fatal(err)
	}
	client, err := tls.X509KeyPair(certData, keyData)
	if err != nil {
		t.Fatal(err)
	}
	return party{
		ca:     ca,
		broker: func() (*tls.Certificate, error) { return &broker, nil },
		node:   func() (*tls.Certificate, error) { return &client, nil },
	}
}

func (p party) asNode() Verify {
	return VerifyPeer(p.ca.Pool, x509.ExtKeyUsageClientAuth, clock(now), nil)
}
func (p party) asBroker() Verify {
	return VerifyPinned([]string{p.ca.Hash()}, clock(now), nil)
}

func TestHandshake(t *testing.T) {
	p, stranger := newParty(t), newParty(t)
	for name, tc := range map[string]struct {
		client, server *tls.Config
		cok, sok       bool
	}{
		"both known":                   {ClientTLS(p.node, p.asBroker()), ServerTLS(p.broker, p.asNode(), ServerOptions{}), true, true},
		"client without, required":     {ClientTLS(nil, p.asBroker()), ServerTLS(p.broker, p.asNode(), ServerOptions{}), false, false},
		"client without, optional":     {ClientTLS(nil, p.asBroker()), ServerTLS(p.broker, p.asNode(), ServerOptions{Clients: ClientOptional}), true, true},
		"client without, none asked":   {ClientTLS(p.node, p.asBroker()), ServerTLS(p.broker, nil, ServerOptions{Clients: ClientNone}), true, true},
		"stranger, required":           {ClientTLS(stranger.node, p.asBroker()), ServerTLS(p.broker, p.asNode(), ServerOptions{}), false, false},
		"stranger, optional":           {ClientTLS(stranger.node, p.asBroker()), ServerTLS(p.broker, p.asNode(), ServerOptions{Clients: ClientOptional}), false, false},
		"strange broker":               {ClientTLS(p.node, p.asBroker()), ServerTLS(stranger.broker, p.asNode(), ServerOptions{}), false, false},
		"client without verification":  {ClientTLS(p.node, nil), ServerTLS(p.broker, p.asNode(), ServerOptions{}), false, false},
		"server without verification":  {ClientTLS(p.node, p.asBroker()), ServerTLS(p.broker, nil, ServerOptions{}), false, false},
		"optional, no verification":    {ClientTLS(p.node, p.asBroker()), ServerTLS(p.broker, nil, ServerOptions{Clients: ClientOptional}), false, false},
		"node's certificate as server": {ClientTLS(p.node, p.asBroker()), ServerTLS(p.node, p.asNode(), ServerOptions{}), false, false},
	} {
		cs, ss, cerr, serr := shake(t, tc.client, tc.server)
		if (cerr == nil) != tc.cok || (serr == nil) != tc.sok {
			t.Errorf("%s: client %v, server %v", name, cerr, serr)
			continue
		}
		if cerr == nil && cs.Version != tls.VersionTLS13 {
			t.Errorf("%s: TLS %x", name, cs.Version)
		}
		if name == "both known" {
			if id, err := PeerIdentity(ss); err != nil || id != node("acme", "edge-1") {
				t.Errorf("the server sees %+v, %v", id, err)
			}
			if id, err := PeerIdentity(cs); err != nil || id.Role != RoleBroker {
				t.Errorf("the client sees %+v, %v", id, err)
			}
		}
	}
}

// TestClassicKeyExchange: a client that can do without the hybrids does, one that can't has them, and neither is verified less.
func TestClassicKeyExchange(t *testing.T) {
	p, stranger := newParty(t), newParty(t)
	classicServer := func() *tls.Config {
		return ServerTLS(p.broker, p.asNode(), ServerOptions{ClassicKeyExchange: true, AllowTLS12: true, NextProtos: []string{"http/1.1"}})
	}
	with := func(curves ...tls.CurveID) *tls.Config {
		c := ClientTLS(p.node, p.asBroker())
		c.CurvePreferences, c.NextProtos = curves, []string{"http/1.1"}
		return c
	}
	for name, tc := range map[string]struct {
		client *tls.Config
		want   tls.CurveID // 0: refused
	}{
		"Go's own":       {with(), tls.X25519},
		"hybrids alone":  {with(tls.X25519MLKEM768), tls.X25519MLKEM768},
		"P-256 alone":    {with(tls.CurveP256), tls.CurveP256},
		"no certificate": {ClientTLS(nil, p.asBroker()), 0},
		"a stranger":     {ClientTLS(stranger.node, p.asBroker()), 0},
	} {
		cs, ss, cerr, serr := shake(t, tc.client, classicServer())
		if tc.want == 0 {
			if serr == nil {
				t.Errorf("%s: accepted", name)
			}
			continue
		}
		if cerr != nil || serr != nil || cs.CurveID != tc.want || cs.NegotiatedProtocol != "http/1.1" || cs.Version != tls.VersionTLS13 {
			t.Errorf("%s: client %v, server %v, %v, protocol %q, TLS %x; want %v", name, cerr, serr, cs.CurveID, cs.NegotiatedProtocol, cs.Version, tc.want)
		}
		if id, err := PeerIdentity(ss); err != nil || id != node("acme", "edge-1") {
			t.Errorf("%s: the server sees %+v, %v", name, id, err)
		}
	}
	if cs, _, cerr, serr := shake(t, with(), ServerTLS(p.broker, p.asNode(), ServerOptions{NextProtos: []string{"http/1.1"}})); cerr != nil || serr != nil || cs.CurveID != tls.X25519MLKEM768 {
		t.Errorf("without the option: %v, %v, %v; want the hybrid", cs.CurveID, cerr, serr)
	}
}

// A stock client (kube-apiserver) verifies the broker by name and CA bundle.
func TestServerTLSVersions(t *testing.T) {
	p := newParty(t)
	stock := func(max uint16) *tls.Config {
		cert, _ := p.node()
		return &tls.Config{RootCAs: p.ca.Pool(), ServerName: "edge.example", MaxVersion: max, Certificates: []tls.Certificate{*cert}, Time: clock(now)}
	}
	for _, tc := range []struct {
		max     uint16
		allow12 bool
		ok      bool
	}{
		{tls.VersionTLS13, false, true},
		{tls.VersionTLS13, true, true},
		{tls.VersionTLS12, true, true},
		{tls.VersionTLS12, false, false},
	} {
		_, _, cerr, serr := shake(t, stock(tc.max), ServerTLS(p.broker, p.asNode(), ServerOptions{AllowTLS12: tc.allow12}))
		if (cerr == nil && serr == nil) != tc.ok {
			t.Errorf("client up to %x, 1.2 allowed %v: client %v, server %v", tc.max, tc.allow12, cerr, serr)
		}
	}
	old := ServerTLS(p.broker, p.asNode(), ServerOptions{AllowTLS12: true})
	old.MaxVersion = tls.VersionTLS12
	if _, _, cerr, _ := shake(t, ClientTLS(p.node, p.asBroker()), old); cerr == nil || !strings.Contains(cerr.Error(), "version") {
		t.Errorf("our client accepted TLS 1.2: %v", cerr)
	}
}

func TestNoResumption(t *testing.T) {
	p := newParty(t)
	cert, _ := p.node()
	stock := &tls.Config{RootCAs: p.ca.Pool(), ServerName: "edge.example", Certificates: []tls.Certificate{*cert}, Time: clock(now)}
	stock12 := stock.Clone()
	stock12.MaxVersion = tls.VersionTLS12
	ours := ClientTLS(p.node, p.asBroker())
	ours.ServerName = "edge.example"
	tickets := ServerTLS(p.broker, p.asNode(), ServerOptions{})
	tickets.SessionTicketsDisabled = false
	for name, tc := range map[string]struct{ client, server *tls.Config }{
		"stock client": {stock, ServerTLS(p.broker, p.asNode(), ServerOptions{})},
		"TLS 1.2":      {stock12, ServerTLS(p.broker, p.asNode(), ServerOptions{AllowTLS12: true})},
		"our client":   {ours, tickets},
	} {
		tc.client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		for range 3 {
			cs, _, cerr, serr := shake(t, tc.client, tc.server)
			if cerr != nil || serr != nil || cs.DidResume {
				t.Errorf("%s: client %v, server %v, resumed %v", name, cerr, serr, cs.DidResume)
			}
		}
	}
}

func TestRenewedCertificateIsUsedAtOnce(t *testing.T) {
	p := newParty(t)
	served, _ := p.broker()
	server := ServerTLS(func() (*tls.Certificate, error) { return served, nil }, p.asNode(), ServerOptions{NextProtos: []string{"mooring/1"}})
	client := ClientTLS(p.node, p.asBroker())
	client.NextProtos = []string{"mooring/1"}
	renewed, err := p.ca.IssueBroker("b2", nil, nil, now, week)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"b", "b2"} {
		cs, _, cerr, serr := shake(t, client, server)
		if cerr != nil || serr != nil {
			t.Fatalf("client %v, server %v", cerr, serr)
		}
		if id, err := PeerIdentity(cs); err != nil || id.Name != want || cs.NegotiatedProtocol != "mooring/1" {
			t.Errorf("%+v, %v over %q, want %s", id, err, cs.NegotiatedProtocol, want)
		}
		served = &renewed
	}
}

// A key that is not the certificate's owner proves nothing, whatever the chain.
func TestStolenCertificate(t *testing.T) {
	p := newParty(t)
	cert, _ := p.node()
	stolen := tls.Certificate{Certificate: cert.Certificate, PrivateKey: ecKey(t, elliptic.P256())}
	_, _, _, serr := shake(t, ClientTLS(func() (*tls.Certificate, error) { return &stolen, nil }, p.asBroker()), ServerTLS(p.broker, p.asNode(), ServerOptions{}))
	if serr == nil {
		t.Error("the server accepted a certificate without its key")
	}
}

// Unverified means the chain and the dates alone: the key must be the certificate's all the same.
func TestClientUnverified(t *testing.T) {
	const year = 365 * 24 * time.Hour
	p := newParty(t)
	server := ServerTLS(p.broker, nil, ServerOptions{Clients: ClientUnverified})
	cert, _ := p.node()
	rogue, err := NewCA("example.org", now.Add(-year))
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := rogue.IssueBroker("b", nil, nil, now.Add(-year), week) // expired as well
	if err != nil {
		t.Fatal(err)
	}
	stolen := tls.Certificate{Certificate: cert.Certificate, PrivateKey: ecKey(t, elliptic.P256())}
	many := tls.Certificate{Certificate: slices.Repeat(cert.Certificate, maxChain+1), PrivateKey: cert.PrivateKey}
	for name, tc := range map[string]struct {
		cert *tls.Certificate
		ok   bool
	}{
		"none": {nil, true}, "good": {cert, true}, "expired, of an unknown CA": {&unknown, true},
		"another key's": {&stolen, false}, "too many": {&many, false},
	} {
		var get func() (*tls.Certificate, error)
		if tc.cert != nil {
			get = func() (*tls.Certificate, error) { return tc.cert, nil }
		}
		if _, _, _, serr := shake(t, ClientTLS(get, p.asBroker()), server); (serr == nil) != tc.ok {
			t.Errorf("%s: server %v", name, serr)
		}
	}
}
