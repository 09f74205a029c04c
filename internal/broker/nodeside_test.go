package broker

import (
	"errors"
	"net"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/join"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// TestNodesOwnHalf has the agent's own code enrol, let its certificate run out, and be renewed by its key, by a
// broker that runs as a whole.
func TestNodesOwnHalf(t *testing.T) {
	r := startBroker(t, t.TempDir(), func(c *config.Broker) { c.Identity.NodeCertificateTTL.Duration = time.Second })
	r.addTenant(t, "acme")
	b := r.bundle(t, "acme", 1)
	cfg := join.Config{
		StateDir: t.TempDir(), Hostname: "edge-1", Serial: "SN-1", StopOnRefusal: true,
		Bundle: func() (join.Bundle, error) {
			return join.Bundle{Endpoint: b.Endpoint, Tenant: b.Tenant, Token: b.Token, CACertHashes: b.CACertHashes}, nil
		},
	}
	first, err := join.New(cfg).Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cfg.Bundle = func() (join.Bundle, error) { return join.Bundle{}, errors.New("no join bundle any more") }
	for limit := time.Now().Add(time.Minute); !first.Expired(time.Now()); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("good until %s", first.NotAfter())
		}
	}
	j := join.New(cfg)
	second, err := j.Enrol(t.Context())
	if err != nil {
		t.Fatalf("with an expired certificate: %v", err)
	}
	if second.Fingerprint() != first.Fingerprint() || second.SPIFFE() != first.SPIFFE() || !second.NotAfter().After(first.NotAfter()) {
		t.Errorf("renewed %s until %s, was %s until %s", second.SPIFFE(), second.NotAfter(), first.SPIFFE(), first.NotAfter())
	}
	if d := time.Since(j.Clock().Floor()); d < -time.Minute || d > time.Minute {
		t.Errorf("the broker's time was not learned: off by %s", d)
	}

	if err := r.client.RemoveNode(t.Context(), "acme", "edge-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Renew(t.Context()); err == nil {
		t.Error("a removed node was renewed")
	}
}

// TestNodeBehindProxy: a site whose only way out is a proxy that wants a password, and that alone knows the broker's name.
// Enrolment, renewal and the tunnel go through it. Seen failing with join.Config.Proxy left out, and with Dialer.Proxy.
func TestNodeBehindProxy(t *testing.T) {
	const name = "broker.invalid:8443"
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	b := r.bundle(t, "acme", 1)
	p := &relay.Proxy{User: "site-7:sesame", Lead: func(target string) string {
		if target == name {
			return r.cfg.Front.Listen
		}
		return target
	}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.Serve(l)
	t.Cleanup(p.Close)
	way := func(*url.URL) (*url.URL, error) {
		return config.ProxyURL("http://site-7:sesame@" + l.Addr().String())
	}
	j := join.New(join.Config{
		StateDir: t.TempDir(), Hostname: "edge-1", StopOnRefusal: true, Proxy: way,
		Bundle: func() (join.Bundle, error) {
			return join.Bundle{Endpoint: name, Tenant: b.Tenant, Token: b.Token, CACertHashes: b.CACertHashes}, nil
		},
	})
	id, err := j.Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := &tunnel.Dialer{Endpoint: id.Endpoint, TLS: j.TLS(), Proxy: way, Config: tunnel.Config{
		Hello: func() wire.Hello { return wire.Hello{Node: id.Node} },
	}}
	s, err := d.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(wire.Shutdown, "the test is over")
	r.logs.await(t, `msg="node connected" tenant=acme node=edge-1 transport=tcp`)
	if want := slices.Repeat([]string{"CONNECT " + name}, 3); !slices.Equal(p.Asked(), want) {
		t.Errorf("the proxy was asked for %q, want %q", p.Asked(), want)
	}
}
