package broker

import (
	"errors"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/pkg/join"
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
