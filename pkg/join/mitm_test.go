package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

// impostor is a TLS server that answers in the broker's place and notes what it is told.
type impostor struct {
	endpoint string

	mu    sync.Mutex // guards the following fields
	conns int
	said  []byte // by clients, after their handshakes
	greet int    // handshakes that clients went through with
}

func newImpostor(t *testing.T, cert tls.Certificate) *impostor {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i := &impostor{endpoint: l.Addr().String()}
	// It takes any client and speaks whatever is asked for.
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{enrollapi.ALPN}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { i.listen(tls.Server(raw, conf)) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return i
}

func (i *impostor) listen(conn *tls.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	err := conn.Handshake()
	buf := make([]byte, 64<<10)
	n := 0
	if err == nil {
		n, _ = conn.Read(buf)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.conns++
	if err == nil {
		i.greet++
	}
	i.said = append(i.said, buf[:n]...)
}

// rogue are the certificates that somebody between the box and its broker can come up with.
func rogue(t *testing.T, real *pki.CA) map[string]tls.Certificate {
	t.Helper()
	issue := func(ca *pki.CA) tls.Certificate {
		cert, err := ca.IssueBroker("b1", []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	own := newCA(t, real.TrustDomain())
	realCA, _ := pem.Decode(real.CertPEM())
	stolen := issue(own)
	stolen.Certificate = append(stolen.Certificate, realCA.Bytes)
	instead := issue(own)
	instead.Certificate = [][]byte{instead.Certificate[0], realCA.Bytes}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	// A node's certificate is of the right CA, and yet no broker's.
	_, nodeKey, err := pki.MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	node := certificateFor(t, real, nodeKey, time.Hour).cert
	node.Certificate = append(node.Certificate, realCA.Bytes)
	return map[string]tls.Certificate{
		"of a CA of the same name":                 issue(own),
		"with the real CA's certificate beside it": stolen,
		"with the real CA's in the place of its":   instead,
		"self-signed":                              {Certificate: [][]byte{der}, PrivateKey: key},
		"of another node":                          node,
	}
}

// TestFault26MITMAtEnrolment: whoever is not the broker gets no byte of the request, let alone the token: the
// box leaves in the handshake.
func TestFault26MITMAtEnrolment(t *testing.T) {
	s := newSite(t)
	for name, cert := range rogue(t, s.broker.CA) {
		t.Run(name, func(t *testing.T) {
			i := newImpostor(t, cert)
			cfg := s.cfg
			cfg.StateDir, cfg.Endpoint, cfg.RequestTimeout = t.TempDir(), i.endpoint, 5*time.Second
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := New(cfg).enrolOnce(ctx)
			if err == nil || !strings.Contains(err.Error(), "verify") {
				t.Errorf("err %v", err)
			}
			i.check(t)
		})
	}
}

// TestFault26MITMOfAnEnrolledNode: the same for what comes after, with the CAs that the node has.
func TestFault26MITMOfAnEnrolledNode(t *testing.T) {
	s := newSite(t)
	id := s.mustAll()
	for name, cert := range rogue(t, s.broker.CA) {
		t.Run(name, func(t *testing.T) {
			i := newImpostor(t, cert)
			cfg := s.cfg
			cfg.Endpoint, cfg.RequestTimeout = i.endpoint, 5*time.Second
			j := New(cfg)
			if _, err := j.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "verify") {
				t.Errorf("renewal: %v", err)
			}
			if _, err := j.join(t.Context(), id); err == nil || !strings.Contains(err.Error(), "verify") {
				t.Errorf("join: %v", err)
			}
			i.check(t)
		})
	}
}

func (i *impostor) check(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		i.mu.Lock()
		conns, said, greet := i.conns, string(i.said), i.greet
		i.mu.Unlock()
		if conns > 0 {
			if said != "" || greet != 0 {
				t.Errorf("%d handshakes were gone through with, and the impostor was told %q", greet, said)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody came: the test proves nothing")
		}
		time.Sleep(5 * time.Millisecond) // polls a condition with a deadline
	}
}
