package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// Role says what kind of party an identity belongs to.
type Role string

// The roles there are, with the path each has in its URI.
const (
	RoleNode      Role = "node"      // spiffe://<trust domain>/tenant/<tenant>/node/<name>
	RoleAPIServer Role = "apiserver" // spiffe://<trust domain>/tenant/<tenant>/apiserver
	RoleBroker    Role = "broker"    // spiffe://<trust domain>/broker/<name>
)

const (
	scheme       = "spiffe"
	maxLabel     = 63
	maxSubdomain = 253
	maxURI       = 2048 // the SPIFFE ID's own limit, in bytes
)

// ErrIdentity is wrapped by every error about an identity that a certificate
// does not state, or states in a form this package does not accept.
var ErrIdentity = errors.New("no valid mooring identity")

// Identity names one party. Which fields are set depends on the role: a node
// has Tenant and Name, an API server has Tenant, a broker has Name.
type Identity struct {
	TrustDomain string
	Role        Role
	Tenant      string
	Name        string
}

// URI returns the identity as the URI that its certificate carries.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: i.TrustDomain, Path: i.path()}
}

// String returns the URI's text.
func (i Identity) String() string { return scheme + "://" + i.TrustDomain + i.path() }

func (i Identity) path() string {
	switch i.Role {
	case RoleNode:
		return "/tenant/" + i.Tenant + "/node/" + i.Name
	case RoleAPIServer:
		return "/tenant/" + i.Tenant + "/apiserver"
	case RoleBroker:
		return "/broker/" + i.Name
	}
	return "/invalid"
}

// Validate reports what is wrong with the identity: an unknown role, a name
// that is none, or a field that the role does not have.
func (i Identity) Validate() error {
	if err := ValidTrustDomain(i.TrustDomain); err != nil {
		return err
	}
	switch i.Role {
	case RoleNode:
		if err := ValidTenant(i.Tenant); err != nil {
			return err
		}
		return ValidNode(i.Name)
	case RoleAPIServer:
		if i.Name != "" {
			return fmt.Errorf("%w: an apiserver identity has no name, got %q", ErrIdentity, i.Name)
		}
		return ValidTenant(i.Tenant)
	case RoleBroker:
		if i.Tenant != "" {
			return fmt.Errorf("%w: a broker belongs to no tenant, got %q", ErrIdentity, i.Tenant)
		}
		return validSubdomain("broker id", i.Name)
	}
	return fmt.Errorf("%w: unknown role %q", ErrIdentity, i.Role)
}

// ParseIdentity reads the identity that a certificate states. It does not
// verify the certificate: use it on verified certificates only, or take
// PeerIdentity. The certificate must be a leaf with exactly one URI name.
func ParseIdentity(cert *x509.Certificate) (Identity, error) {
	if cert.IsCA {
		return Identity{}, fmt.Errorf("%w: the certificate is a CA's, a party presents a leaf", ErrIdentity)
	}
	if n := len(cert.URIs); n != 1 {
		return Identity{}, fmt.Errorf("%w: the certificate has %d URI names, want exactly one", ErrIdentity, n)
	}
	return parseURI(cert.URIs[0].String())
}

// parseURI reads an identity from the text of its URI. It works on the text,
// not on a url.URL, because that type folds away what must be refused here
// (escapes, an empty query, letter case of the scheme).
func parseURI(raw string) (Identity, error) {
	if len(raw) > maxURI {
		return Identity{}, fmt.Errorf("%w: the URI is longer than %d bytes", ErrIdentity, maxURI)
	}
	rest, ok := strings.CutPrefix(raw, scheme+"://")
	if !ok {
		return Identity{}, fmt.Errorf("%w: URI %q does not begin with %s://", ErrIdentity, raw, scheme)
	}
	seg := strings.Split(rest, "/")
	id := Identity{TrustDomain: seg[0]}
	switch {
	case len(seg) == 5 && seg[1] == "tenant" && seg[3] == "node":
		id.Role, id.Tenant, id.Name = RoleNode, seg[2], seg[4]
	case len(seg) == 4 && seg[1] == "tenant" && seg[3] == "apiserver":
		id.Role, id.Tenant = RoleAPIServer, seg[2]
	case len(seg) == 3 && seg[1] == "broker":
		id.Role, id.Name = RoleBroker, seg[2]
	default:
		return Identity{}, fmt.Errorf("%w: URI %q has no known path", ErrIdentity, raw)
	}
	// The name rules leave no room for '?', '#', '@', ':', '%', '.' alone or an
	// empty segment, so that no second spelling of an identity exists.
	if err := id.Validate(); err != nil {
		return Identity{}, fmt.Errorf("URI %q: %w", raw, err)
	}
	return id, nil
}

// ValidTenant accepts a DNS-1123 label: a-z, 0-9 and '-', at most 63
// characters, beginning and ending with a letter or a digit.
func ValidTenant(name string) error {
	if err := label(name); err != nil {
		return fmt.Errorf("%w: tenant %q: %w", ErrIdentity, name, err)
	}
	return nil
}

// ValidNode accepts a DNS-1123 subdomain, as Kubernetes does for node names:
// labels joined by '.', at most 253 characters in all.
func ValidNode(name string) error { return validSubdomain("node name", name) }

// ValidTrustDomain accepts a DNS-1123 subdomain that is no IP address.
func ValidTrustDomain(name string) error {
	if err := validSubdomain("trust domain", name); err != nil {
		return err
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return fmt.Errorf("%w: trust domain %q is an IP address, want a name", ErrIdentity, name)
	}
	return nil
}

func validSubdomain(what, name string) error {
	if len(name) > maxSubdomain {
		return fmt.Errorf("%w: %s is %d characters long, at most %d are allowed", ErrIdentity, what, len(name), maxSubdomain)
	}
	for part := range strings.SplitSeq(name, ".") {
		if err := label(part); err != nil {
			return fmt.Errorf("%w: %s %q: %w", ErrIdentity, what, name, err)
		}
	}
	return nil
}

func label(s string) error {
	if s == "" {
		return errors.New("empty, want a-z, 0-9 and '-'")
	}
	if len(s) > maxLabel {
		return fmt.Errorf("a part is %d characters long, at most %d are allowed", len(s), maxLabel)
	}
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !alnum && (c != '-' || i == 0 || i == len(s)-1) {
			return errors.New("only a-z, 0-9 and '-' are allowed, with a letter or a digit at both ends")
		}
	}
	return nil
}
