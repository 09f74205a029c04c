package join

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

const maxIdentity = 2 * enrollapi.MaxAnswer

// ErrNotEnrolled says that the box has no identity yet, or none that can be read.
var ErrNotEnrolled = errors.New("not enrolled")

// Identity is what the broker made of the node's key. It is one file, so that its parts always fit.
type Identity struct {
	Endpoint    string `json:"endpoint"`
	Tenant      string `json:"tenant"`
	Node        string `json:"node"`
	TrustDomain string `json:"trustDomain"`
	Certificate string `json:"certificate"` // PEM, leaf first
	CABundle    string `json:"caBundle"`    // PEM
	// TokenID names the token that was used.
	TokenID    string    `json:"tokenID,omitempty"`
	EnrolledAt time.Time `json:"enrolledAt"`

	leaf *x509.Certificate
	cert tls.Certificate
	cas  *x509.CertPool
}

// NotAfter is when the certificate expires.
func (i *Identity) NotAfter() time.Time { return i.leaf.NotAfter }

// Expired tells whether the certificate has run out. One that is not valid yet has not: the clock is
// behind, and what helps is the clock, not another certificate.
func (i *Identity) Expired(now time.Time) bool { return now.After(i.leaf.NotAfter) }

// RenewAt is when a new certificate should be asked for: after two thirds of its life, and up to a tenth
// of it later. How much later is the certificate's own, so that nodes enrolled together come one by one, and
// a node that restarts does not wait anew.
func (i *Identity) RenewAt() time.Time {
	begin := i.leaf.NotBefore.Add(pki.Backdate)
	if !begin.Before(i.leaf.NotAfter) {
		begin = i.leaf.NotBefore
	}
	life := i.leaf.NotAfter.Sub(begin)
	sum := sha256.Sum256(i.leaf.SerialNumber.Bytes())
	part := float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32)
	return begin.Add(life*2/3 + time.Duration(float64(life)/10*part))
}

// Issuer is the SPKI hash of the CA that issued the certificate; empty if it is none of the CAs that the
// node trusts (any more).
func (i *Identity) Issuer() string {
	for _, ca := range pemCertificates([]byte(i.CABundle)) {
		if i.leaf.CheckSignatureFrom(ca) == nil {
			return pki.SPKIHash(ca.PublicKey)
		}
	}
	return ""
}

// Trusts are the SPKI hashes of the CAs by which brokers are verified.
func (i *Identity) Trusts() []string {
	var out []string
	for _, ca := range pemCertificates([]byte(i.CABundle)) {
		out = append(out, pki.SPKIHash(ca.PublicKey))
	}
	return out
}

// Fingerprint is the SPKI hash that the broker knows the node by.
func (i *Identity) Fingerprint() string { return pki.SPKIHash(i.leaf.PublicKey) }

// SPIFFE is the identity in the certificate.
func (i *Identity) SPIFFE() pki.Identity {
	return pki.Identity{TrustDomain: i.TrustDomain, Role: pki.RoleNode, Tenant: i.Tenant, Name: i.Node}
}

// complete parses the identity's parts and checks that they fit each other and the key. It does not look
// at the clock: a box with a wrong one is still enrolled.
func (i *Identity) complete(key *ecdsa.PrivateKey) error {
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	if i.cert, err = tls.X509KeyPair([]byte(i.Certificate), keyPEM); err != nil {
		return fmt.Errorf("node certificate: %w", err)
	}
	i.leaf = i.cert.Leaf
	said, err := pki.ParseIdentity(i.leaf)
	if err != nil {
		return fmt.Errorf("node certificate: %w", err)
	}
	if said != i.SPIFFE() {
		return fmt.Errorf("node certificate: it is for %s, not %s", said, i.SPIFFE())
	}
	i.cas = x509.NewCertPool()
	if !i.cas.AppendCertsFromPEM([]byte(i.CABundle)) {
		return errors.New("CA bundle: no certificate in it")
	}
	return nil
}

// issuedByBundle checks that the certificate is of a CA that came with it. It is asked of a new identity
// only: later the CA may be replaced, and the certificate's CA not among those that vouch for brokers.
func (i *Identity) issuedByBundle() error {
	inter := x509.NewCertPool()
	inter.AppendCertsFromPEM([]byte(i.Certificate))
	_, err := i.leaf.Verify(x509.VerifyOptions{
		Roots: i.cas, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		CurrentTime: i.leaf.NotBefore.Add(time.Second),
	})
	if err != nil {
		return fmt.Errorf("node certificate: it is not from the CA that came with it: %w", err)
	}
	return nil
}

