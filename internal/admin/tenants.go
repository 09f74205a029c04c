package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"

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
		out = append(out, showTenant(t, nodes[t.Name], connected[t.Name]))
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
	return showTenant(t, nodes[t.Name], connected[t.Name]), nil
}

func showTenant(t tenant.Tenant, nodes, connected int) Tenant {
	return Tenant{t.Name, t.Address, t.ServerName, t.CreatedAt, nodes, connected}
}

func (b *Broker) addTenant(r *http.Request) (any, error) {
	req, err := read[TenantRequest](r)
	if err != nil {
		return nil, err
	}
	t, err := tenant.FromKubeconfig(req.Name, []byte(req.Kubeconfig))
	if err != nil {
		return nil, &Error{http.StatusBadRequest, err.Error()}
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
	return showTenant(t, 0, 0), b.settled(r.Context(), t.Name, true)
}

// settled waits until the registry, which follows the store, shows a change that was just committed: the
// operator's next command may build on it.
func (b *Broker) settled(ctx context.Context, name string, there bool) error {
	seen := make(chan struct{}, 1)
	cancel := b.Tenants.Subscribe(func(t tenant.Tenant, deleted bool) {
		if t.Name == name && deleted != there {
			select {
			case seen <- struct{}{}:
			default:
			}
		}
	})
	defer cancel()
	if _, ok := b.Tenants.Get(name); ok == there {
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
