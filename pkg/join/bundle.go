package join

import (
	"crypto/x509"
	"errors"
	"fmt"
)

// errBundle marks a CA bundle that is not taken.
var errBundle = errors.New("bad CA bundle")

const (
	maxBundle    = 64 << 10
	maxBundleCAs = 8
)

// SaveBundle makes bundle, which a broker has sent over the tunnel, the CAs by which brokers are verified
// from now on. All of it must be CAs of the node's trust domain.
func (j *Joiner) SaveBundle(bundle string) (*Identity, error) {
	j.identityMu.Lock()
	defer j.identityMu.Unlock()
	old, err := j.inUseLocked()
	if err != nil {
		return nil, err
	}
	if old.CABundle == bundle {
		return old, nil
	}
	if _, err := parseBundle(bundle, old.TrustDomain); err != nil {
		return nil, fmt.Errorf("the broker sent a CA bundle that is not taken: %w", err)
	}
	id := &Identity{
		Endpoint: old.Endpoint, Tenant: old.Tenant, Node: old.Node, TrustDomain: old.TrustDomain, Certificate: old.Certificate,
		CABundle: bundle, TokenID: old.TokenID, EnrolledAt: old.EnrolledAt,
	}
	key, err := old.key()
	if err != nil {
		return nil, err
	}
	if err := id.complete(key); err != nil {
		return nil, err
	}
	if err := j.keepLocked(id); err != nil {
		return nil, err
	}
	j.cfg.Logger.Info("the broker's CAs have changed", "trusts", id.Trusts())
	return id, nil
}

// parseBundle reads CA certificates, all of one trust domain.
func parseBundle(bundle, trustDomain string) ([]*x509.Certificate, error) {
	if len(bundle) > maxBundle {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errBundle, len(bundle), maxBundle)
	}
	cas := pemCertificates([]byte(bundle))
	if n := len(cas); n == 0 || n > maxBundleCAs {
		return nil, fmt.Errorf("%w: %d certificates, want 1 to %d", errBundle, n, maxBundleCAs)
	}
	for _, ca := range cas {
		switch {
		case !ca.IsCA || !ca.BasicConstraintsValid || ca.KeyUsage&x509.KeyUsageCertSign == 0:
			return nil, fmt.Errorf("%w: %q is no CA", errBundle, ca.Subject)
		case len(ca.URIs) != 1 || ca.URIs[0].String() != "spiffe://"+trustDomain:
			return nil, fmt.Errorf("%w: %q is not a CA of trust domain %s", errBundle, ca.Subject, trustDomain)
		}
	}
	return cas, nil
}
