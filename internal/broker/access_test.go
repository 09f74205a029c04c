package broker

import (
	"bytes"
	"context"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/kubetest"
)

// contains tells which file under dir holds the text.
func contains(t *testing.T, dir, text string) string {
	t.Helper()
	found := ""
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(text)) {
			found = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// The administrator's credentials are used and forgotten; what is kept is the token of the broker's account.
func TestAdministratorsKubeconfigIsNotKept(t *testing.T) {
	dir := t.TempDir()
	r := startBroker(t, dir)
	api := r.addTenant(t, "acme")
	newBox(t, r.bundle(t, "acme", 1), "edge-1")
	got, err := r.client.Tenant(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	if got.Access.Account != "system:serviceaccount:kube-system:mooring-broker" || got.Access.Expires.IsZero() || len(got.Access.Rights) == 0 {
		t.Errorf("access %+v", got.Access)
	}
	n := 0
	for _, req := range api.Requests() {
		if strings.HasSuffix(req, "by "+got.Access.Account) {
			n++
		}
	}
	if n == 0 {
		t.Error("the broker did not use its account")
	}

	// Another API server, as when the control plane moved: the tenant, its token and its node stay.
	other := kubetest.New(t)
	updated, err := r.client.UpdateTenant(t.Context(), admin.TenantRequest{Name: "acme", Kubeconfig: other.Kubeconfig()})
	if err != nil {
		t.Fatal(err)
	}
	if updated.Address != other.Address() || !updated.CreatedAt.Equal(got.CreatedAt) || updated.Nodes != 1 {
		t.Errorf("updated %+v, before %+v", updated, got)
	}
	if _, err := r.client.UpdateTenant(t.Context(), admin.TenantRequest{Name: "nobody", Kubeconfig: other.Kubeconfig()}); err == nil {
		t.Error("a tenant that is not there was updated")
	}
	r.stop()
	if log := r.logs.String(); strings.Contains(log, api.AdminToken()) || strings.Contains(log, other.AdminToken()) {
		t.Error("the log holds an administrator's token")
	}
	for _, token := range []string{api.AdminToken(), other.AdminToken()} {
		if file := contains(t, dir, token); file != "" {
			t.Errorf("%s holds an administrator's token", file)
		}
	}
	if contains(t, dir, other.Address()) == "" {
		t.Error("the search finds nothing at all")
	}
}

// An API server that is away is an answer with what to do, and leaves no half of a tenant.
func TestTenantAddNeedsItsAPIServer(t *testing.T) {
	r := startBroker(t, t.TempDir())
	gone := kubetest.Start()
	req := admin.TenantRequest{Name: "acme", Kubeconfig: gone.Kubeconfig()}
	gone.Close()
	_, err := r.client.AddTenant(context.Background(), req)
	e, ok := err.(*admin.Error)
	if !ok || e.Status != http.StatusBadGateway || !strings.Contains(e.Message, "see that it runs") {
		t.Errorf("AddTenant = %v", err)
	}
	if all, err := r.client.Tenants(context.Background()); err != nil || len(all) != 0 {
		t.Errorf("tenants %v, %v", all, err)
	}
}
