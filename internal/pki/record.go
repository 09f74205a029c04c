package pki

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
)

// maxRecord bounds a keyring's record, in bytes: a dozen certificates and two keys have some 10 KiB.
const maxRecord = 256 << 10

// caRecord is a CA as a keyring is kept. Key is PKCS#8 in the clear, and is there for those that sign.
type caRecord struct {
	Certificate string `json:"certificate"`
	Key         string `json:"key,omitempty"`
	Link        string `json:"link,omitempty"`
}

// keyringRecord is how a keyring is kept. The issuer's fields are its own, as in the time when there was one
// CA: a record of then is one of now.
type keyringRecord struct {
	caRecord
	Next     *caRecord  `json:"next,omitempty"`
	Previous *caRecord  `json:"previous,omitempty"`
	Past     []caRecord `json:"past,omitempty"`
}

// Marshal returns the keyring as ParseKeyring reads it, keys included: a secret.
func (k *Keyring) Marshal() ([]byte, error) {
	issuer, err := k.issuer.record(k.link)
	if err != nil {
		return nil, err
	}
	r := keyringRecord{caRecord: issuer}
	if k.next != nil {
		next, err := k.next.record(k.nextLink)
		if err != nil {
			return nil, err
		}
		r.Next = &next
	}
	if k.previous != nil {
		p := k.previous.record()
		r.Previous = &p
	}
	for _, p := range k.past {
		r.Past = append(r.Past, p.record())
	}
	return json.Marshal(r)
}

func (c *CA) record(link *x509.Certificate) (caRecord, error) {
	key, err := c.KeyPEM()
	if err != nil {
		return caRecord{}, err
	}
	return caRecord{Certificate: string(c.CertPEM()), Key: string(key), Link: linkPEM(link)}, nil
}

func (f formerCA) record() caRecord {
	return caRecord{Certificate: string(certPEM(f.cert.Raw)), Link: linkPEM(f.link)}
}

func linkPEM(link *x509.Certificate) string {
	if link == nil {
		return ""
	}
	return string(certPEM(link.Raw))
}

// ParseKeyring reads what Marshal gave, and the record of a broker of one CA ({"certificate", "key"}, PEM). Each
// link is verified to be of its CA's key, by the key of the CA before it, and of the same trust domain.
func ParseKeyring(data []byte) (*Keyring, error) {
	if len(data) > maxRecord {
		return nil, fmt.Errorf("read keyring: %d bytes, at most %d", len(data), maxRecord)
	}
	var r keyringRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read keyring: %w", err)
	}
	k, err := r.keyring()
	if err != nil {
		return nil, fmt.Errorf("read keyring: %w", err)
	}
	return k, nil
}

func (r *keyringRecord) keyring() (*Keyring, error) {
	if r.Next != nil && r.Previous != nil {
		return nil, errors.New("it holds a next and a previous CA, want one of them at most")
	}
	k := &Keyring{}
	var err error
	if k.issuer, err = LoadCA([]byte(r.Certificate), []byte(r.Key)); err != nil {
		return nil, err
	}
	for _, rec := range r.Past {
		p, err := k.readFormer(rec)
		if err != nil {
			return nil, fmt.Errorf("retired CA: %w", err)
		}
		k.past = append(k.past, p)
	}
	if r.Previous != nil {
		p, err := k.readFormer(*r.Previous)
		if err != nil {
			return nil, fmt.Errorf("previous CA: %w", err)
		}
		k.previous = &p
	}
	if r.Next != nil {
		if k.next, err = LoadCA([]byte(r.Next.Certificate), []byte(r.Next.Key)); err != nil {
			return nil, fmt.Errorf("next CA: %w", err)
		}
		if k.next.trustDomain != k.TrustDomain() {
			return nil, fmt.Errorf("next CA: its trust domain is %q, the issuer's %q", k.next.trustDomain, k.TrustDomain())
		}
		if k.nextLink, err = readLink(r.Next.Link); err != nil {
			return nil, fmt.Errorf("next CA: %w", err)
		}
	}
	if k.link, err = readLink(r.Link); err != nil {
		return nil, err
	}
	return k, k.checkLinks()
}

// readFormer reads a CA whose key is gone.
func (k *Keyring) readFormer(r caRecord) (formerCA, error) {
	cert, err := readCACert([]byte(r.Certificate))
	if err != nil {
		return formerCA{}, err
	}
	td, err := trustDomainOf(cert)
	if err != nil {
		return formerCA{}, err
	}
	if td != k.TrustDomain() {
		return formerCA{}, fmt.Errorf("its trust domain is %q, the issuer's %q", td, k.TrustDomain())
	}
	link, err := readLink(r.Link)
	return formerCA{cert, link}, err
}

func readLink(data string) (*x509.Certificate, error) {
	if data == "" {
		return nil, nil
	}
	cert, err := readCACert([]byte(data))
	if err != nil {
		return nil, fmt.Errorf("link certificate: %w", err)
	}
	return cert, nil
}

// checkLinks verifies every link that there is.
func (k *Keyring) checkLinks() error {
	former := k.past
	if k.previous != nil {
		former = append([]formerCA{*k.previous}, former...)
	}
	type step struct{ ca, link, before *x509.Certificate }
	var steps []step
	if k.next != nil {
		steps = append(steps, step{k.next.cert, k.nextLink, k.issuer.cert})
	}
	ca, link := k.issuer.cert, k.link
	for _, f := range former {
		steps = append(steps, step{ca, link, f.cert})
		ca, link = f.cert, f.link
	}
	for _, s := range steps {
		if s.link == nil {
			continue
		}
		hash := hashDER(s.ca.RawSubjectPublicKeyInfo)
		if hashDER(s.link.RawSubjectPublicKeyInfo) != hash || string(s.link.RawSubject) != string(s.ca.RawSubject) {
			return fmt.Errorf("the link certificate of CA %s is for another key", hash)
		}
		if err := s.link.CheckSignatureFrom(s.before); err != nil {
			return fmt.Errorf("the link certificate of CA %s is not signed by the CA before it: %w", hash, err)
		}
		if td, err := trustDomainOf(s.link); err != nil || td != k.TrustDomain() {
			return fmt.Errorf("the link certificate of CA %s is of another trust domain", hash)
		}
	}
	return nil
}
