package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

const (
	pemKey   = "PRIVATE KEY"    // PKCS#8
	pemECKey = "EC PRIVATE KEY" // SEC 1, read only
	pemCSR   = "CERTIFICATE REQUEST"
	pemCert  = "CERTIFICATE"

	minRSABits = 2048
	maxRSABits = 8192 // verifying a larger one costs the broker more than it is worth

	hashPrefix = "sha256:"
)

// ErrWeakKey is wrapped by refusals of a public key that is too weak or of an
// unknown kind.
var ErrWeakKey = errors.New("key not acceptable")

// SPKIHash returns "sha256:<hex>" of the key's SubjectPublicKeyInfo, the form
// of kubeadm's caCertHashes. It returns "" for a key of an unknown kind, which
// equals no hash of a known one.
func SPKIHash(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	return hashDER(der)
}

func hashDER(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hashPrefix + hex.EncodeToString(sum[:])
}

// ValidHash accepts what SPKIHash makes: "sha256:" and 64 hex digits.
func ValidHash(s string) error {
	digits, ok := strings.CutPrefix(s, hashPrefix)
	if b, err := hex.DecodeString(digits); !ok || err != nil || len(b) != sha256.Size {
		return fmt.Errorf("CA hash %q: want %q followed by 64 hex digits", s, hashPrefix)
	}
	return nil
}

// MakeKeyPEM makes a P-256 key, and its PKCS#8 PEM. Whoever uses the key must
// have written the PEM durably first.
func MakeKeyPEM() ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	out, err := keyPEM(key)
	if err != nil {
		return nil, nil, err
	}
	return out, key, nil
}

func keyPEM(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// ParseKeyPEM reads an ECDSA key from one PEM block, PKCS#8 or SEC 1. Errors
// never quote the input, which is a secret.
func ParseKeyPEM(data []byte) (*ecdsa.PrivateKey, error) {
	block, err := onePEM(data, pemKey, pemECKey)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	key, err := decodeKey(block)
	if err == nil {
		err = checkKey(&key.PublicKey)
	}
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	return key, nil
}

func decodeKey(block *pem.Block) (*ecdsa.PrivateKey, error) {
	if block.Type == pemECKey {
		key, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("not a SEC 1 key in DER, the file is damaged")
		}
		return key, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a PKCS#8 key in DER, the file is damaged")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it is a %T, want ECDSA", parsed)
	}
	return key, nil
}

// MakeCSR makes a certificate request in PEM. The common name is for people
// who read it; the issuer takes nothing but the key.
func MakeCSR(key crypto.Signer, cn string) ([]byte, error) {
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request for %q: %w", cn, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCSR, Bytes: der}), nil
}

// ParseCSR reads a certificate request of at most limit bytes from one PEM
// block, and checks its signature and the strength of its key.
func ParseCSR(data []byte, limit int) (*x509.CertificateRequest, error) {
	if len(data) > limit {
		return nil, fmt.Errorf("read certificate request: %d bytes, at most %d are allowed", len(data), limit)
	}
	block, err := onePEM(data, pemCSR)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	if err := checkCSR(csr); err != nil {
		return nil, err
	}
	return csr, nil
}

func checkCSR(csr *x509.CertificateRequest) error {
	// The key first: an RSA key of absurd size is refused before it is used.
	if err := checkKey(csr.PublicKey); err != nil {
		return fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return fmt.Errorf("certificate request: its signature does not match its key: %w", err)
	}
	return nil
}

func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return fmt.Errorf("%w: ECDSA on %s, want P-256 or stronger", ErrWeakKey, k.Params().Name)
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Errorf("%w: RSA of %d bits, want %d to %d", ErrWeakKey, n, minRSABits, maxRSABits)
		}
		return nil
	}
	return fmt.Errorf("%w: %T, want ECDSA, Ed25519 or RSA", ErrWeakKey, pub)
}

// onePEM decodes data that holds exactly one PEM block, of one of the types.
func onePEM(data []byte, types ...string) (*pem.Block, error) {
	want := strings.Join(types, " or ")
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return nil, fmt.Errorf("empty, want one PEM block %s", want)
	}
	// pem.Decode skips text before a block; here that would be a smuggled block.
	if !bytes.HasPrefix(data, []byte("-----BEGIN ")) {
		return nil, fmt.Errorf("want one PEM block %s and nothing before it", want)
	}
	block, rest := pem.Decode(data)
	if block == nil || bytes.Count(data, []byte("-----BEGIN ")) != 1 {
		return nil, fmt.Errorf("cut short, damaged or more than one block, want one PEM block %s", want)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("want one PEM block %s and nothing after it", want)
	}
	for _, t := range types {
		if block.Type == t {
			return block, nil
		}
	}
	return nil, fmt.Errorf("PEM block is %q, want %s", block.Type, want)
}
