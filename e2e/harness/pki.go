package harness

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority is a small CA for what neither kubeadm nor the product makes certificates for. Its keys are RSA in PKCS#1: Kamaji
// takes the key of a DataStore's CA in no other form.
type authority struct {
	dir  string
	now  time.Time
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

func newAuthority(dir string, clock time.Duration) (*authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	a := &authority{dir: dir, now: time.Now().Add(clock)}
	return a, a.issue("ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	})
}

// issue writes NAME.crt and NAME.key. The first is the CA itself.
func (a *authority) issue(name string, tmpl *x509.Certificate) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	if tmpl.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return err
	}
	tmpl.NotBefore, tmpl.NotAfter = a.now.Add(-time.Hour), a.now.AddDate(5, 0, 0)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		return err
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			return err
		}
		a.key = key
	}
	if err := os.WriteFile(filepath.Join(a.dir, name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	return os.WriteFile(filepath.Join(a.dir, name+".key"), text, 0o600)
}

// writeDatastorePKI makes ca, server and root, the client that has all rights.
func writeDatastorePKI(dir string, clock time.Duration) error {
	a, err := newAuthority(dir, clock)
	if err != nil {
		return err
	}
	if err := a.issue("server", serving()); err != nil {
		return err
	}
	return a.issue("root", &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

// writeServingPKI makes ca and tls, and returns the former for a caBundle.
func writeServingPKI(dir string, clock time.Duration) (string, error) {
	a, err := newAuthority(dir, clock)
	if err != nil {
		return "", err
	}
	if err := a.issue("tls", serving()); err != nil {
		return "", err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	return base64.StdEncoding.EncodeToString(text), nil
}

func serving() *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}
