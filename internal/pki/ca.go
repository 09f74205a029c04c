package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	caLifetime = 10 * 365 * 24 * time.Hour
	// Backdate is how far before now a certificate begins, for clocks that run
	// behind the broker's.
	Backdate = 5 * time.Minute
)

// CA issues the certificates of one trust domain. Safe for concurrent use.
type CA struct {
	cert        *x509.Certificate
	key         *ecdsa.PrivateKey
	trustDomain string
}

// NewCA makes a P-256 authority for the trust domain, valid for 10 years from
// now. It can sign names of that trust domain alone: the certificate says so
// in a name constraint, which every verifier checks.
func NewCA(trustDomain string, now time.Time) (*CA, error) {
	if err := ValidTrustDomain(trustDomain); err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	// A name of its own for each key, so that who builds a chain finds the one CA that is meant.
	tmpl := caTemplate(trustDomain, pkix.Name{
		Organization: []string{"Mooring"},
		CommonName:   "Mooring CA of " + trustDomain + " " + strings.TrimPrefix(SPKIHash(&key.PublicKey), hashPrefix)[:16],
	}, now)
	der, err := sign(tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	return &CA{cert: cert, key: key, trustDomain: trustDomain}, nil
}

// caTemplate is what the certificates of an authority's key say, whoever signs them. It may vouch for other
// authorities (no path length), which the link to its successor needs.
func caTemplate(trustDomain string, subject pkix.Name, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:                     subject,
		NotBefore:                   now.Add(-Backdate),
		NotAfter:                    now.Add(caLifetime),
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		URIs:                        []*url.URL{{Scheme: scheme, Host: trustDomain}},
		PermittedURIDomains:         []string{trustDomain},
		PermittedDNSDomainsCritical: true, // of the whole extension, not of DNS alone
	}
}

// LoadCA reads an authority from what CertPEM and KeyPEM gave.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	cert, err := readCACert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	key, err := ParseKeyPEM(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("load CA key: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("load CA: the key is not the certificate's; restore the pair from one backup")
	}
	td, err := trustDomainOf(cert)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	return &CA{cert: cert, key: key, trustDomain: td}, nil
}

// readCACert reads one certificate that may sign others.
func readCACert(data []byte) (*x509.Certificate, error) {
	block, err := onePEM(data, pemCert)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, errors.New("the certificate may not sign others, it is not a CA's")
	}
	return cert, nil
}

// trustDomainOf reads the trust domain that a CA's certificate names.
func trustDomainOf(cert *x509.Certificate) (string, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].String() != scheme+"://"+cert.URIs[0].Host {
		return "", fmt.Errorf("%w: the CA does not name its trust domain (one URI spiffe://<trust domain>)", ErrIdentity)
	}
	return cert.URIs[0].Host, ValidTrustDomain(cert.URIs[0].Host)
}

// CertPEM returns the authority's certificate.
func (c *CA) CertPEM() []byte { return certPEM(c.cert.Raw) }

// KeyPEM returns the authority's key, PKCS#8 in the clear: a secret.
func (c *CA) KeyPEM() ([]byte, error) { return keyPEM(c.key) }

// Hash returns "sha256:<hex>" of the authority's public key, which agents pin.
func (c *CA) Hash() string { return hashDER(c.cert.RawSubjectPublicKeyInfo) }

// TrustDomain returns the one trust domain that the authority issues for.
func (c *CA) TrustDomain() string { return c.trustDomain }

// NotAfter returns when the authority's certificate ends.
func (c *CA) NotAfter() time.Time { return c.cert.NotAfter }

