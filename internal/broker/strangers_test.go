package broker

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// TestWhoIsKnownIsNoStranger: with room for a single stranger, boxes enrol and nodes connect one after the other over
// both transports: each gives the place back when the broker knows who it is. An API server does so on its port.
//
// Fails without Session.Admitted in serveSession, and with keep-alive on the enrolment server.
func TestWhoIsKnownIsNoStranger(t *testing.T) {
	r := startBroker(t, t.TempDir(), func(c *config.Broker) {
		c.HealthAddress = freeAddr(t)
		c.Front.Limits.MaxUnauthenticated = 1
		c.Egress.MaxUnauthenticated = 4 // one of a source
	})
	r.addTenant(t, "acme")
	bundle := r.bundle(t, "acme", 2)
	for i, tr := range []tunnel.Transport{tunnel.TransportQUIC, tunnel.TransportTCP} {
		name := fmt.Sprintf("edge-%d", i)
		r.awaitNoStrangers(t)
		b := newBox(t, bundle, name)
		r.awaitNoStrangers(t)
		if _, err := b.connect(t, tr, r.cfg.Front.Listen); err != nil {
			t.Fatalf("%s: %v", tr, err)
		}
		r.logs.await(t, `msg="node connected" tenant=acme node=`+name)
	}
	for range 3 {
		r.awaitNoStrangers(t)
		if status, _ := r.dialNode(t, "acme", "edge-0:10250"); !strings.HasPrefix(status, "200") {
			t.Errorf("dial: %s", status)
		}
	}
	// One who may ask for no identity, and would keep his connection, is hung up on once he is answered.
	asker, err := tls.Dial("tcp", r.cfg.Front.Listen, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{enrollapi.ALPN}})
	if err != nil {
		t.Fatal(err)
	}
	defer asker.Close()
	asker.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(asker, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if got, err := io.ReadAll(asker); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 404 ") {
		t.Errorf("a request without sense: %q, %v; want 404 and the end", got, err)
	}
	r.awaitNoStrangers(t)
	// One that shows nothing has the place, until it is gone.
	stranger, err := net.Dial("tcp", r.cfg.Front.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	r.awaitMetric(t, `mooring_unauthenticated_connections{port="front"} 1`)
	second, err := net.Dial("tcp", r.cfg.Front.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	second.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := second.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read = %d, %v; want the second stranger closed", n, err)
	}
	r.awaitMetric(t, `mooring_connections_refused_total{port="front",reason="total"} 1`)
	r.logs.await(t, "connections are closed at once")
}

func (r *running) awaitNoStrangers(t *testing.T) {
	t.Helper()
	r.awaitMetric(t, `mooring_unauthenticated_connections{port="front"} 0`)
	r.awaitMetric(t, `mooring_unauthenticated_connections{port="egress"} 0`)
}

// awaitMetric returns when /metrics has the line.
func (r *running) awaitMetric(t *testing.T, line string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var all []byte
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		resp, err := client.Get("http://" + r.cfg.HealthAddress + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		all, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(all), line+"\n") {
			return
		}
	}
	t.Fatalf("the metrics never had %s:\n%s", line, all)
}

// TestFault35NoHTTP2: rapid resets and endless CONTINUATIONs need HTTP/2, and no listener speaks that: not by ALPN, and
// not to one who begins with its preface. Headers in HTTP/1.1 are bounded.
//
// Fails with h2 among the protocols of the egress, or of the enrolment server (and Protocols, which keeps it off, taken out), with
// UnencryptedHTTP2 switched on for the health or admin server.
func TestFault35NoHTTP2(t *testing.T) {
	r := startBroker(t, t.TempDir(), func(c *config.Broker) { c.HealthAddress = freeAddr(t) })
	r.addTenant(t, "acme")
	e := r.issueEgress(t, "acme")
	api, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
	if err != nil {
		t.Fatal(err)
	}
	over := func(addr string, certs []tls.Certificate, alpn ...string) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			return tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: certs, NextProtos: alpn})
		}
	}
	front, egress := r.cfg.Front.Listen, r.cfg.Egress.Listen
	for name, dial := range map[string]func() (net.Conn, error){
		"front":  over(front, nil, "h2"),
		"egress": over(egress, []tls.Certificate{api}, "h2"),
	} {
		if c, err := dial(); err == nil {
			t.Errorf("%s: h2 was agreed on", name)
			c.Close()
		}
	}
	for name, tc := range map[string]struct {
		dial  func() (net.Conn, error)
		alpn  string
		mute  bool // never answers in HTTP
		bound int
	}{
		"enrolment": {dial: over(front, nil, "h2", enrollapi.ALPN), alpn: enrollapi.ALPN, bound: 16 << 10},
		"tunnel":    {dial: over(front, nil, "h2", wire.ALPN), mute: true},
		"egress":    {dial: over(egress, []tls.Certificate{api}, "h2", "http/1.1"), alpn: "http/1.1", bound: 8 << 10},
		"health":    {dial: func() (net.Conn, error) { return net.Dial("tcp", r.cfg.HealthAddress) }, bound: 16 << 10},
		"admin":     {dial: func() (net.Conn, error) { return net.Dial("unix", r.cfg.AdminSocket) }, bound: 16 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
			settings := []byte{0, 0, 0, 4, 0, 0, 0, 0, 0}
			c, err := tc.dial()
			if err != nil {
				if tc.mute {
					return
				}
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			if tc.alpn != "" {
				if got := c.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != tc.alpn {
					t.Errorf("protocol %q was agreed on, want %q", got, tc.alpn)
				}
			}
			c.Write(append([]byte(preface), settings...))
			all, _ := io.ReadAll(c) // to its end: nothing goes on after that
			if first, _, _ := strings.Cut(string(all), "\r\n"); !strings.HasPrefix(first, "HTTP/1.1 4") && !strings.HasPrefix(first, "HTTP/1.1 505") && !(tc.mute && len(all) == 0) {
				t.Errorf("the preface of HTTP/2 was answered by %q", all)
			}
			if tc.mute {
				return
			}
			c, err = tc.dial()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			resp := make(chan string, 1)
			go func() {
				line, _ := bufio.NewReader(c).ReadString('\n')
				resp <- line
			}()
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n")
			sent := 0
			for header := "X: " + strings.Repeat("y", 1000) + "\r\n"; sent < 10<<20; sent += len(header) {
				if _, err := io.WriteString(c, header); err != nil {
					break
				}
			}
			if line := <-resp; line != "" && !strings.HasPrefix(line, "HTTP/1.1 431 ") {
				t.Errorf("headers without end were answered by %q", line)
			}
			// net/http reads 4 KiB more than it is told, and everywhere the sockets' buffers take some.
			if sent >= 10<<20 {
				t.Errorf("%d MiB of headers were taken, the bound is %d KiB", sent>>20, tc.bound>>10)
			}
		})
	}
}

// TestEgressHandshake: a dial of an API server computes what decision 24 says and no more.
func TestEgressHandshake(t *testing.T) {
	r := startBroker(t, t.TempDir(), func(*config.Broker) {})
	r.addTenant(t, "acme")
	e := r.issueEgress(t, "acme")
	api, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", r.cfg.Egress.Listen, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{api}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cs := c.ConnectionState()
	if cs.CurveID != tls.X25519 {
		t.Errorf("keys were agreed on by %v, want X25519", cs.CurveID)
	}
	if n := len(cs.PeerCertificates); n != 1 {
		t.Errorf("the broker presents %d certificates, want its own alone", n)
	}
}
