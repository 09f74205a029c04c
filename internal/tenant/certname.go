package tenant

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// nameCheckTimeout bounds CheckName.
const nameCheckTimeout = 5 * time.Second

// ErrNotNamed says that an API server's certificate does not have a name.
var ErrNotNamed = errors.New("not in the API server's certificate")

// CheckName asks the tenant's API server, as a client would that knows it by this name, and verifies what it shows by the
// tenant's CA. ErrNotNamed: it is the tenant's, and has not that name.
func (t Tenant) CheckName(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, nameCheckTimeout)
	defer cancel()
	raw, err := t.dial(ctx)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(t.CA)
	c := tls.Client(raw, &tls.Config{ServerName: name, RootCAs: roots})
	defer c.Close()
	err = c.HandshakeContext(ctx)
	if wrong, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Errorf("tenant %s: %s is %w, which is for %v", t.Name, name, ErrNotNamed, wrong.Certificate.DNSNames)
	}
	if err != nil {
		return fmt.Errorf("tenant %s: TLS with the API server as %s: %w", t.Name, name, err)
	}
	return nil
}

// CheckFront says what is wrong with the tenant's upstreams and hosts.
func (t Tenant) CheckFront() error { return errors.Join(t.validateUpstreams(), t.validateHosts()) }
