package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// refusing is a Dialer that notes what it was asked and connects to nothing.
type refusing struct{ asked []string }

func (d *refusing) Dial(_ context.Context, tenant, addr string) (net.Conn, error) {
	d.asked = append(d.asked, tenant+" "+addr)
	return nil, &tunnel.RefusedError{Code: wire.NotFound, Message: "no connected node has the name " + addr}
}

// hijackable is a ResponseWriter of a connection whose writes are kept.
type hijackable struct {
	header http.Header
	status int

	over chan struct{} // closed once out is whole
	out  bytes.Buffer
}

func (h *hijackable) Header() http.Header         { return h.header }
func (h *hijackable) WriteHeader(status int)      { h.status = status }
func (h *hijackable) Write(p []byte) (int, error) { return len(p), nil }
func (h *hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	near, far := net.Pipe()
	h.over = make(chan struct{})
	go func() {
		defer close(h.over)
		_, _ = io.Copy(&h.out, far)
	}()
	return near, bufio.NewReadWriter(bufio.NewReader(near), bufio.NewWriter(near)), nil
}

// FuzzConnectRequest: whatever bytes come as a request, nothing but a CONNECT reaches the dialer, for the certificate's tenant
// and with the target as it was sent; and the answer is one line of HTTP whatever that target holds.
func FuzzConnectRequest(f *testing.F) {
	for _, s := range []string{
		"CONNECT edge-1:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "CONNECT [::1]:1 HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT / HTTP/1.1\r\nHost: globex/edge-1:10250\r\n\r\n", "CONNECT edge-1:10250 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"CONNECT http://edge-1:1/ HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "CONNECT edge\x00:1 HTTP/1.1\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	ca, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	certPEM, _, err := ca.IssueAPIServer("acme", time.Now(), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		f.Fatal(err)
	}
	state := &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{cert}}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := http.ReadRequest(bufio.NewReader(io.LimitReader(bytes.NewReader(b), maxHeader)))
		if err != nil {
			return
		}
		d := &refusing{}
		s := New(Config{Dialer: d, Authorize: func(pki.Identity, *x509.Certificate) error { return nil }, Logger: slog.New(slog.DiscardHandler)})
		r.TLS, r.RemoteAddr = state, "192.0.2.1:1"
		w := &hijackable{header: http.Header{}}
		s.ServeHTTP(w, r)
		if len(d.asked) > 1 || len(d.asked) == 1 && (r.Method != http.MethodConnect || d.asked[0] != "acme "+r.Host) {
			t.Fatalf("%q: asked for %q", b, d.asked)
		}
		if len(d.asked) == 0 && w.status != http.StatusMethodNotAllowed {
			t.Fatalf("%q: answered %d", b, w.status)
		}
		if len(d.asked) == 0 {
			return
		}
		<-w.over
		head, body, ok := strings.Cut(w.out.String(), "\r\n\r\n")
		if !ok || strings.Count(head, "\n") != 3 || !strings.HasPrefix(head, "HTTP/1.1 404 ") || strings.ContainsAny(body, "\r\n") {
			t.Fatalf("%q: answered %q", b, w.out.String())
		}
	})
}
