package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/httpconnect"
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

// said is a connection on which a client has said all that it has to say.
type said struct {
	net.Conn // nil: nothing else is called
	in       io.Reader
	out      bytes.Buffer
}

func (c *said) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *said) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *said) SetReadDeadline(time.Time) error  { return nil }
func (c *said) SetWriteDeadline(time.Time) error { return nil }

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
	state := tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{cert}}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &refusing{}
		s := New(Config{Dialer: d, Authorize: func(pki.Identity, *x509.Certificate) error { return nil }, Logger: slog.New(slog.DiscardHandler)})
		c := &said{in: bytes.NewReader(b)}
		r, err := httpconnect.Read(c, nil, "CONNECT only")
		status := ""
		if err == nil {
			v := s.decide(r.Watch(t.Context()), s.identify(state, "192.0.2.1:1"), r.Target, traceparent(r.Header))
			r.Refuse(v.code.HTTPStatus(), httpconnect.Reason(v.err.Error(), v.trace.String()))
			status = "404 "
			if len(d.asked) != 1 || d.asked[0] != "acme "+r.Target || !bytes.HasPrefix(b, []byte("CONNECT ")) {
				t.Fatalf("%q: asked for %q", b, d.asked)
			}
		}
		head, body, ok := strings.Cut(c.out.String(), "\r\n\r\n")
		if len(b) == 0 {
			return // there was nobody to answer
		}
		if !ok || strings.Count(head, "\n") > 4 || !strings.HasPrefix(head, "HTTP/1.1 "+status) || strings.ContainsAny(body, "\r\n") {
			t.Fatalf("%q: answered %q", b, c.out.String())
		}
	})
}