// Pool returns a new pool that holds the authority alone.
func (c *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

// IssueNode issues a client certificate to the node id for the key of the
// request; nothing else of the request is used. It returns the leaf in PEM.
// A ttl that outlasts the authority is cut to the authority's end.
func (c *CA) IssueNode(csr *x509.CertificateRequest, id Identity, now time.Time, ttl time.Duration) ([]byte, error) {
	if id.Role != RoleNode {
		return nil, fmt.Errorf("issue node certificate: identity %s is not a node's", id)
	}
	if err := checkCSR(csr); err != nil {
		return nil, fmt.Errorf("issue certificate of %s: %w", id, err)
	}
	tmpl := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := c.issue(id, tmpl, csr.PublicKey, now, ttl)
	if err != nil {
		return nil, err
	}
	return certPEM(der), nil
}

// IssueAPIServer makes a key and a client certificate for the tenant's API
// server, with which it calls the broker's egress.
func (c *CA) IssueAPIServer(tenant string, now time.Time, ttl time.Duration) (cert, key []byte, err error) {
	id := Identity{TrustDomain: c.trustDomain, Role: RoleAPIServer, Tenant: tenant}
	key, priv, err := MakeKeyPEM()
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := c.issue(id, tmpl, priv.Public(), now, ttl)
	if err != nil {
		return nil, nil, err
	}
	return certPEM(der), key, nil
}

// IssueBroker makes a key and a certificate for a broker, server and client.
// The DNS names and addresses are for clients that verify by name (an API
// server, an agent of konnectivity); a name may begin with "*.", which
// stands for one label. Our agents go by the identity. The chain includes the authority's
// certificate, because enrolling agents know only its hash.
func (c *CA) IssueBroker(id string, dnsNames []string, ips []net.IP, now time.Time, ttl time.Duration) (tls.Certificate, error) {
	ident := Identity{TrustDomain: c.trustDomain, Role: RoleBroker, Name: id}
	for _, name := range dnsNames {
		if err := validSubdomain("DNS name", strings.TrimPrefix(name, "*.")); err != nil {
			return tls.Certificate{}, fmt.Errorf("issue certificate of %s: %w", ident, err)
		}
	}
	_, priv, err := MakeKeyPEM()
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    dnsNames,
		IPAddresses: ips,
	}
	der, err := c.issue(ident, tmpl, priv.Public(), now, ttl)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue certificate of %s: %w", ident, err)
	}
	return tls.Certificate{Certificate: [][]byte{der, c.cert.Raw}, PrivateKey: priv, Leaf: leaf}, nil
}

// issue fills in what all leaves have in common, and signs.
func (c *CA) issue(id Identity, tmpl *x509.Certificate, pub crypto.PublicKey, now time.Time, ttl time.Duration) ([]byte, error) {
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	if id.TrustDomain != c.trustDomain {
		return nil, fmt.Errorf("issue certificate of %s: this CA is of trust domain %q", id, c.trustDomain)
	}
	if ttl <= 0 {
		return nil, fmt.Errorf("issue certificate of %s: lifetime %v, want more than zero", id, ttl)
	}
	if now.Before(c.cert.NotBefore) || !now.Before(c.cert.NotAfter) {
		return nil, fmt.Errorf("issue certificate of %s at %s: the CA is valid from %s to %s; check the clock", id,
			now.UTC().Format(time.RFC3339), c.cert.NotBefore.Format(time.RFC3339), c.cert.NotAfter.Format(time.RFC3339))
	}
	tmpl.Subject = pkix.Name{Organization: []string{"Mooring"}, CommonName: string(id.Role)}
	tmpl.URIs = []*url.URL{id.URI()}
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-Backdate), now.Add(ttl)
	if tmpl.NotBefore.Before(c.cert.NotBefore) {
		tmpl.NotBefore = c.cert.NotBefore
	}
	if tmpl.NotAfter.After(c.cert.NotAfter) {
		tmpl.NotAfter = c.cert.NotAfter
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.BasicConstraintsValid = true
	der, err := sign(tmpl, c.cert, pub, c.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate of %s: %w", id, err)
	}
	return der, nil
}

func sign(tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	serial := make([]byte, 16)
	rand.Read(serial) // never fails
	serial[0] |= 1    // never zero, and never short; the encoding adds a byte for the sign
	tmpl.SerialNumber = new(big.Int).SetBytes(serial)
	return x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
}

// WithoutRoots returns those of a chain of certificates, in DER, that somebody else has signed: who verifies it must know a CA that is none of the
// chain's own.
func WithoutRoots(chain [][]byte) [][]byte {
	return slices.DeleteFunc(slices.Clone(chain), func(der []byte) bool {
		cert, err := x509.ParseCertificate(der)
		return err == nil && cert.IsCA && cert.CheckSignatureFrom(cert) == nil
	})
}
