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
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
)

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// request makes a CSR with whatever names a hostile node might ask for.
func request(t testing.TB, key crypto.Signer) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "system:admin", Organization: []string{"system:masters"}},
		DNSNames:    []string{"broker.example"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		URIs:        nil,
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func TestKeyRoundTrip(t *testing.T) {
	data, key, err := MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseKeyPEM(append([]byte("\n  "), append(data, '\n', '\n')...))
	if err != nil || !got.Equal(key) {
		t.Fatalf("ParseKeyPEM = %v, %v", got, err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	got, err = ParseKeyPEM(pem.EncodeToMemory(&pem.Block{Type: pemECKey, Bytes: der}))
	if err != nil || !got.Equal(key) {
		t.Fatalf("ParseKeyPEM of SEC 1 = %v, %v", got, err)
	}
}

func TestParseKeyPEMRefuses(t *testing.T) {
	good, _, err := MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, err := keyPEM(edKey)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := keyPEM(ecKey(t, elliptic.P224()))
	if err != nil {
		t.Fatal(err)
	}
	block := func(typ string, der string) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: []byte(der)})
	}
	for name, data := range map[string][]byte{
		"empty":           nil,
		"blank":           []byte(" \n"),
		"no PEM":          []byte("hunter2"),
		"cut short":       good[:len(good)-20],
		"half a file":     good[:len(good)/2],
		"two keys":        append(slices.Clone(good), good...),
		"text before":     append([]byte("x\n"), good...),
		"text after":      append(slices.Clone(good), 'x'),
		"certificate":     block(pemCert, "x"),
		"bad PKCS#8":      block(pemKey, "hunter2"),
		"bad SEC 1":       block(pemECKey, "hunter2"),
		"Ed25519":         ed,
		"P-224":           weak,
		"damaged, hidden": append([]byte("-----BEGIN PRIVATE KEY-----\n!\n"), good...),
	} {
		if key, err := ParseKeyPEM(data); err == nil {
			t.Errorf("%s: got %v, want an error", name, key)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error quotes the secret: %v", name, err)
		}
	}
}

func TestCSRKeys(t *testing.T) {
	rsaKey := func(bits int) crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		key crypto.Signer
		ok  bool
	}{
		"P-224":    {ecKey(t, elliptic.P224()), false},
		"P-256":    {ecKey(t, elliptic.P256()), true},
		"P-384":    {ecKey(t, elliptic.P384()), true},
		"P-521":    {ecKey(t, elliptic.P521()), true},
		"Ed25519":  {edKey, true},
		"RSA 1024": {rsaKey(1024), false},
		"RSA 2048": {rsaKey(2048), true},
	} {
		data, err := MakeCSR(tc.key, "edge-1")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		csr, err := ParseCSR(data, 1<<14)
		if tc.ok && (err != nil || csr.Subject.CommonName != "edge-1") {
			t.Errorf("%s: %v", name, err)
		}
		if !tc.ok && !errors.Is(err, ErrWeakKey) {
			t.Errorf("%s: %v, want ErrWeakKey", name, err)
		}
	}
	huge := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), maxRSABits), E: 65537}
	if err := checkKey(huge); !errors.Is(err, ErrWeakKey) {
		t.Errorf("RSA of %d bits: %v, want ErrWeakKey", huge.N.BitLen(), err)
	}
	if err := checkKey(nil); !errors.Is(err, ErrWeakKey) {
		t.Errorf("no key: %v, want ErrWeakKey", err)
	}
}

func TestParseCSRRefuses(t *testing.T) {
	good, err := MakeCSR(ecKey(t, elliptic.P256()), "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	forged := slices.Clone(block.Bytes)
	// The signature's last byte: the request still parses, and proves no key.
	forged[len(forged)-1] ^= 1
	encode := func(typ string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
	}
	for name, data := range map[string][]byte{
		"empty":         nil,
		"cut short":     good[:len(good)-30],
		"two":           append(slices.Clone(good), good...),
		"text before":   append([]byte("x\n"), good...),
		"wrong type":    encode("NEW CERTIFICATE REQUEST", block.Bytes),
		"no DER":        encode(pemCSR, []byte("x")),
		"bytes after":   encode(pemCSR, append(slices.Clone(block.Bytes), 0)),
		"bad signature": encode(pemCSR, forged),
	} {
		if _, err := ParseCSR(data, 1<<14); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	if _, err := ParseCSR(good, len(good)); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	if _, err := ParseCSR(good, len(good)-1); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("over the limit: %v", err)
	}
}

func TestSPKIHash(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	want := "sha256:" + hex.EncodeToString(sum[:])
	if got := SPKIHash(key.Public()); got != want {
		t.Errorf("SPKIHash = %s, want %s", got, want)
	}
	if got := SPKIHash("no key"); got != "" {
		t.Errorf("SPKIHash of no key = %q", got)
	}
	if err := ValidHash(want); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "sha256:", want[:70], want + "00", strings.TrimPrefix(want, "sha256:"), "sha1:" + want[7:], "sha256:" + strings.Repeat("g", 64)} {
		if ValidHash(bad) == nil {
			t.Errorf("ValidHash(%q) = nil", bad)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	good, err := MakeCSR(ecKey(f, elliptic.P256()), "edge-1")
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(good)
	f.Add(good)
	f.Add(block.Bytes)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	ca := newCA(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, in := range [][]byte{data, pem.EncodeToMemory(&pem.Block{Type: pemCSR, Bytes: data})} {
			csr, err := ParseCSR(in, 1<<14)
			if err != nil {
				continue
			}
			if len(in) > 1<<14 {
				t.Errorf("%d bytes were read", len(in))
			}
			if _, err := ca.IssueNode(csr, node("acme", "edge-1"), now, 1); err != nil {
				t.Errorf("a request that was read cannot be issued for: %v", err)
			}
		}
	})
}

func FuzzParseKeyPEM(f *testing.F) {
	good, key, err := MakeKeyPEM()
	if err != nil {
		f.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(good)
	f.Add(good)
	f.Add(block.Bytes)
	f.Add(sec1)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, in := range [][]byte{
			data,
			pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: data}),
			pem.EncodeToMemory(&pem.Block{Type: pemECKey, Bytes: data}),
		} {
			key, err := ParseKeyPEM(in)
			if err != nil {
				continue
			}
			out, err := keyPEM(key)
			if err != nil {
				t.Fatalf("a key that was read cannot be written: %v", err)
			}
			if again, err := ParseKeyPEM(out); err != nil || !again.Equal(key) || !bytes.Contains(out, []byte(pemKey)) {
				t.Errorf("written and read again: %v", err)
			}
		}
	})
}
