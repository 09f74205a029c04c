package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func (b *Broker) listTenants(r *http.Request) (any, error) {
	nodes, connected, err := b.counts(r.Context())
	if err != nil {
		return nil, err
	}
	out := []Tenant{}
	for _, t := range b.Tenants.List() {
		out = append(out, b.describeTenant(t, nodes[t.Name], connected[t.Name]))
	}
	return out, nil
}

func (b *Broker) showTenant(r *http.Request) (any, error) {
	t, err := b.tenant(r.PathValue("tenant"))
	if err != nil {
		return nil, err
	}
	nodes, connected, err := b.counts(r.Context())
	if err != nil {
		return nil, err
	}
	return b.describeTenant(t, nodes[t.Name], connected[t.Name]), nil
}

func (b *Broker) describeTenant(t tenant.Tenant, nodes, connected int) Tenant {
	out := Tenant{
		Name: t.Name, Address: t.Address, ServerName: t.ServerName, CreatedAt: t.CreatedAt, Nodes: nodes, Connected: connected,
		Access: Access{Account: t.Access.Account, Expires: t.Access.Expires, Warnings: t.Access.Warnings},
	}
	if t.Access.Account != "" {
		out.Access.Rights = enroll.Rights(b.Konnectivity)
	}
	return out
}

func (b *Broker) addTenant(r *http.Request) (any, error) {
	req, err := read[TenantRequest](r)
	if err != nil {
		return nil, err
	}
	if _, there := b.Tenants.Get(req.Name); there {
		return nil, &Error{http.StatusConflict, fmt.Sprintf("tenant %s exists already: give it another kubeconfig with `broker tenant update`, or remove it first", req.Name)}
	}
	t, err := b.provision(r.Context(), req)
	if err != nil {
		return nil, err
	}
	b.tenantChange.Lock()
	defer b.tenantChange.Unlock()
	// What a removal left that was cut short must not come back to life under the new tenant.
	if err := b.purge(r.Context(), t.Name); err != nil && !errors.Is(err, tenant.ErrExists) {
		return nil, err
	}
	switch err := b.Tenants.Add(r.Context(), t); {
	case errors.Is(err, tenant.ErrExists):
		return nil, &Error{http.StatusConflict, err.Error()}
	case err != nil:
		return nil, err
	}
	b.auditTenant(r.Context(), t, "add")
	return b.describeTenant(t, 0, 0), b.settled(r.Context(), t.Name, true)
}

// provision turns an administrator's kubeconfig into a tenant with the broker's own access. The administrator's
// is in memory only, and only for as long as this takes.
func (b *Broker) provision(ctx context.Context, req TenantRequest) (tenant.Tenant, error) {
	t, err := tenant.FromKubeconfig(req.Name, []byte(req.Kubeconfig))
	if err != nil {
		return t, &Error{http.StatusBadRequest, err.Error()}
	}
	t, err = b.Provision(ctx, t)
	if errors.Is(err, enroll.ErrUnavailable) {
		return t, &Error{http.StatusBadGateway, err.Error()}
	}
	return t, err
}

// updateTenant gives a tenant a new account's token, and the address and CA that the kubeconfig holds.
func (b *Broker) updateTenant(r *http.Request) (any, error) {
	req, err := read[TenantRequest](r)
	if err != nil {
		return nil, err
	}
	if req.Name != r.PathValue("tenant") {
		return nil, &Error{http.StatusBadRequest, fmt.Sprintf("the request is for tenant %q, its body for %q", r.PathValue("tenant"), req.Name)}
	}
	if _, err := b.tenant(req.Name); err != nil {
		return nil, err
	}
	fresh, err := b.provision(r.Context(), req)
	if err != nil {
		return nil, err
	}
	err = b.Tenants.Update(r.Context(), req.Name, func(t tenant.Tenant) (tenant.Tenant, error) {
		fresh.CreatedAt = t.CreatedAt // it is the same tenant: what was issued to it stays good
		return fresh, nil
	})
	if errors.Is(err, tenant.ErrNotFound) {
		return nil, &Error{http.StatusNotFound, fmt.Sprintf("no tenant %q: see `broker tenant list`", req.Name)}
	}
	if err != nil {
		return nil, err
	}
	b.auditTenant(r.Context(), fresh, "update")
	nodes, connected, err := b.counts(r.Context())
	if err != nil {
		return nil, err
	}
	return b.describeTenant(fresh, nodes[fresh.Name], connected[fresh.Name]),
		b.seen(r.Context(), fresh.Name, func(t tenant.Tenant, there bool) bool { return there && t.Equal(fresh) })
}

func (b *Broker) auditTenant(ctx context.Context, t tenant.Tenant, action string) {
	b.Audit.Record(audit.Event{
		Event: "tenant", Outcome: audit.OK, Actor: Actor(ctx), Tenant: t.Name,
		Detail: map[string]string{"action": action, "address": t.Address, "account": t.Access.Account},
	})
}

// settled waits until the registry shows that a tenant came or went.
func (b *Broker) settled(ctx context.Context, name string, there bool) error {
	return b.seen(ctx, name, func(_ tenant.Tenant, now bool) bool { return now == there })
}

// seen waits until the registry, which follows the store, shows a change that was just committed: the
// operator's next command may build on it.
func (b *Broker) seen(ctx context.Context, name string, want func(t tenant.Tenant, there bool) bool) error {
	seen := make(chan struct{}, 1)
	cancel := b.Tenants.Subscribe(func(t tenant.Tenant, deleted bool) {
		if t.Name == name && want(t, !deleted) {
			select {
			case seen <- struct{}{}:
			default:
			}
		}
	})
	defer cancel()
	if want(b.Tenants.Get(name)) {
		return nil
	}
	select {
	case <-seen:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the change of tenant %s to be seen: %w", name, context.Cause(ctx))
	}
}

// removeTenant forgets the tenant first, so that no node can enrol or connect while the rest goes.
func (b *Broker) removeTenant(r *http.Request) (any, error) {
	name := r.PathValue("tenant")
	// An operator who does not wait for the end has still asked for all of it.
	ctx := context.WithoutCancel(r.Context())
	b.tenantChange.Lock()
	defer b.tenantChange.Unlock()
	removed := b.Tenants.Remove(ctx, name)
	if removed != nil && !errors.Is(removed, tenant.ErrNotFound) {
		return nil, removed
	}
	if err := b.purge(ctx, name); err != nil {
		return nil, err
	}
	if removed != nil { // though something of it may have been left, and is gone now
		return nil, &Error{http.StatusNotFound, fmt.Sprintf("no tenant %q: see `broker tenant list`", name)}
	}
	b.Logger.Info("tenant removed", "tenant", name)
	b.auditTenant(ctx, tenant.Tenant{Name: name}, "remove")
	return struct{}{}, b.settled(r.Context(), name, false)
}

// purge removes what belongs to a tenant that is gone, and cuts its nodes off.
func (b *Broker) purge(ctx context.Context, name string) error {
	err := b.Purge(ctx, name)
	if errors.Is(err, tenant.ErrExists) {
		return err
	}
	b.Board.CutTenant(name, wire.Revoked, "this tenant was removed by an operator")
	return err
}
