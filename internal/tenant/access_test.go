package tenant

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestWithToken(t *testing.T) {
	adm, err := FromKubeconfig("acme", adminConfig(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	access := Access{Account: "a", Issued: time.Unix(1, 0), Expires: time.Unix(2, 0), Warnings: []string{"w"}}
	got, err := adm.WithToken("sekret", access)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := got.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	was, err := adm.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.BearerToken != "sekret" || len(cfg.CertData) > 0 || len(cfg.KeyData) > 0 {
		t.Errorf("the administrator's credentials are still there: %+v", cfg)
	}
	if cfg.Host != was.Host || string(cfg.CAData) != string(was.CAData) || cfg.ServerName != was.ServerName {
		t.Errorf("another API server: %s, was %s", cfg.Host, was.Host)
	}
	if strings.Contains(string(got.Kubeconfig), "client-key") {
		t.Errorf("kubeconfig:\n%s", got.Kubeconfig)
	}
	if got.Equal(adm) || !got.Equal(got.clone()) {
		t.Error("Equal does not look at the access")
	}
	if _, err := adm.WithToken("", access); err == nil {
		t.Error("an empty token was taken")
	}
}

func TestRegistryUpdate(t *testing.T) {
	s := openStore(t)
	ctx := t.Context()
	r := startRegistry(t, s)
	ch := make(chan change, 10)
	defer r.Subscribe(func(t Tenant, deleted bool) { ch <- change{t, deleted} })()
	same := func(t Tenant) (Tenant, error) { return t, nil }
	if err := r.Update(ctx, "acme", same); !errors.Is(err, ErrNotFound) {
		t.Errorf("Update of no tenant: %v", err)
	}
	if err := r.Add(ctx, someTenant("acme")); err != nil {
		t.Fatal(err)
	}
	next(t, ch)
	// Two writers at once: neither's change is lost.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := r.Update(ctx, "acme", func(t Tenant) (Tenant, error) {
				t.Access.Expires = t.Access.Expires.Add(time.Hour)
				return t, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want := time.Time{}.Add(8 * time.Hour)
	for c := next(t, ch); !c.t.Access.Expires.Equal(want); c = next(t, ch) {
		if c.t.Access.Expires.After(want) {
			t.Fatalf("expires %s", c.t.Access.Expires)
		}
	}
	sentinel := errors.New("no")
	if err := r.Update(ctx, "acme", func(t Tenant) (Tenant, error) { return t, sentinel }); !errors.Is(err, sentinel) {
		t.Errorf("Update = %v", err)
	}
	for _, spoil := range []func(*Tenant){func(t *Tenant) { t.Name = "beta" }, func(t *Tenant) { t.Kubeconfig = nil }} {
		if err := r.Update(ctx, "acme", func(t Tenant) (Tenant, error) { spoil(&t); return t, nil }); err == nil {
			t.Error("a record that can't be used was written")
		}
	}
}
