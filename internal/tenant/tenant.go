package tenant

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
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
	// Address is the host:port that the API server is dialled at.
	Address string `json:"address"`
	// ServerName is the name in the API server's certificate that clients verify.
	ServerName string `json:"serverName"`
	// CA is the PEM bundle that the API server's certificate is verified by.
	CA []byte `json:"ca"`
	// CreatedAt is when the tenant was added to the broker.
	CreatedAt time.Time `json:"createdAt"`
	// Access is whose Kubeconfig it is.
	Access Access `json:"access,omitzero"`
	// Owner is the object that the tenant was made for; zero = an operator made it.
	Owner Owner `json:"owner,omitzero"`
}

const (
	clientQPS   = 50
	clientBurst = 100
	userAgent   = "mooring-broker"
)

// RESTConfig is a fresh client configuration for the tenant's API server. It never goes through a proxy of
// the broker's environment: the kubelets' own connections, which the broker dials itself, would not either.
func (t Tenant) RESTConfig() (*rest.Config, error) {
	c, err := clientcmd.RESTConfigFromKubeConfig(t.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("tenant %s: stored kubeconfig: %w (give it anew with `broker tenant update`)", t.Name, err)
	}
	c.UserAgent = userAgent
	c.QPS, c.Burst = clientQPS, clientBurst
	c.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	return c, nil
}

// Equal tells whether both describe the same access to the same control plane.
func (t Tenant) Equal(o Tenant) bool {
	return t.Name == o.Name && t.Address == o.Address && t.ServerName == o.ServerName &&
		bytes.Equal(t.Kubeconfig, o.Kubeconfig) && bytes.Equal(t.CA, o.CA) && t.CreatedAt.Equal(o.CreatedAt) &&
		t.Access.Account == o.Access.Account && t.Access.Issued.Equal(o.Access.Issued) && t.Access.Expires.Equal(o.Access.Expires) &&
		slices.Equal(t.Access.Warnings, o.Access.Warnings) && t.Owner == o.Owner
}

// clone makes a copy that shares no memory with t.
func (t Tenant) clone() Tenant {
	t.Kubeconfig, t.CA, t.Access.Warnings = slices.Clone(t.Kubeconfig), slices.Clone(t.CA), slices.Clone(t.Access.Warnings)
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

const dialTimeout = 15 * time.Second

// dial opens a TCP connection to the tenant's API server, bounded by ctx and 15 seconds.
func (t Tenant) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	c, err := d.DialContext(ctx, "tcp", t.Address)
	if err != nil {
		return nil, fmt.Errorf("tenant %s: dial API server at %s: %w", t.Name, t.Address, err)
	}
	return c, nil
}
