package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

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
		out = append(out, b.describe(t, nodes[t.Name], connected[t.Name]))
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
	return b.describe(t, nodes[t.Name], connected[t.Name]), nil
}

func (b *Broker) describe(t tenant.Tenant, nodes, connected int) Tenant {
	out := Tenant{
		Name: t.Name, Address: t.Address, ServerName: t.ServerName, CreatedAt: t.CreatedAt, Nodes: nodes, Connected: connected,
		Owner:  t.Owner.String(),
		Access: Access{Account: t.Access.Account, Expires: t.Access.Expires, Warnings: t.Access.Warnings},
	}
	for _, p := range t.ServiceCIDRs {
		out.ServiceCIDRs = append(out.ServiceCIDRs, p.String())
	}
	if t.Access.Account != "" {
		out.Access.Rights = enroll.Rights(b.Konnectivity)
	}
	return b.showFront(out, t)
}

func (b *Broker) addTenant(r *http.Request) (any, error) {
	req, err := read[TenantRequest](r)
	if err != nil {
		return nil, err
	}
	t, err := b.AddTenant(r.Context(), req)
	if err != nil {
		return nil, err
	}
	out := b.describe(t, 0, 0)
	out.Warnings = b.nameWarnings(r.Context(), t)
	return out, nil
}

// AddTenant makes the broker's account with the administrator's access in the request, adds the tenant, and returns when the
// broker knows it.
func (b *Broker) AddTenant(ctx context.Context, req TenantRequest) (tenant.Tenant, error) {
	cidrs, err := serviceCIDRs(req, nil)
	if err != nil {
		return tenant.Tenant{}, err
	}
	if _, there := b.Tenants.Get(req.Name); there {
		return tenant.Tenant{}, &Error{http.StatusConflict, fmt.Sprintf("tenant %s exists already: give it another kubeconfig with `broker tenant update`, or remove it first", req.Name)}
	}
	t, err := b.provision(ctx, req, tenant.Tenant{ProxyProtocol: b.ProxyToUpstreams})
	if err != nil {
		return t, err
	}
	t.ServiceCIDRs = cidrs
	b.tenantChange.Lock()
	defer b.tenantChange.Unlock()
	// What a removal left that was cut short must not come back to life under the new tenant.
	if err := b.purge(ctx, t.Name); err != nil && !errors.Is(err, tenant.ErrExists) {
		return t, err
	}
	switch err := b.Tenants.Add(ctx, t); {
	case errors.Is(err, tenant.ErrExists):
		return t, &Error{http.StatusConflict, err.Error()}
	case err != nil:
		return t, taken(err)
	}
	b.auditTenant(ctx, t, "add")
	return t, b.settled(ctx, t.Name, true)
}

// provision turns an administrator's kubeconfig into a tenant with the broker's own access. The administrator's
// is in memory only, and only for as long as this takes.
func (b *Broker) provision(ctx context.Context, req TenantRequest, had tenant.Tenant) (tenant.Tenant, error) {
	t, err := tenant.FromKubeconfig(req.Name, []byte(req.Kubeconfig))
	if err != nil {
		return t, &Error{http.StatusBadRequest, err.Error()}
	}
	if t, err = req.into(t, had); err != nil {
		return t, err
	}
	t.Owner = req.Owner
	t, err = b.Provision(ctx, t)
	if errors.Is(err, enroll.ErrUnavailable) {
		return t, &Error{http.StatusBadGateway, err.Error()}
	}
	return t, err
}

// serviceCIDRs are the ranges of Services that a request sets, or those that were set before.
func serviceCIDRs(req TenantRequest, before []netip.Prefix) ([]netip.Prefix, error) {
	switch {
	case len(req.ServiceCIDRs) == 0:
		return before, nil
	case len(req.ServiceCIDRs) == 1 && req.ServiceCIDRs[0] == LearnServiceCIDRs:
		return nil, nil
	case len(req.ServiceCIDRs) > wire.MaxServiceCIDRs:
		return nil, &Error{http.StatusBadRequest, fmt.Sprintf("%d service CIDRs, at most %d are taken", len(req.ServiceCIDRs), wire.MaxServiceCIDRs)}
	}
	var out []netip.Prefix
	for _, s := range req.ServiceCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return nil, &Error{http.StatusBadRequest, fmt.Sprintf("service CIDR %.80q: want a prefix with no bits behind it, such as 10.96.0.0/12, or %q", s, LearnServiceCIDRs)}
		}
		out = append(out, p)
	}
	return out, nil
}

