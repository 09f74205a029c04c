package front

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/proxyproto"
)

// TestBehindABalancer: who comes by a balancer that is believed is known by the address that this names, to the bounds, to the route and to the API
// server; a header is wanted from there, and from nowhere else. Seen failing with Balancers nil, with
// introduced passing on the balancer's own address, and with every source taken for a balancer.
func TestBehindABalancer(t *testing.T) {
	d := &directory{tenants: map[string]string{"acme": apiServer(t, "acme")}}
	var mu sync.Mutex
	var entered []string
	routed := make(chan [2]string, 1)
	cfg := Config{
		Balancers: prefixes("127.0.0.1/32", "2001:db8::/64"), Passthrough: Passthrough{Upstreams: d},
		Enter: func(a net.Addr) (func(), error) {
			mu.Lock()
			defer mu.Unlock()
			entered = append(entered, a.String())
			return func() {}, nil
		},
		Routes: []Route{{"a/1", func(_ context.Context, c net.Conn) {
			_, tcp := c.(interface{ NetConn() net.Conn }).NetConn().(*net.TCPConn)
			closer, half := c.(interface{ CloseWrite() error })
			if half {
				half = closer.CloseWrite() == nil
			}
			routed <- [2]string{c.RemoteAddr().String(), fmt.Sprint(tcp, half)}
			c.Close()
		}}},
	}
	addr := serve(t, cfg)
	client, front := &net.TCPAddr{IP: net.ParseIP("192.0.2.7"), Port: 4242}, &net.TCPAddr{IP: net.ParseIP("198.51.100.1"), Port: 8443}
	by := func(from net.Addr, hello []byte) net.Conn {
		c := dial(t, addr)
		c.Write(append(proxyproto.Append(nil, from, front), hello...))
		return c
	}
	next := func() [2]string {
		t.Helper()
		select {
		case got := <-routed:
			return got
		case <-time.After(10 * time.Second):
			t.Fatal("nothing was routed")
			panic("unreachable")
		}
	}
	by(client, clientHelloBytes(t, config("a/1")))
	if got := next(); got != [2]string{client.String(), "true true"} {
		t.Errorf("the route saw %v, want the client's address, the socket, and a half-close", got)
	}
	own := by(nil, clientHelloBytes(t, config("a/1"))) // LOCAL: the balancer's own
	if got := next(); got[0] != own.LocalAddr().String() {
		t.Errorf("the balancer's own connection came from %s", got[0])
	}
	c := tls.Client(by(client, nil), &tls.Config{ServerName: "acme" + domain, InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if d.clients[0] != client.String() {
		t.Errorf("the API server was dialled for %v", d.clients)
	}
	bare := dial(t, addr)
	bare.Write(clientHelloBytes(t, config("a/1")))
	if got, err := io.ReadAll(bare); len(got) > 0 {
		t.Errorf("a balancer's connection without a header: %q, %v", got, err)
	}
	mu.Lock()
	if want := []string{client.String(), own.LocalAddr().String(), client.String()}; fmt.Sprint(entered) != fmt.Sprint(want) {
		t.Errorf("places were asked for by %v, want %v", entered, want)
	}
	mu.Unlock()

	// From elsewhere a header is nonsense, and believed by nobody.
	cfg.Balancers = prefixes("192.0.2.0/24")
	addr = serve(t, cfg)
	if got, _ := io.ReadAll(by(client, clientHelloBytes(t, config("a/1")))); len(got) > 0 {
		t.Errorf("a header of nobody's: %q", got)
	}
	direct := dial(t, addr)
	direct.Write(clientHelloBytes(t, config("a/1")))
	if got := next(); got[0] != direct.LocalAddr().String() {
		t.Errorf("who came directly came from %s", got[0])
	}
}

// TestSlowBalancer: a balancer's connection has one deadline for header and hello, and there is a bound on those without one.
func TestSlowBalancer(t *testing.T) {
	reg := prometheus.NewRegistry()
	addr := serve(t, Config{Balancers: prefixes("127.0.0.0/8"), MaxHeaders: 1, HelloTimeout: 300 * time.Millisecond, Registerer: reg})
	began := time.Now()
	first := dial(t, addr)
	for counter(t, reg, "overloaded") == 0 { // until the first has its place
		c := dial(t, addr)
		c.Read(make([]byte, 1))
		if time.Since(began) > 10*time.Second {
			t.Fatal("a second was let wait")
		}
	}
	if n, err := first.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("the silent one got %d bytes, %v", n, err)
	}
	if got := counter(t, reg, "timeout"); got == 0 {
		t.Error("the silent one is not counted as timed out")
	}
}
