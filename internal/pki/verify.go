package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxChain bounds the certificates a peer may present. A broker's are its own, the issuer's, and two for each
// CA before that; everybody else's are one or two.
const maxChain = 2 + 2*MaxPast

// VerifyPeer returns a tls.Config.VerifyConnection that verifies the peer's
// chain against roots for the usage, reads its identity, and asks check.
// roots and now are called at each handshake, so that both may change. A nil
// check accepts every identity of the trust domain.
func VerifyPeer(roots func() *x509.CertPool, usage x509.ExtKeyUsage, now func() time.Time, check func(Identity) error) func(tls.ConnectionState) error {
	return verifyBy(roots, func(certs []*x509.Certificate, pool *x509.CertPool) (Identity, error) {
		id, _, err := verifyChain(certs, pool, usage, now())
		return id, err
	}, check)
}

// verifyBy has verify look at the chain, and check at the identity.
func verifyBy(roots func() *x509.CertPool, verify func([]*x509.Certificate, *x509.CertPool) (Identity, error), check func(Identity) error) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if err := presented(cs); err != nil {
			return err
		}
		pool := roots()
		if pool == nil {
			// x509 takes nil for the system's roots, which vouch for nobody here.
			return errors.New("verify peer: no CA is loaded")
		}
		id, err := verify(cs.PeerCertificates, pool)
		if err != nil {
			return err
		}
		return accept(check, id)
	}
}

// VerifyPinned returns a tls.Config.VerifyConnection for a client that knows
// of its server nothing but the hash of the CA's key (form: ValidHash). The
// server must present that CA's certificate and a broker's leaf that leads to
// it, directly or by the links of CAs that followed. With no hash, nothing is accepted.
func VerifyPinned(hashes []string, now func() time.Time, check func(Identity) error) func(tls.ConnectionState) error {
	pins := slices.Clone(hashes)
	return func(cs tls.ConnectionState) error {
		if err := presented(cs); err != nil {
			return err
		}
		pool, found := x509.NewCertPool(), false
		for _, cert := range cs.PeerCertificates {
			if cert.IsCA && slices.Contains(pins, hashDER(cert.RawSubjectPublicKeyInfo)) {
				pool.AddCert(cert)
				found = true
			}
		}
		if !found {
			return fmt.Errorf("verify broker: none of the CAs it presents has a pinned hash (%d pinned); "+
				"something between here and the broker answers in its place, or the join bundle is of another broker, "+
				"or the broker's CA was rotated more than %d times since it was made: make a new one there with `broker token create`", len(pins), MaxPast)
		}
		id, _, err := verifyChain(cs.PeerCertificates, pool, x509.ExtKeyUsageServerAuth, now())
		if err != nil {
			return err
		}
		if id.Role != RoleBroker {
			return fmt.Errorf("verify broker: the peer is %s, not a broker", id)
		}
		return accept(check, id)
	}
}

// PeerIdentity returns the identity of the peer of a connection whose
// handshake went through VerifyPeer or VerifyPinned.
func PeerIdentity(cs tls.ConnectionState) (Identity, error) {
	if !cs.HandshakeComplete {
		return Identity{}, errors.New("peer identity: the TLS handshake is not complete")
	}
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("%w: the peer presented no certificate", ErrIdentity)
	}
	return ParseIdentity(cs.PeerCertificates[0])
}

// presented checks no more than how many certificates there are.
func presented(cs tls.ConnectionState) error {
	switch n := len(cs.PeerCertificates); {
	case n == 0:
		return errors.New("verify peer: it presented no certificate")
	case n > maxChain:
		return fmt.Errorf("verify peer: it presented %d certificates, at most %d are allowed", n, maxChain)
	}
	return nil
}

// verifyChain returns the identity of the first certificate, and the chain that leads from it to its CA.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) (Identity, []*x509.Certificate, error) {
	// The key may be strong enough for x509 and yet not for us.
	if err := checkKey(certs[0].PublicKey); err != nil {
		return Identity{}, nil, fmt.Errorf("verify peer: %w", err)
	}
	inter := x509.NewCertPool()
	for _, cert := range certs[1:] {
		inter.AddCert(cert)
	}
	chains, err := certs[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: inter,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown && usage == x509.ExtKeyUsageServerAuth {
			err = fmt.Errorf("%w (its CA is none that is known here, nor one that follows from it: another broker, or one whose CA "+
				"was rotated more than %d times since; a new join bundle of `broker token create` helps)", err, MaxPast)
		}
		return Identity{}, nil, fmt.Errorf("verify peer's certificate at %s by this machine's clock: %w", now.UTC().Format(time.RFC3339), err)
	}
	id, err := ParseIdentity(certs[0])
	if err != nil {
		return Identity{}, nil, fmt.Errorf("verify peer: %w", err)
	}
	for _, chain := range chains {
		if td, err := trustDomainOf(chain[len(chain)-1]); err == nil && td == id.TrustDomain {
			return id, chain, nil
		}
	}
	// The name constraint in our CAs admits subdomains too.
	return Identity{}, nil, fmt.Errorf("verify peer: %w: %s is not of its CA's trust domain", ErrIdentity, id)
}

func accept(check func(Identity) error, id Identity) error {
	if check == nil {
		return nil
	}
	if err := check(id); err != nil {
		return fmt.Errorf("peer %s refused: %w", id, err)
	}
	return nil
}