// updateTenant gives a tenant a new account's token, and the address and CA that the kubeconfig holds, if there is one; and other
// upstreams, hosts and ranges of Services, if the request says so.
func (b *Broker) updateTenant(r *http.Request) (any, error) {
	req, err := read[TenantRequest](r)
	if err != nil {
		return nil, err
	}
	if req.Name != r.PathValue("tenant") {
		return nil, &Error{http.StatusBadRequest, fmt.Sprintf("the request is for tenant %q, its body for %q", r.PathValue("tenant"), req.Name)}
	}
	fresh, err := b.UpdateTenant(r.Context(), req)
	if err != nil {
		return nil, err
	}
	nodes, connected, err := b.counts(r.Context())
	if err != nil {
		return nil, err
	}
	out := b.describe(fresh, nodes[fresh.Name], connected[fresh.Name])
	out.Warnings = b.nameWarnings(r.Context(), fresh)
	return out, nil
}

// UpdateTenant gives a tenant a new account's token, and the address and CA of the request's kubeconfig, if there is one; and
// what else the request says. It stays its owner's, and is refused as a conflict to a request for another. It returns when the
// broker knows.
func (b *Broker) UpdateTenant(ctx context.Context, req TenantRequest) (tenant.Tenant, error) {
	had, err := b.tenant(req.Name)
	if err != nil {
		return tenant.Tenant{}, err
	}
	if _, err := serviceCIDRs(req, had.ServiceCIDRs); err != nil {
		return tenant.Tenant{}, err
	}
	fresh := had
	if req.Kubeconfig == "" {
		_, err = req.into(had, had)
	} else {
		fresh, err = b.provision(ctx, req, had)
	}
	if err != nil {
		return fresh, err
	}
	err = b.Tenants.Update(ctx, req.Name, func(t tenant.Tenant) (tenant.Tenant, error) {
		if req.Owner != (tenant.Owner{}) && req.Owner != t.Owner { // it was removed meanwhile, and added by somebody else
			return t, &Error{http.StatusConflict, fmt.Sprintf("tenant %s: %v: it is another owner's", t.Name, tenant.ErrExists)}
		}
		if req.Kubeconfig == "" {
			fresh = t
		}
		var err error
		fresh.ServiceCIDRs, _ = serviceCIDRs(req, t.ServiceCIDRs)
		fresh.CreatedAt, fresh.Owner = t.CreatedAt, t.Owner // it is the same tenant: what was issued to it stays good
		fresh, err = req.into(fresh, t)
		return fresh, err
	})
	if errors.Is(err, tenant.ErrNotFound) {
		return fresh, &Error{http.StatusNotFound, fmt.Sprintf("no tenant %q: see `broker tenant list`", req.Name)}
	}
	if err != nil {
		return fresh, taken(err)
	}
	b.auditTenant(ctx, fresh, "update")
	return fresh, b.seen(ctx, fresh.Name, func(t tenant.Tenant, there bool) bool { return there && t.Equal(fresh) })
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
	return struct{}{}, b.RemoveTenant(r.Context(), r.PathValue("tenant"), nil)
}

// RemoveTenant removes a tenant and all that is its. It does so to the end once it has begun. only, if it is not nil, tells
// of what the store holds whether it is the tenant that is meant; one that is not is left.
func (b *Broker) RemoveTenant(caller context.Context, name string, only func(tenant.Tenant) bool) error {
	// An operator who does not wait for the end has still asked for all of it.
	ctx := context.WithoutCancel(caller)
	b.tenantChange.Lock()
	defer b.tenantChange.Unlock()
	removed := b.Tenants.RemoveIf(ctx, name, only)
	if errors.Is(removed, tenant.ErrExists) {
		return nil
	}
	if removed != nil && !errors.Is(removed, tenant.ErrNotFound) {
		return removed
	}
	if err := b.purge(ctx, name); err != nil {
		return err
	}
	if removed != nil { // though something of it may have been left, and is gone now
		return &Error{http.StatusNotFound, fmt.Sprintf("no tenant %q: see `broker tenant list`", name)}
	}
	b.Logger.Info("tenant removed", "tenant", name)
	b.auditTenant(ctx, tenant.Tenant{Name: name}, "remove")
	return b.settled(caller, name, false)
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
