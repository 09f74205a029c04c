package kubelet

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
)

// The kubelet's certificate manager keeps each pair (certificates, then key) in one file and points at the
// one in use with a symbolic link, which it replaces when it rotates. Its first pair is written here in
// the same form, so that its own rotation goes on from it.
const (
	pairPrefix  = "kubelet-client-"
	currentPair = pairPrefix + "current.pem"
	updatedPair = pairPrefix + "updated.pem"

	maxPair = 256 << 10
)

// Pair is a kubelet's client certificate.
type Pair struct {
	Leaf  *x509.Certificate
	Chain []*x509.Certificate // what follows the leaf
}

// LoadPair reads the current pair and checks that certificate and key belong together.
func (p Paths) LoadPair() (*Pair, error) {
	path := p.ClientCertificate()
	data, err := durable.ReadFile(path, maxPair)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, fmt.Errorf("kubelet's client certificate %s: %w", path, err)
	}
	out := &Pair{Leaf: pair.Leaf}
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("kubelet's client certificate %s: %w", path, err)
		}
		out.Chain = append(out.Chain, c)
	}
	return out, nil
}

// Usable says why the pair is of no use to node at the given time, or nil. The kubelet refuses a pair of
// which any certificate has expired, hence the chain. A pair that is not valid *yet* is kept: on a box
// whose clock is behind, that is the clock's fault, and a new certificate would not cure it.
func (p *Pair) Usable(node string, now time.Time) error {
	if want := UserName(node); p.Leaf.Subject.CommonName != want {
		return fmt.Errorf("the kubelet's client certificate is for %q, not %q", p.Leaf.Subject.CommonName, want)
	}
	if !slices.Contains(p.Leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return errors.New("the kubelet's client certificate is not for client authentication")
	}
	for _, c := range append([]*x509.Certificate{p.Leaf}, p.Chain...) {
		if now.After(c.NotAfter) {
			return fmt.Errorf("the kubelet's client certificate expired on %s", c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// IssuedBy tells whether the pair comes from a control plane with this CA.
func (p *Pair) IssuedBy(caPEM []byte) bool {
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caPEM) {
		return false
	}
	for _, c := range p.Chain {
		inter.AddCert(c)
	}
	_, err := p.Leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, CurrentTime: p.Leaf.NotBefore.Add(time.Second), // its dates are Usable's matter
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil
}

// UserName is the name that the API server knows a node's kubelet by.
func UserName(node string) string { return "system:node:" + node }

// SavePair makes the pair the current one. Older pairs stay.
func (p Paths) SavePair(certPEM, keyPEM []byte, now time.Time) error {
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return fmt.Errorf("the certificate that the control plane issued: %w", err)
	}
	if err := durable.MkdirAll(p.PKI, 0o755); err != nil {
		return err
	}
	var pair bytes.Buffer
	for rest := certPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if err := pem.Encode(&pair, block); err != nil {
			return err
		}
	}
	pair.Write(keyPEM)

	file := filepath.Join(p.PKI, pairPrefix+now.Format("2006-01-02-15-04-05")+".pem")
	if err := durable.WriteFile(file, pair.Bytes(), 0o600); err != nil {
		return err
	}
	return p.pointAt(file)
}

// pointAt makes file the current pair. The link is replaced by a rename, so that there is always one.
func (p Paths) pointAt(file string) error {
	current, updated := p.ClientCertificate(), filepath.Join(p.PKI, updatedPair)
	if info, err := os.Lstat(current); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		// A plain file, which the kubelet's manager would refuse to work with: somebody's own, so it is kept.
		if err := os.Rename(current, current+".saved"); err != nil {
			return fmt.Errorf("set aside %s, which should be a symbolic link: %w", current, err)
		}
	}
	if err := os.Remove(updated); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a link that was left behind: %w", err)
	}
	if err := os.Symlink(file, updated); err != nil {
		return fmt.Errorf("point at the kubelet's new client certificate: %w", err)
	}
	if err := os.Rename(updated, current); err != nil {
		return fmt.Errorf("point at the kubelet's new client certificate: %w", err)
	}
	dir, err := os.Open(p.PKI)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
