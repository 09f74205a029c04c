package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// MaxPast is how many CAs before the issuer a broker can still be verified by. A party that knows only an
// older one needs a new join bundle, or a new CA file.
const MaxPast = 5

// Phase says how far a rotation of the CA is.
type Phase string

// The phases, in their order.
const (
	PhaseSettled Phase = "settled" // one CA
	PhaseAdd     Phase = "add"     // the next CA is trusted, and issues nothing yet
	PhaseSwitch  Phase = "switch"  // the next CA has become the issuer; the previous is trusted, its key destroyed
)

// ErrPhase is wrapped by steps of a rotation that are not the next one.
var ErrPhase = errors.New("not the rotation's next step")

// Keyring holds the CA that issues and those beside and before it: the next and the previous one of a
// rotation, which are trusted, and the retired ones, which are not. Of the retired and of the previous there is
// no key any more.
//
// The key of each CA signs, before it goes, a link certificate for the key of the next (RFC 4210, 4.4, "new
// with old"). A broker presents the links, so that whoever knows an older CA alone, by its certificate or by
// its hash, still verifies it.
//
// A Keyring does not change: each step of a rotation returns a new one. Safe for concurrent use.
type Keyring struct {
	issuer *CA
	link   *x509.Certificate // the issuer's key, signed by the CA before it; nil: there is none
	next   *CA               // nil but in PhaseAdd
	// nextLink is the next CA's key, signed by the issuer; nil: there is none.
	nextLink *x509.Certificate
	previous *formerCA  // nil but in PhaseSwitch
	past     []formerCA // retired, newest first
}

// formerCA is a CA whose key is gone.
type formerCA struct {
	cert *x509.Certificate
	link *x509.Certificate // its key, signed by the CA before it; nil: there is none
}

// NewKeyring makes a keyring of one new CA (NewCA).
func NewKeyring(trustDomain string, now time.Time) (*Keyring, error) {
	ca, err := NewCA(trustDomain, now)
	if err != nil {
		return nil, err
	}
	return &Keyring{issuer: ca}, nil
}

// Phase tells how far a rotation is.
func (k *Keyring) Phase() Phase {
	switch {
	case k.next != nil:
		return PhaseAdd
	case k.previous != nil:
		return PhaseSwitch
	}
	return PhaseSettled
}

// Issuer returns the CA that issues.
func (k *Keyring) Issuer() *CA { return k.issuer }

// Hash returns the hash of the issuer's key, as CA.Hash.
func (k *Keyring) Hash() string { return k.issuer.Hash() }

// TrustDomain returns the one trust domain of all the CAs.
func (k *Keyring) TrustDomain() string { return k.issuer.trustDomain }

// trusted are the CAs that vouch for peers, the issuer first.
func (k *Keyring) trusted() []*x509.Certificate {
	all := []*x509.Certificate{k.issuer.cert}
	if k.next != nil {
		all = append(all, k.next.cert)
	}
	if k.previous != nil {
		all = append(all, k.previous.cert)
	}
	return all
}

// Pool returns a new pool of the CAs that are trusted: the issuer, and the next or previous one during a
// rotation.
func (k *Keyring) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, cert := range k.trusted() {
		pool.AddCert(cert)
	}
	return pool
}

// BundlePEM returns the certificates of the CAs that are trusted, the issuer's first.
func (k *Keyring) BundlePEM() []byte {
	var out []byte
	for _, cert := range k.trusted() {
		out = append(out, certPEM(cert.Raw)...)
	}
	return out
}

// Pins returns the hashes for join bundles: those of the issuer and of the one that is about to follow it.
func (k *Keyring) Pins() []string {
	pins := []string{k.issuer.Hash()}
	if k.next != nil {
		pins = append(pins, k.next.Hash())
	}
	return pins
}

// IssueNode has the issuer issue, as CA.IssueNode.
func (k *Keyring) IssueNode(csr *x509.CertificateRequest, id Identity, now time.Time, ttl time.Duration) ([]byte, error) {
	return k.issuer.IssueNode(csr, id, now, ttl)
}

// IssueAPIServer has the issuer issue, as CA.IssueAPIServer.
func (k *Keyring) IssueAPIServer(tenant string, now time.Time, ttl time.Duration) (cert, key []byte, err error) {
	return k.issuer.IssueAPIServer(tenant, now, ttl)
}

