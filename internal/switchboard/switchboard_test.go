package switchboard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
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
		Config: tunnel.Config{Hello: func() wire.Hello { return wire.Hello{Version: "test", Node: "edge-1"} }},
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
		board.Serve(s, "acme", "edge-1", func() (wire.Code, error) {
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