// LoadIdentity returns the identity on disk. ErrNotEnrolled covers an absent one, and one that is torn
// or does not belong to the key: enrolling again with the key gives the same node.
func (j *Joiner) LoadIdentity() (*Identity, error) {
	j.identityMu.Lock()
	defer j.identityMu.Unlock()
	return j.loadIdentity()
}

func (j *Joiner) loadIdentity() (*Identity, error) {
	if j.unsaved != nil {
		return j.unsaved, nil
	}
	data, err := durable.ReadFile(j.identityFile(), maxIdentity)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrNotEnrolled
	case errors.Is(err, durable.ErrTorn), errors.Is(err, durable.ErrTooLarge):
		return nil, fmt.Errorf("%w any more: %w", ErrNotEnrolled, err)
	case err != nil:
		return nil, err
	}
	key, err := readKey(j.keyFile())
	if errors.Is(err, fs.ErrNotExist) || err != nil && damaged(err) {
		return nil, fmt.Errorf("%w: there is an identity, but not its key (%v): restore %s, or run `edge-agent reset`, remove the node at the broker and enrol with a new token",
			ErrKeyDamaged, err, j.keyFile())
	}
	if err != nil {
		return nil, err
	}
	id := &Identity{}
	if err := json.Unmarshal(data, id); err != nil {
		return nil, fmt.Errorf("%w any more: %s is torn: %v", ErrNotEnrolled, j.identityFile(), err)
	}
	if err := id.complete(key); err != nil {
		return nil, fmt.Errorf("%w any more: %s: %w", ErrNotEnrolled, j.identityFile(), err)
	}
	j.clock.recall(id.leaf.NotBefore)
	j.last, j.blind = id, false
	return id, nil
}

// inUse is LoadIdentity for a process that has an identity already: where the disk does not give it any more,
// the process goes on with what it knows. Whoever comes after it finds what is on disk.
func (j *Joiner) inUse() (*Identity, error) {
	j.identityMu.Lock()
	defer j.identityMu.Unlock()
	return j.inUseLocked()
}

func (j *Joiner) inUseLocked() (*Identity, error) {
	id, err := j.loadIdentity()
	if err == nil || j.last == nil {
		return id, err
	}
	if !j.blind {
		j.blind = true
		j.cfg.Logger.Error("the node's identity can't be read from disk any more: going on with what is in memory, which ends with this process", "err", err,
			"hint", "look at the disk; `edge-agent doctor` says what the next start will find")
	}
	return j.last, nil
}

// key is the node's key, which complete has checked to be the certificate's.
func (i *Identity) key() (*ecdsa.PrivateKey, error) {
	key, ok := i.cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: it is a %T", ErrKeyDamaged, i.cert.PrivateKey)
	}
	return key, nil
}

func (j *Joiner) saveIdentity(id *Identity) error {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(id); err != nil {
		return err
	}
	return j.cfg.WriteFile(j.identityFile(), out.Bytes(), 0o600)
}

// TLS is the configuration for connections to the broker with the node's identity, which is read from
// disk at each handshake, so that a renewed one is used at once, and from memory where that fails. NextProtos is the caller's to set.
func (j *Joiner) TLS() *tls.Config {
	certificate := func() (*tls.Certificate, error) {
		id, err := j.inUse()
		if err != nil {
			return nil, err
		}
		return &id.cert, nil
	}
	return pki.ClientTLS(certificate, j.clock.verify(func(now func() time.Time) pki.Verify {
		return func(cs tls.ConnectionState) error {
			id, err := j.inUse()
			if err != nil {
				return err
			}
			return pki.VerifyPeer(func() *x509.CertPool { return id.cas }, x509.ExtKeyUsageServerAuth, now, id.isBroker)(cs)
		}
	}))
}

func (i *Identity) isBroker(peer pki.Identity) error {
	if peer.Role != pki.RoleBroker || peer.TrustDomain != i.TrustDomain {
		return fmt.Errorf("not a broker of trust domain %s", i.TrustDomain)
	}
	return nil
}
