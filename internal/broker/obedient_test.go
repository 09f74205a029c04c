package broker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// serverVerify verifies a broker by a bundle, as an agent does.
func serverVerify(bundle string) pki.Verify {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(bundle))
	return pki.VerifyPeer(func() *x509.CertPool { return roots }, x509.ExtKeyUsageServerAuth, time.Now, nil)
}

// renew asks for a new certificate, knowing what the box knows.
func (b *box) renew() error {
	pair, err := tls.X509KeyPair([]byte(b.enrol.Certificate), b.keyPEM)
	if err != nil {
		return err
	}
	key, err := pki.ParseKeyPEM(b.keyPEM)
	if err != nil {
		return err
	}
	csr, err := pki.MakeCSR(key, "x")
	if err != nil {
		return err
	}
	cfg := pki.ClientTLS(func() (*tls.Certificate, error) { return &pair, nil }, serverVerify(b.enrol.CABundle))
	cfg.NextProtos = []string{enrollapi.ALPN}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	body, _ := json.Marshal(enrollapi.RenewRequest{CSR: string(csr)})
	resp, err := client.Post("https://"+b.bundle.Endpoint+enrollapi.PathRenew, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("renew: %s %s", resp.Status, answer)
	}
	return json.Unmarshal(answer, &b.enrol)
}

// trusts are the hashes of the CAs that the box knows; issuer is that of the one which signed its certificate.
func (b *box) trusts() (all []string, issuer string) {
	block, _ := pem.Decode([]byte(b.enrol.Certificate))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, ""
	}
	for block, rest := pem.Decode([]byte(b.enrol.CABundle)); block != nil; block, rest = pem.Decode(rest) {
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, ""
		}
		all = append(all, pki.SPKIHash(ca.PublicKey))
		if leaf.CheckSignatureFrom(ca) == nil {
			issuer = pki.SPKIHash(ca.PublicKey)
		}
	}
	return all, issuer
}

// live connects the box as an agent that obeys bundles: it answers with a status, renews, and says so again. What the
// broker dials at it is echoed.
func (b *box) live(t *testing.T, transport tunnel.Transport, endpoint string) *tunnel.Session {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(b.enrol.Certificate), b.keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	bundles := make(chan wire.Bundle, 8)
	d := &tunnel.Dialer{
		Endpoint: endpoint, Transport: transport,
		TLS: pki.ClientTLS(func() (*tls.Certificate, error) { return &pair, nil }, serverVerify(b.enrol.CABundle)),
		Config: tunnel.Config{
			OnBundle: func(_ *tunnel.Session, w wire.Bundle) { bundles <- w },
			Handler: func(_ context.Context, _ *tunnel.Session, r *tunnel.Request) {
				if s, err := r.Accept(); err == nil {
					io.Copy(s, s)
					s.Close()
				}
			},
		},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := d.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case w := <-bundles:
				b.obey(t, s, w)
			case <-s.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		s.Close(wire.Shutdown, "the test is over")
		wg.Wait()
	})
	return s
}

func (b *box) obey(t *testing.T, s *tunnel.Session, w wire.Bundle) {
	b.enrol.CABundle = w.CABundle
	say := func() error {
		trusts, issuer := b.trusts()
		return s.SendStatus(wire.Status{Trusts: trusts, CertificateIssuer: issuer})
	}
	err := say()
	if _, issuer := b.trusts(); err == nil && issuer != w.Issuer {
		if err = b.renew(); err == nil {
			err = say()
		}
	}
	if err != nil && s.Err() == nil {
		t.Errorf("%s: %v", b.id, err)
	}
}

// pipe is an open connection through the egress to a node that echoes.
type pipe struct {
	conn *tls.Conn
	r    *bufio.Reader
}

// openPipe connects as an API server that holds e, and knows the CA in file.
func openPipe(t *testing.T, e admin.EgressResponse, file, target string) (*pipe, error) {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(file))
	conn, err := tls.Dial("tcp", strings.TrimPrefix(e.Endpoint, "https://"), &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", target)
	p := &pipe{conn, bufio.NewReader(conn)}
	resp, err := http.ReadResponse(p.r, &http.Request{Method: http.MethodConnect})
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return p, err
}

// carries fails the test unless bytes go there and back.
func (p *pipe) carries(t *testing.T, what string) {
	t.Helper()
	msg := []byte("still there, " + what + "?")
	got := make([]byte, len(msg))
	_, err := p.conn.Write(msg)
	if err == nil {
		_, err = io.ReadFull(p.r, got)
	}
	if err != nil || !bytes.Equal(got, msg) {
		t.Fatalf("%s: the stream carries %q, %v", what, got, err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
