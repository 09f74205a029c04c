package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"

	"github.com/mooring-edge/mooring/internal/tenant"
)

// into gives a tenant the request's upstreams and hosts, and where that says nothing those that it had.
func (r TenantRequest) into(t, had tenant.Tenant) (tenant.Tenant, error) {
	t.Upstreams, t.Hosts, t.ProxyProtocol = had.Upstreams, had.Hosts, had.ProxyProtocol
	if r.Upstreams != nil {
		t.Upstreams = *r.Upstreams
	}
	if r.Hosts != nil {
		t.Hosts = *r.Hosts
	}
	if r.ProxyProtocol != nil {
		t.ProxyProtocol = *r.ProxyProtocol
	}
	// An address that moved to where one of its upstreams was is not dialled twice.
	if r.Upstreams == nil {
		t.Upstreams = slices.DeleteFunc(slices.Clone(t.Upstreams), func(a string) bool { return a == t.Address })
	}
	if err := t.CheckFront(); err != nil {
		return t, &Error{http.StatusBadRequest, err.Error()}
	}
	return t, nil
}

// taken is the answer where a host is another tenant's.
func taken(err error) error {
	if errors.Is(err, tenant.ErrHostTaken) {
		return &Error{http.StatusConflict, err.Error()}
	}
	return err
}

// showFront adds how the tenant is reached.
func (b *Broker) showFront(out Tenant, t tenant.Tenant) Tenant {
	if name := b.Tenants.FrontName(t.Name); name != "" {
		if _, port, err := net.SplitHostPort(b.PublicEndpoint); err == nil {
			out.Front = "https://" + net.JoinHostPort(name, port)
		}
	}
	out.Hosts, out.ProxyProtocol = t.Hosts, t.ProxyProtocol
	for _, u := range b.Tenants.Upstreams(t.Name) {
		shown := Upstream{Address: u.Address, Up: u.Err == nil}
		if u.Err != nil {
			shown.Error = u.Err.Error()
		}
		out.Upstreams = append(out.Upstreams, shown)
	}
	return out
}

// nameWarnings says which of the names that lead to a tenant its API server's certificate does not have.
func (b *Broker) nameWarnings(ctx context.Context, t tenant.Tenant) []string {
	names := slices.Clone(t.Hosts)
	if name := b.Tenants.FrontName(t.Name); name != "" {
		names = append([]string{name}, names...)
	}
	warnings := make([]string, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			err := t.CheckName(ctx, name)
			switch {
			case errors.Is(err, tenant.ErrNotNamed):
				warnings[i] = fmt.Sprintf("the API server's certificate is not for %s, so clients that come by that name will refuse it: add it to the certificate (kubeadm: apiServer.certSANs; Kamaji: spec.networkProfile.certSANs)", name)
			case err != nil:
				warnings[i] = fmt.Sprintf("whether clients can come by the name %s is not known: %v", name, err)
			}
		})
	}
	wg.Wait()
	return slices.DeleteFunc(warnings, func(w string) bool { return w == "" })
}
