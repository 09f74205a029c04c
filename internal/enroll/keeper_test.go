package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mooring-edge/mooring/internal/kubetest"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/health"
)

// sweeps is a Sweeper that tells of its calls.
type sweeps chan string

func (s sweeps) Sweep(_ context.Context, tenant string) error {
	select {
	case s <- tenant:
	default:
	}
	return nil
}

// background runs f until the test ends.
func background(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
}

func awaitEvent[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// A token is renewed at a third of its life, over and over, each time with the one before; the record of the
// tenant is otherwise as it was, and its series ends with it.
func TestKeeperRenews(t *testing.T) {
	api := kubetest.New(t)
	api.LimitTokens(3 * time.Second)
	first := provision(t, api)
	s := openStore(t)
	val, err := json.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), store.Put(tenant.Key("acme"), val)); err != nil {
		t.Fatal(err)
	}
	it, err := s.Get(t.Context(), tenant.Key("beta"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), store.Delete(it.Key, it.Rev)); err != nil {
		t.Fatal(err)
	}
	reg := tenant.NewRegistry(s, discard)
	prom := prometheus.NewRegistry()
	tracker := health.New(health.Config{})
	swept := make(sweeps, 1)
	keeper := NewKeeper(KeeperConfig{Tenants: reg, Sweeper: swept, Health: tracker, Logger: discard, Metrics: NewMetrics(prom)})
	records := make(chan tenant.Tenant, 100)
	cancel := reg.Subscribe(func(t tenant.Tenant, deleted bool) {
		if !deleted {
			records <- t
		}
	})
	defer cancel()
	background(t, NewManager(reg, "the keeper", keeper.Run, discard).Run)
	background(t, reg.Run)

	tokens := map[string]bool{}
	for range 3 { // as it was, and two renewals
		got := awaitEvent(t, records, "renewal")
		tokens[string(got.Kubeconfig)] = true
		if !got.CreatedAt.Equal(first.CreatedAt) || got.Address != first.Address || got.Access.Account != first.Access.Account {
			t.Errorf("tenant became %+v", got)
		}
	}
	if len(tokens) != 3 {
		t.Errorf("%d kubeconfigs in 3 records", len(tokens))
	}
	if name := awaitEvent(t, swept, "sweep"); name != "acme" {
		t.Errorf("swept %s", name)
	}
	if n := testutil.CollectAndCount(prom, "mooring_tenant_access_expiry_timestamp_seconds"); n > 1 {
		t.Errorf("%d series of one tenant", n)
	}
	if err := reg.Remove(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(patience)
	for testutil.CollectAndCount(prom, "mooring_tenant_access_expiry_timestamp_seconds") > 0 || tracker.Get(ConditionTenantAccess).Reason != "NoTenants" {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("the removed tenant is still shown: %+v", tracker.Get(ConditionTenantAccess))
		}
	}
}

// What only an administrator can mend is a condition that says so.
func TestKeeperSaysWhenAnAdministratorIsNeeded(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*kubetest.Server, *tenant.Tenant)
		want  string
	}{
		"well":            {func(*kubetest.Server, *tenant.Tenant) {}, ""},
		"token refused":   {func(api *kubetest.Server, _ *tenant.Tenant) { api.RevokeTokens() }, "token is not accepted"},
		"binding missing": {func(api *kubetest.Server, _ *tenant.Tenant) { api.Put(accessPaths[5], "") }, "mooring:node-bootstrapper is missing"},
		"binding changed": {func(api *kubetest.Server, _ *tenant.Tenant) {
			api.Put(accessPaths[6], `{"metadata":{"name":"mooring:selfnodeclient"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"view"}}`)
		}, "mooring:selfnodeclient was changed"},
		"account gone, renewal late": {func(api *kubetest.Server, t *tenant.Tenant) {
			api.Put(accountPath, "")
			t.Access.Issued = time.Now().Add(-80 * 24 * time.Hour)
			t.Access.Expires = time.Now().Add(24 * time.Hour)
		}, "could not be renewed"},
	} {
		t.Run(name, func(t *testing.T) {
			api := kubetest.New(t)
			acme := provision(t, api)
			tc.spoil(api, &acme)
			tracker := health.New(health.Config{})
			keeper := NewKeeper(KeeperConfig{Sweeper: make(sweeps, 1), Health: tracker, Logger: discard})
			client, err := NewClient(acme)
			if err != nil {
				t.Fatal(err)
			}
			defer closeIdle(client)
			if err := keeper.once(t.Context(), client, &acme); err != nil {
				keeper.late(acme)
			}
			c := tracker.Get(ConditionTenantAccess)
			if tc.want == "" {
				if c.Status != health.True {
					t.Errorf("condition %+v", c)
				}
				return
			}
			if c.Status != health.False || !strings.Contains(c.Message, tc.want) || !strings.Contains(c.Message, "broker tenant update acme") {
				t.Errorf("condition %+v; want False with %q and what to run", c, tc.want)
			}
		})
	}
	t.Run("an administrator's kubeconfig", func(t *testing.T) {
		tracker := health.New(health.Config{})
		keeper := NewKeeper(KeeperConfig{Sweeper: make(sweeps, 1), Health: tracker, Logger: discard})
		ctx, cancel := context.WithCancel(t.Context())
		told := make(chan health.Condition, 1)
		go func() {
			for ctx.Err() == nil {
				if c := tracker.Get(ConditionTenantAccess); c.Status == health.False {
					told <- c
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		done := make(chan error, 1)
		go func() { done <- keeper.Run(ctx, someTenant("acme")) }()
		awaitEvent(t, told, "condition")
		cancel()
		<-done
	})
}

// overtaken is a TenantUpdater whose record is another than the keeper's.
type overtaken struct{ wrote bool }

func (o *overtaken) Update(_ context.Context, name string, change func(tenant.Tenant) (tenant.Tenant, error)) error {
	newer := someTenant(name)
	newer.Kubeconfig = []byte("an operator's update")
	_, err := change(newer)
	o.wrote = err == nil
	return err
}

func TestKeeperDoesNotUndoAnUpdate(t *testing.T) {
	api := kubetest.New(t)
	acme := provision(t, api)
	acme.Access.Issued = acme.Access.Issued.Add(-31 * 24 * time.Hour)
	acme.Access.Expires = acme.Access.Expires.Add(-31 * 24 * time.Hour)
	o := &overtaken{}
	keeper := NewKeeper(KeeperConfig{Tenants: o, Sweeper: make(sweeps, 1), Logger: discard})
	client, err := NewClient(acme)
	if err != nil {
		t.Fatal(err)
	}
	defer closeIdle(client)
	before := string(acme.Kubeconfig)
	if err := keeper.once(t.Context(), client, &acme); err != nil || o.wrote || string(acme.Kubeconfig) != before {
		t.Errorf("once = %v, wrote %v", err, o.wrote)
	}
}
