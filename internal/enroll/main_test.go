package enroll

import (
	"crypto/ecdsa"
	"encoding/json"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		child(mode) // does not return
	}
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second

var discard = slog.New(slog.DiscardHandler)

// clock is a Clock that a test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Now().Truncate(time.Second)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// openStore opens the real store, with the tenants acme and beta in it.
func openStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"acme", "beta"} {
		val, err := json.Marshal(someTenant(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context(), store.Create(tenant.Key(name), val)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func someTenant(name string) tenant.Tenant {
	return tenant.Tenant{Name: name, Kubeconfig: []byte("k"), Address: "203.0.113.7:6443", ServerName: name + ".edge.example", CA: []byte("the CA of " + name)}
}

// fixedTenants is a TenantSource and TenantFeed of what it holds.
type fixedTenants map[string]tenant.Tenant

func (f fixedTenants) Get(name string) (tenant.Tenant, bool) {
	t, ok := f[name]
	return t, ok
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	_, key, err := pki.MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
