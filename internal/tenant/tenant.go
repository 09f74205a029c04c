package tenant

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mooring-edge/mooring/internal/pki"
)

// Tenant is one hosted control plane. Its JSON form is what the store holds.
type Tenant struct {
	// Name is a DNS label; it is part of the identity of every node.
	Name string `json:"name"`
	// Kubeconfig is the broker's own access, flattened and minified. It holds credentials.
	Kubeconfig []byte `json:"kubeconfig"`
	// Address is the host:port that the API server is dialled at: the kubeconfig's.
	Address string `json:"address"`
	// Upstreams are further addresses of the same control plane, host:port, to be dialled where those before them don't answer.
	Upstreams []string `json:"upstreams,omitempty"`
	// ProxyProtocol has each connection begin with a PROXY header of version 2, that names the client.
	ProxyProtocol bool `json:"proxyProtocol,omitempty"`
	// Hosts are DNS names, in lower case, that lead to the tenant by SNI, beside the one in the front's domain. No two tenants have one.
	Hosts []string `json:"hosts,omitempty"`
	// ServerName is the name in the API server's certificate that clients verify.
	ServerName string `json:"serverName"`
	// CA is the PEM bundle that the API server's certificate is verified by.
	CA []byte `json:"ca"`
	// CreatedAt is when the tenant was added to the broker.
	CreatedAt time.Time `json:"createdAt"`
	// Access is whose Kubeconfig it is.
	Access Access `json:"access,omitzero"`
	// ServiceCIDRs are the ranges of its Services, if the operator has to say so; none: the API server says.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs,omitempty"`
	// Owner is the object that the tenant was made for; zero = an operator made it.
	Owner Owner `json:"owner,omitzero"`
}

const (
	clientQPS   = 50
	clientBurst = 100
	userAgent   = "mooring-broker"
)

// RESTConfig is a fresh client configuration for the tenant's API server. It never goes through a proxy of
// the broker's environment: the kubelets' own connections, which the broker dials itself, would not either. Like these it tries all
// of the tenant's addresses.
func (t Tenant) RESTConfig() (*rest.Config, error) {
	c, err := clientcmd.RESTConfigFromKubeConfig(t.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("tenant %s: stored kubeconfig: %w (give it anew with `broker tenant update`)", t.Name, err)
	}
	c.UserAgent = userAgent
	c.QPS, c.Burst = clientQPS, clientBurst
	c.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	t = t.clone()
	c.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return t.dial(ctx) }
	return c, nil
}

// Equal tells whether both describe the same access to the same control plane.
func (t Tenant) Equal(o Tenant) bool {
	return t.Name == o.Name && slices.Equal(t.Upstreams, o.Upstreams) && slices.Equal(t.Hosts, o.Hosts) && t.ProxyProtocol == o.ProxyProtocol &&
		t.Address == o.Address && t.ServerName == o.ServerName &&
		bytes.Equal(t.Kubeconfig, o.Kubeconfig) && bytes.Equal(t.CA, o.CA) && t.CreatedAt.Equal(o.CreatedAt) &&
		t.Access.Account == o.Access.Account && t.Access.Issued.Equal(o.Access.Issued) && t.Access.Expires.Equal(o.Access.Expires) &&
		slices.Equal(t.Access.Warnings, o.Access.Warnings) && slices.Equal(t.ServiceCIDRs, o.ServiceCIDRs) && t.Owner == o.Owner
}

// clone makes a copy that shares no memory with t.
func (t Tenant) clone() Tenant {
	t.Kubeconfig, t.CA, t.Access.Warnings = slices.Clone(t.Kubeconfig), slices.Clone(t.CA), slices.Clone(t.Access.Warnings)
	t.Upstreams, t.Hosts = slices.Clone(t.Upstreams), slices.Clone(t.Hosts)
	t.ServiceCIDRs = slices.Clone(t.ServiceCIDRs)
	return t
}

// validate checks what the registry relies on, also for what comes out of the store.
func (t Tenant) validate() error {
	if err := pki.ValidTenant(t.Name); err != nil {
		return err
	}
	var errs []error
	if _, _, err := net.SplitHostPort(t.Address); err != nil {
		errs = append(errs, fmt.Errorf("tenant %s: address %q: %w", t.Name, t.Address, err))
	}
	errs = append(errs, t.validateUpstreams(), t.validateHosts())
	if t.ServerName == "" {
		errs = append(errs, fmt.Errorf("tenant %s: no server name to verify the API server by", t.Name))
	}
	if len(t.CA) == 0 {
		errs = append(errs, fmt.Errorf("tenant %s: no CA to verify the API server by", t.Name))
	}
	if len(t.Kubeconfig) == 0 {
		errs = append(errs, fmt.Errorf("tenant %s: no kubeconfig", t.Name))
	}
	return errors.Join(errs...)
}
