package broker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/internal/tenant/files"
)

// runFiles keeps the tenants of the directory's files until ctx ends, if there is one.
func (b *broker) runFiles(ctx context.Context, adm *admin.Broker) error {
	if b.cfg.TenantsDir == "" {
		return nil
	}
	return files.New(files.Config{Dir: b.cfg.TenantsDir, Tenants: fileTenants{adm}, Health: b.health, Logger: b.log}).Run(ctx)
}

// fileTenants adds, changes and removes tenants in the way of an operator's commands. It implements files.Tenants.
type fileTenants struct{ adm *admin.Broker }

// List implements files.Tenants.
func (f fileTenants) List() []tenant.Tenant { return f.adm.Tenants.List() }

// Ensure implements files.Tenants.
func (f fileTenants) Ensure(ctx context.Context, w files.Want) error {
	ctx = admin.WithActor(ctx, w.Owner.String())
	req := f.request(w)
	have, there := f.adm.Tenants.Get(w.Name)
	if there && have.Owner != w.Owner {
		whose := have.Owner.String()
		if whose == "" {
			whose = "an operator, who added it by command"
		}
		return fmt.Errorf("%w: it belongs to %s, and is left alone", tenant.ErrExists, whose)
	}
	if !there {
		if w.KubeconfigErr != nil {
			return fmt.Errorf("kubeconfigFile: %w", w.KubeconfigErr)
		}
		req.Kubeconfig = string(w.Kubeconfig)
		_, err := f.adm.AddTenant(ctx, req)
		return f.conflict(w, err)
	}
	anew, err := needsAdmin(have, w)
	if anew {
		with := req
		with.Kubeconfig = string(w.Kubeconfig)
		if _, err = f.adm.UpdateTenant(ctx, with); err == nil {
			return nil
		}
	}
	// The rest needs no API server, and waits for none.
	if !sameWay(have, req) {
		_, e := f.adm.UpdateTenant(ctx, req)
		err = errors.Join(err, e)
	}
	return f.conflict(w, err)
}

// request is what the file says of a tenant, without an administrator's access.
func (f fileTenants) request(w files.Want) admin.TenantRequest {
	proxy := f.adm.ProxyToUpstreams
	if w.ProxyProtocol != nil {
		proxy = *w.ProxyProtocol
	}
	cidrs := w.ServiceCIDRs
	if len(cidrs) == 0 {
		cidrs = []string{admin.LearnServiceCIDRs}
	}
	return admin.TenantRequest{Name: w.Name, Owner: w.Owner, Upstreams: &w.Upstreams, Hosts: &w.Hosts, ProxyProtocol: &proxy, ServiceCIDRs: cidrs}
}

// needsAdmin tells whether the broker's access is to be made anew: it has none, it runs out, or the kubeconfig leads elsewhere. A
// kubeconfig that is not there leads nowhere else.
func needsAdmin(have tenant.Tenant, w files.Want) (bool, error) {
	ended := have.Access.Account == "" || runningOut(have.Access, time.Now())
	if w.KubeconfigErr != nil {
		if ended {
			return false, fmt.Errorf("the broker's access has ended, and kubeconfigFile can't be read: %w", w.KubeconfigErr)
		}
		return false, nil
	}
	given, err := tenant.FromKubeconfig(w.Name, w.Kubeconfig)
	if err != nil {
		return false, fmt.Errorf("kubeconfigFile: %w", err)
	}
	return ended || !sameServer(have, given), nil
}

// sameWay tells whether a tenant is reached as the request says.
func sameWay(have tenant.Tenant, req admin.TenantRequest) bool {
	var cidrs []netip.Prefix
	for _, s := range req.ServiceCIDRs {
		if p, err := netip.ParsePrefix(s); err == nil {
			cidrs = append(cidrs, p)
		}
	}
	return slices.Equal(have.Upstreams, *req.Upstreams) && slices.Equal(have.Hosts, *req.Hosts) &&
		have.ProxyProtocol == *req.ProxyProtocol && slices.Equal(have.ServiceCIDRs, cidrs)
}

// conflict has the tenant looked at again where another broker may have been first.
func (f fileTenants) conflict(w files.Want, err error) error {
	if e, ok := errors.AsType[*admin.Error](err); ok && (e.Status == http.StatusConflict || e.Status == http.StatusNotFound) {
		return fmt.Errorf("%w: %w", files.ErrConflict, err)
	}
	return err
}

// Remove implements files.Tenants.
func (f fileTenants) Remove(ctx context.Context, name string, owner tenant.Owner) error {
	err := f.adm.RemoveTenant(admin.WithActor(ctx, owner.String()), name, func(t tenant.Tenant) bool { return t.Owner == owner })
	if e, ok := errors.AsType[*admin.Error](err); ok && e.Status == http.StatusNotFound {
		return nil
	}
	return err
}
