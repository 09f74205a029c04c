package broker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/kubetest"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/internal/tenant/files"
)

// TestFileTenants: a file's tenant is made once, follows its kubeconfig and the rest of what the file says, also while the API server is
// away, stays the same tenant, and is nobody else's to take or to remove. (Seen failing without the look at the owner in Ensure and in
// Remove.)
func TestFileTenants(t *testing.T) {
	f := fileTenants{newKamajiTenants(t).adm}
	first, second := kubetest.New(t), kubetest.New(t)
	w := files.Want{Name: "acme", Owner: tenant.Owner{Kind: files.OwnerKind, Name: "acme.yaml"}, KubeconfigErr: os.ErrNotExist}
	ensure := func(w files.Want) tenant.Tenant {
		t.Helper()
		if err := f.Ensure(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		got, _ := f.adm.Tenants.Get("acme")
		return got
	}
	if err := f.Ensure(t.Context(), w); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with no kubeconfig: %v", err)
	}
	w.Kubeconfig, w.KubeconfigErr = []byte(first.Kubeconfig()), nil
	made := ensure(w)
	if made.Owner != w.Owner || made.Access.Account == "" || made.ProxyProtocol {
		t.Errorf("made: %+v", made)
	}
	asked := len(first.Requests())
	if again := ensure(w); !again.Equal(made) || len(first.Requests()) != asked {
		t.Errorf("%+v: nothing is new, and the API server was asked %d times", again, len(first.Requests())-asked)
	}

	away := kubetest.Start()
	gone := away.Kubeconfig()
	away.Close()
	yes := true
	w.Kubeconfig = []byte(gone)
	w.Hosts, w.Upstreams, w.ServiceCIDRs, w.ProxyProtocol = []string{"api.acme.example"}, []string{second.Address()}, []string{"10.96.0.0/12"}, &yes
	if err := f.Ensure(t.Context(), w); err == nil {
		t.Error("an API server that is away was taken")
	}
	got, _ := f.adm.Tenants.Get("acme")
	if got.Address != first.Address() || !slices.Equal(got.Hosts, w.Hosts) || !slices.Equal(got.Upstreams, w.Upstreams) || len(got.ServiceCIDRs) != 1 || !got.ProxyProtocol {
		t.Errorf("while it is away: %+v", got)
	}
	w = files.Want{Name: "acme", Owner: w.Owner, Kubeconfig: []byte(second.Kubeconfig())}
	got = ensure(w)
	if got.Address != second.Address() || len(got.Hosts)+len(got.Upstreams)+len(got.ServiceCIDRs) != 0 || got.ProxyProtocol || !got.CreatedAt.Equal(made.CreatedAt) || got.Owner != w.Owner {
		t.Errorf("moved: %+v", got)
	}
	w.Kubeconfig, w.KubeconfigErr = nil, os.ErrNotExist // not needed any more
	if again := ensure(w); !again.Equal(got) {
		t.Errorf("without the kubeconfig: %+v", again)
	}

	other := w
	other.Owner.Name = "other.yaml"
	for _, o := range []tenant.Owner{other.Owner, {}} {
		other.Owner = o
		if err := f.Ensure(t.Context(), other); !errors.Is(err, tenant.ErrExists) || !strings.Contains(err.Error(), "File acme.yaml") {
			t.Errorf("Ensure for %+v: %v", o, err)
		}
		if err := f.Remove(t.Context(), "acme", o); err != nil || len(f.List()) != 1 {
			t.Errorf("after Remove for %+v: %v, %+v", o, err, f.List())
		}
	}
	for range 2 { // the second time it is gone already
		if err := f.Remove(t.Context(), "acme", w.Owner); err != nil || len(f.List()) != 0 {
			t.Errorf("%v, left: %+v", err, f.List())
		}
	}
}

// TestTenantsDir: a broker with a directory has its files' tenants when it has started, shows whose they are, and leaves those of an
// operator.
func TestTenantsDir(t *testing.T) {
	dir, api := t.TempDir(), kubetest.New(t)
	tenants := filepath.Join(dir, "tenants")
	if err := os.Mkdir(tenants, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"acme.yaml":  "apiVersion: mooring.dev/v1alpha1\nkind: TenantConfiguration\nkubeconfigFile: kubeconfig\nhosts: [api.acme.example]\n",
		"kubeconfig": api.Kubeconfig(),
	} {
		if err := os.WriteFile(filepath.Join(tenants, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := startBroker(t, dir, func(c *config.Broker) { c.TenantsDir = tenants })
	r.logs.await(t, "condition=TenantFiles status=True")
	list, err := r.client.Tenants(context.Background())
	if err != nil || len(list) != 1 || list[0].Name != "acme" || list[0].Owner != "File acme.yaml" || !slices.Equal(list[0].Hosts, []string{"api.acme.example"}) {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := r.client.AddTenant(context.Background(), admin.TenantRequest{Name: "acme", Kubeconfig: api.Kubeconfig()}); err == nil {
		t.Error("a command added the file's tenant again")
	}
}
