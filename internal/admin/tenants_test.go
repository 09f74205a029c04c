package admin

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// An operator who presses Ctrl-C at `broker tenant remove` must not leave half of a tenant.
func TestRemovalGoesOnWithoutItsClient(t *testing.T) {
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	reg := tenant.NewRegistry(st, log)
	runCtx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); reg.Run(runCtx) }()
	t.Cleanup(func() { stop(); <-done; st.Close() })
	err = reg.Add(t.Context(), tenant.Tenant{
		Name: "acme", Address: "192.0.2.1:6443", ServerName: "acme", CA: []byte("x"), Kubeconfig: []byte("x"), CreatedAt: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	reqCtx, leave := context.WithCancel(t.Context())
	purged := false
	b := &Broker{
		Tenants: reg, Board: switchboard.New(switchboard.Config{}), Logger: log,
		Purge: func(ctx context.Context, name string) error {
			leave()
			purged = ctx.Err() == nil && name == "acme"
			return ctx.Err()
		},
	}
	req := httptest.NewRequestWithContext(reqCtx, http.MethodDelete, "/v1/tenants/acme", nil)
	b.Handler().ServeHTTP(httptest.NewRecorder(), req)
	if !purged {
		t.Error("nodes and tokens of the removed tenant stay when the client goes away")
	}
}
