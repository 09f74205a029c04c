package switchboard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connect makes a session over loopback and has the broker's end served by onSession; it returns the agent's.
func connect(t *testing.T, onSession func(*tunnel.Session)) *tunnel.Session {
	t.Helper()
	return connectAs(t, wire.Hello{Version: "test", Node: "edge-1"}, onSession)
}

func connectAs(t *testing.T, hello wire.Hello, onSession func(*tunnel.Session)) *tunnel.Session {
	t.Helper()
	return connectWith(t, hello, nil, onSession)
}

func connectWith(t *testing.T, hello wire.Hello, handler tunnel.Handler, onSession func(*tunnel.Session)) *tunnel.Session {
	t.Helper()
	ca, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.IssueBroker("b", []string{"localhost"}, nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := ca.IssueAPIServer("acme", time.Now(), time.Hour) // any identity: the board asks for none
	if err != nil {
		t.Fatal(err)
	}
	client, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	acceptor := tunnel.NewAcceptor(tunnel.AcceptorConfig{
		TLS: pki.ServerTLS(func() (*tls.Certificate, error) { return &server, nil },
			pki.VerifyPeer(ca.Pool, x509.ExtKeyUsageClientAuth, time.Now, nil), pki.ServerOptions{}),
		OnSession: func(_ context.Context, s *tunnel.Session) { onSession(s) },
		Logger:    slog.New(slog.DiscardHandler),
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if c, err := l.Accept(); err == nil {
			acceptor.ServeConn(context.Background(), c)
		}
	}()
	d := &tunnel.Dialer{
		Endpoint: l.Addr().String(), Transport: tunnel.TransportTCP,
		TLS: pki.ClientTLS(func() (*tls.Certificate, error) { return &client, nil },
			pki.VerifyPeer(ca.Pool, x509.ExtKeyUsageServerAuth, time.Now, nil)),
		Config: tunnel.Config{Hello: func() wire.Hello { return hello }, Handler: handler},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := d.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close(wire.Shutdown, "the test is over")
		l.Close()
		<-served
	})
	return s
}

// A node that is removed between its admission and its session's place on the board is in nobody's way of
// being cut: the board asks once more.
func TestNodeRemovedWhileItConnects(t *testing.T) {
	board := New(Config{})
	ended := make(chan struct{})
	s := connect(t, func(s *tunnel.Session) {
		defer close(ended)
		board.Enter(s, "acme", "edge-1", func() (wire.Code, error) {
			if _, ok := board.Session("acme", "edge-1"); !ok {
				t.Error("asked before Cut could find the session")
			}
			return wire.Revoked, errors.New("removed meanwhile")
		})
	})
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the session lives on")
	}
	if _, ok := board.Session("acme", "edge-1"); ok {
		t.Error("the session is still on the board")
	}
	<-s.Done()
	if e, ok := errors.AsType[*tunnel.ClosedError](s.Err()); !ok || e.Code != wire.Revoked {
		t.Errorf("the agent's end: %v; want code %s", s.Err(), wire.Revoked)
	}
}

// What tenant B has makes no difference to what tenant A is answered, nor to what is done for the answer: the search is
// given A's sessions alone, and B's are never touched.
func TestFault31AnotherTenantsNodeIsNotFound(t *testing.T) {
	alone, shared := New(Config{}), New(Config{})
	attach := func(boards []*Board, tenant, node string, addrs ...string) {
		hello := wire.Hello{Version: "test", Node: node}
		for _, a := range addrs {
			hello.Addresses = append(hello.Addresses, netip.MustParseAddr(a))
		}
		attached := make(chan struct{})
		connectAs(t, hello, func(s *tunnel.Session) {
			for _, b := range boards {
				b.Enter(s, tenant, node, func() (wire.Code, error) { return wire.OK, nil })
			}
			close(attached)
		})
		<-attached
	}
	attach([]*Board{alone, shared}, "acme", "edge-1", "192.168.1.10")
	attach([]*Board{shared}, "globex", "edge-1", "192.168.1.10")
	attach([]*Board{shared}, "globex", "edge-2", "192.168.1.20")
	attach([]*Board{shared}, "globex", "edge-3", "192.168.1.20")

	shared.SetNodes("globex", map[string]Node{"edge-2": {PodCIDRs: cidrs("10.244.2.0/24", "fd00:1::/64"), Ready: true}})
	shared.SetServiceRanges("globex", cidrs("10.96.0.0/16"))
	shared.SetServices("globex", map[netip.Addr]Backends{netip.MustParseAddr("10.96.0.10"): {Nodes: []string{"edge-2"}}})

	for elsewhere, nowhere := range map[string]string{
		"edge-2:10250": "edge-9:10250", "192.168.1.20:10250": "192.168.1.90:10250", "EDGE-3:1": "EDGE-9:1", "[::ffff:192.168.1.20]:1": "[::ffff:192.168.1.90]:1",
		"10.244.2.7:8443": "10.244.9.7:8443", "10.96.0.10:443": "10.97.0.10:443", "[fd00:1::7]:443": "[fd00:9::7]:443",
	} {
		refusal := func(b *Board, addr string) string {
			_, err := b.Dial(t.Context(), "acme", addr)
			e, ok := errors.AsType[*tunnel.RefusedError](err)
			if !ok || e.Code != wire.NotFound {
				t.Errorf("%s: %v; want code %s", addr, err, wire.NotFound)
				return ""
			}
			host, _, _ := net.SplitHostPort(addr)
			return strings.ReplaceAll(e.Message, host, "HOST")
		}
		got, want := refusal(shared, elsewhere), refusal(shared, nowhere)
		if got != want || got != refusal(alone, elsewhere) {
			t.Errorf("%s, which another tenant has: %q; %s, which nobody has: %q", elsewhere, got, nowhere, want)
		}
	}
	// The search sees the same of a board with other tenants' nodes as of one without them.
	if len(shared.sessions["acme"]) != 1 || !maps.Equal(shared.sessions["acme"], alone.sessions["acme"]) {
		t.Errorf("the search for acme is given %v", shared.sessions["acme"])
	}
	for _, host := range []string{"edge-1", "192.168.1.10"} {
		got, err := shared.find("acme", host)
		if err != nil || len(got) != 1 || got[0] != (endpoint{"edge-1", bySession{alone.sessions["acme"]["edge-1"]}}) {
			t.Errorf("%s, which both tenants have: %v, %v; want acme's own", host, got, err)
		}
	}
}
