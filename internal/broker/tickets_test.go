package broker

import (
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// ticketCache keeps what a client of tenant A is given, and offers it for tenant B's connection.
type ticketCache struct {
	mu   sync.Mutex
	kept *tls.ClientSessionState
	puts int
}

func (c *ticketCache) Get(string) (*tls.ClientSessionState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kept, c.kept != nil
}

func (c *ticketCache) Put(_ string, s *tls.ClientSessionState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s != nil {
		c.kept = s
		c.puts++
	}
}

// TestFault32TicketOfAnotherTenant: no listener of the broker hands out a session ticket, so none of tenant A's can
// make a connection that passes B, or A after it was barred; each connection shows its certificate.
func TestFault32TicketOfAnotherTenant(t *testing.T) {
	r := startBroker(t, t.TempDir())
	var nodes, apis []tls.Certificate
	for _, tenant := range []string{"acme", "globex"} {
		r.addTenant(t, tenant)
		b := newBox(t, r.bundle(t, tenant, 1), "edge-1")
		node, err := tls.X509KeyPair([]byte(b.enrol.Certificate), b.keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		e := r.issueEgress(t, tenant)
		api, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
		if err != nil {
			t.Fatal(err)
		}
		nodes, apis = append(nodes, node), append(apis, api)
	}
	for _, tc := range []struct {
		name, addr, alpn, say string
		max                   uint16
		certs                 []tls.Certificate
	}{
		{"egress", r.cfg.Egress.Listen, "", "CONNECT edge-1:1 HTTP/1.1\r\nHost: x\r\n\r\n", tls.VersionTLS13, apis},
		{"egress with TLS 1.2", r.cfg.Egress.Listen, "", "CONNECT edge-1:1 HTTP/1.1\r\nHost: x\r\n\r\n", tls.VersionTLS12, apis},
		{"enrolment", r.cfg.Front.Listen, enrollapi.ALPN, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", tls.VersionTLS13, nodes},
		{"tunnel over TCP", r.cfg.Front.Listen, wire.ALPN, "neither a preamble nor anything else", tls.VersionTLS13, nodes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cache := &ticketCache{}
			for range 2 { // twice round: A, B, A, B
				for i, cert := range tc.certs {
					cfg := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: cache, MaxVersion: tc.max, Certificates: []tls.Certificate{cert}}
					if tc.alpn != "" {
						cfg.NextProtos = []string{tc.alpn}
					}
					conn, err := tls.Dial("tcp", tc.addr, cfg)
					if err != nil {
						t.Fatal(err)
					}
					conn.SetDeadline(time.Now().Add(20 * time.Second))
					fmt.Fprint(conn, tc.say)
					// With TLS 1.3 a ticket comes behind the handshake, when something is read.
					if n, err := conn.Read(make([]byte, 1024)); n == 0 && err != io.EOF {
						t.Errorf("client %d read nothing: %v", i, err)
					}
					if conn.ConnectionState().DidResume {
						t.Errorf("client %d resumed the session of another", i)
					}
					conn.Close()
				}
			}
			if cache.puts > 0 {
				t.Errorf("%d session tickets were handed out", cache.puts)
			}
		})
	}
}

// TestFault32NoCertificateNoSession: a client that has no certificate of its own gets in nowhere, whatever its cache holds.
func TestFault32NoCertificateNoSession(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	for _, tr := range []tunnel.Transport{tunnel.TransportQUIC, tunnel.TransportTCP} {
		d := &tunnel.Dialer{Endpoint: r.cfg.Front.Listen, Transport: tr, TLS: &tls.Config{
			InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error { return nil },
			ClientSessionCache: tls.NewLRUClientSessionCache(4),
		}}
		s, err := d.Dial(t.Context())
		if err == nil {
			s.Close(wire.Shutdown, "")
		}
		if !tunnel.CertificateRefused(err) {
			t.Errorf("%s without a certificate: %v; want it refused", tr, err)
		}
	}
	if strings.Contains(r.logs.String(), "node connected") {
		t.Error("a session was made")
	}
}
