package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/kubetest"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// What can't work is an error of Run at once, and neither a hang nor a broker that fails later.
func TestStartThatCannotWorkIsAnErrorAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*config.Broker){
		"egress.hostsDir": func(c *config.Broker) { c.Egress.HostsDir = filepath.Join(file, "hosts") },
		// Validation refuses this; should a name get past it, it must not fail in each handshake instead.
		`DNS name "a_b"`: func(c *config.Broker) { c.Front.PublicEndpoint = "a_b:443" },
	} {
		t.Run(want, func(t *testing.T) {
			dir := t.TempDir()
			cfg := config.DefaultBroker()
			cfg.DataDir, cfg.AdminSocket, cfg.HealthAddress = filepath.Join(dir, "data"), filepath.Join(dir, "b.sock"), ""
			cfg.Front.Listen, cfg.Front.PublicEndpoint, cfg.Egress.Listen = freeAddr(t), "e:1", freeAddr(t)
			spoil(cfg)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := Run(ctx, cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("Run = %v; want an error about %s", err, want)
			}
			if ctx.Err() != nil {
				t.Fatal("Run went on until it was stopped")
			}
		})
	}
}

func TestNamesOfTheCertificateAreLowerCase(t *testing.T) {
	ring, err := pki.NewKeyring("mooring.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.DefaultBroker()
	cfg.Front.PublicEndpoint, cfg.Egress.PublicEndpoint = "Edge.Example:443", "https://Broker.Example:8132"
	cert, err := newServerCert(func() *pki.Keyring { return ring }, cfg).get()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"edge.example", "Broker.Example"} {
		if err := cert.Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
}

// A broker that was killed in the middle of `tenant remove` leaves nodes and tokens. A new tenant of the name
// may be somebody else's: it must not get them.
func TestNewTenantInheritsNothing(t *testing.T) {
	dir := t.TempDir()
	r := startBroker(t, dir)
	r.addTenant(t, "acme")
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	r.stop()
	if n := strings.Count(r.logs.String(), `msg="enrolment token created"`); n != 1 {
		t.Errorf("the log tells of one token %d times", n)
	}
	st, err := store.Open(t.Context(), store.Config{Dir: r.cfg.DataDir})
	if err != nil {
		t.Fatal(err)
	}
	it, err := st.Get(t.Context(), tenant.Key("acme"))
	if err == nil {
		err = st.Commit(t.Context(), store.Delete(it.Key, it.Rev))
	}
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}

	r = startBroker(t, dir)
	r.addTenant(t, "acme")
	if nodes, err := r.client.Nodes(t.Context(), ""); err != nil || len(nodes) != 0 {
		t.Errorf("nodes = %+v, %v; want none", nodes, err)
	}
	if tokens, err := r.client.Tokens(t.Context(), ""); err != nil || len(tokens) != 0 {
		t.Errorf("tokens = %+v, %v; want none", tokens, err)
	}
	if s, err := b.connect(t, tunnel.TransportTCP, r.cfg.Front.Listen); err == nil {
		select {
		case <-s.Done():
		case <-time.After(10 * time.Second):
			t.Error("a node of the removed tenant has a session")
		}
	}
	// A second tenant of the name is refused, and takes nothing from the first.
	token := r.bundle(t, "acme", 1)
	if _, err := r.client.AddTenant(t.Context(), admin.TenantRequest{Name: "acme", Kubeconfig: kubetest.New(t).Kubeconfig()}); err == nil {
		t.Error("a tenant was added twice")
	}
	newBox(t, token, "edge-1")
}

// A store that does not answer says nothing about the node: it must not be told to enrol again.
func TestRefusalTellsRemovedFromUnknown(t *testing.T) {
	for _, c := range []struct {
		err  error
		want wire.Code
	}{
		{fmt.Errorf("%w: removed", enroll.ErrNotAuthorized), wire.Revoked},
		{fmt.Errorf("authorize: %w", context.DeadlineExceeded), wire.Unavailable},
		{fmt.Errorf("authorize: %w", store.ErrClosed), wire.Unavailable},
	} {
		if code, told := refusal(c.err); code != c.want || told == "" {
			t.Errorf("refusal(%v) = %s, %v; want %s", c.err, code, told, c.want)
		}
	}
}

// A tenant's hosts file is there when `tenant add` is done, as it is mounted into an API server that starts next.
func TestHostsFileIsThereAfterTenantAdd(t *testing.T) {
	r := startBroker(t, t.TempDir(), func(c *config.Broker) { c.Egress.HostsDir = filepath.Join(c.DataDir, "hosts") })
	r.addTenant(t, "acme")
	if _, err := os.Stat(filepath.Join(r.cfg.Egress.HostsDir, "acme")); err != nil {
		t.Error(err)
	}
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	if _, err := b.connect(t, tunnel.TransportTCP, r.cfg.Front.Listen); err != nil {
		t.Fatal(err)
	}
	// The broker tells nobody when it has written the file, so it is looked at again and again.
	tick, late := time.NewTicker(20*time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for {
		data, _ := os.ReadFile(filepath.Join(r.cfg.Egress.HostsDir, "acme"))
		if strings.Contains(string(data), " edge-1\n") {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("the enrolled node is not in the file:\n%s", data)
		}
	}
}