// IssueBroker has the issuer issue, as CA.IssueBroker. The chain leads on, by the link certificates, to up to
// MaxPast CAs before the issuer that have not ended.
func (k *Keyring) IssueBroker(id string, dnsNames []string, ips []net.IP, now time.Time, ttl time.Duration) (tls.Certificate, error) {
	cert, err := k.issuer.IssueBroker(id, dnsNames, ips, now, ttl)
	if err != nil {
		return tls.Certificate{}, err
	}
	link := k.link
	for _, old := range k.former() {
		if link == nil || !now.Before(link.NotAfter) {
			break
		}
		cert.Certificate = append(cert.Certificate, link.Raw, old.cert.Raw)
		link = old.link
	}
	return cert, nil
}

// former are the CAs before the issuer, newest first, as far back as links lead.
func (k *Keyring) former() []formerCA {
	var all []formerCA
	if k.previous != nil {
		all = append(all, *k.previous)
	}
	all = append(all, k.past...)
	return all[:min(len(all), MaxPast)]
}

// Add begins a rotation: it returns a keyring with a new next CA, which is trusted from now on and does not
// issue yet. An issuer that has ended, or that may not vouch for another, can't sign the link: the first is
// followed by a CA without one, the second is an error.
func (k *Keyring) Add(now time.Time) (*Keyring, error) {
	if p := k.Phase(); p != PhaseSettled {
		return nil, fmt.Errorf("add a CA: %w: the one that was begun is in phase %q; finish it first", ErrPhase, p)
	}
	next, err := NewCA(k.TrustDomain(), now)
	if err != nil {
		return nil, err
	}
	link, err := k.issuer.link(next, now)
	if err != nil {
		return nil, fmt.Errorf("add a CA: %w", err)
	}
	out := *k
	out.next, out.nextLink = next, link
	return &out, nil
}

// Switch has the next CA issue. The key of the one before is not in the keyring any more. Of the retired CAs
// the oldest falls out if there are more than MaxPast.
func (k *Keyring) Switch() (*Keyring, error) {
	if p := k.Phase(); p != PhaseAdd {
		return nil, fmt.Errorf("switch to the next CA: %w: the phase is %q, want %q", ErrPhase, p, PhaseAdd)
	}
	return &Keyring{
		issuer: k.next, link: k.nextLink,
		previous: &formerCA{cert: k.issuer.cert, link: k.link},
		past:     slices.Clone(k.past[:min(len(k.past), MaxPast-1)]),
	}, nil
}

// Retire ends a rotation: the previous CA is not trusted any more. What it issued is refused from now on.
func (k *Keyring) Retire() (*Keyring, error) {
	if p := k.Phase(); p != PhaseSwitch {
		return nil, fmt.Errorf("retire the previous CA: %w: the phase is %q, want %q", ErrPhase, p, PhaseSwitch)
	}
	out := *k
	out.previous = nil
	out.past = append([]formerCA{*k.previous}, k.past...)
	return &out, nil
}

// link signs the key of next with that of c: its certificate with another issuer, which therefore says the
// same, name constraints included. It ends with c at the latest; nil if c has ended.
func (c *CA) link(next *CA, now time.Time) (*x509.Certificate, error) {
	if c.cert.MaxPathLenZero {
		return nil, errors.New("the certificate of the CA in use forbids it to vouch for another CA (path length 0), as earlier versions made it: " +
			"it can't be rotated; set the broker up anew with an empty dataDir, and enrol the nodes with new join bundles")
	}
	if !now.Before(c.cert.NotAfter) {
		return nil, nil
	}
	tmpl := caTemplate(c.trustDomain, next.cert.Subject, now)
	tmpl.RawSubject, tmpl.SubjectKeyId = next.cert.RawSubject, next.cert.SubjectKeyId
	if tmpl.NotBefore.Before(c.cert.NotBefore) {
		tmpl.NotBefore = c.cert.NotBefore
	}
	if tmpl.NotAfter.After(c.cert.NotAfter) {
		tmpl.NotAfter = c.cert.NotAfter
	}
	der, err := sign(tmpl, c.cert, next.cert.PublicKey, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign link certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// CAInfo describes one CA of a keyring.
type CAInfo struct {
	Role      string // issuer, next, previous or retired
	Hash      string // as CA.Hash
	NotBefore time.Time
	NotAfter  time.Time
}

// CAs describes all CAs: the issuer, the next or previous one, and the retired ones that links lead to.
func (k *Keyring) CAs() []CAInfo {
	info := func(role string, cert *x509.Certificate) CAInfo {
		return CAInfo{role, hashDER(cert.RawSubjectPublicKeyInfo), cert.NotBefore, cert.NotAfter}
	}
	out := []CAInfo{info("issuer", k.issuer.cert)}
	if k.next != nil {
		out = append(out, info("next", k.next.cert))
	}
	if k.previous != nil {
		out = append(out, info("previous", k.previous.cert))
	}
	for _, p := range k.past {
		out = append(out, info("retired", p.cert))
	}
	return out
}
