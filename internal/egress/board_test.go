package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// board is a switchboard with one node, acme's edge-1, which tells by what name it knows each dial, and denies it.
type board struct {
	*switchboard.Board
	told chan wire.Trace
}

func newBoard(t *testing.T) *board {
	t.Helper()
	b := &board{Board: switchboard.New(switchboard.Config{}), told: make(chan wire.Trace, 1)}
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
	attached := make(chan struct{})
	acceptor := tunnel.NewAcceptor(tunnel.AcceptorConfig{
		TLS: pki.ServerTLS(func() (*tls.Certificate, error) { return &server, nil },
			pki.VerifyPeer(ca.Pool, x509.ExtKeyUsageClientAuth, time.Now, nil), pki.ServerOptions{}),
		OnSession: func(_ context.Context, s *tunnel.Session) {
			b.Enter(s, "acme", "edge-1", func() (wire.Code, error) { close(attached); return wire.OK, nil })
		},
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
	node := &tunnel.Dialer{
		Endpoint: l.Addr().String(), Transport: tunnel.TransportTCP,
		TLS: pki.ClientTLS(func() (*tls.Certificate, error) { return &client, nil },
			pki.VerifyPeer(ca.Pool, x509.ExtKeyUsageServerAuth, time.Now, nil)),
		Config: tunnel.Config{Handler: func(_ context.Context, _ *tunnel.Session, r *tunnel.Request) {
			b.told <- r.Trace
			r.Refuse(wire.Denied, "that is not allowed here")
		}},
	}
	s, err := node.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close(wire.Shutdown, "the test is over")
		l.Close()
		<-served
	})
	<-attached
	return b
}
