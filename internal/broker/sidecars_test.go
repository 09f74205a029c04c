package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// sidecarDialer makes sessions as an API server's sidecar does.
func sidecarDialer(t *testing.T, e admin.EgressResponse, transport tunnel.Transport, endpoint string) *tunnel.Dialer {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(e.CA))
	return &tunnel.Dialer{
		Endpoint: endpoint, Transport: transport,
		TLS: pki.ClientTLS(func() (*tls.Certificate, error) { return &pair, nil },
			pki.VerifyPeer(func() *x509.CertPool { return roots }, x509.ExtKeyUsageServerAuth, time.Now, nil)),
	}
}

func (r *running) sidecar(t *testing.T, e admin.EgressResponse, transport tunnel.Transport) *tunnel.Session {
	t.Helper()
	s, err := sidecarDialer(t, e, transport, e.Broker).Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(wire.Shutdown, "the test is over") })
	r.logs.await(t, `msg="sidecar of an API server connected" tenant=`)
	return s
}

func wantRefused(t *testing.T, s *tunnel.Session, kind wire.Kind, target string, code wire.Code, says string) {
	t.Helper()
	st, err := s.Open(t.Context(), kind, target)
	if err == nil {
		st.Close()
	}
	var refused *tunnel.RefusedError
	if !errors.As(err, &refused) || refused.Code != code || !strings.Contains(refused.Message, says) {
		t.Errorf("%s %q: %v; want %s with %q", kind, target, err, code, says)
	}
}

// TestSidecarDialsItsTenantsNodes: a session by an API server's certificate reaches that tenant's nodes, under one id from the
// sidecar's open to the node, and is refused all else. What a node opens is its API server and nothing else, so neither can pass
// for the other. Mechanism: adjustSession. Seen failing without it (no dial comes through), and with it for
// every session (no node is let in).
func TestSidecarDialsItsTenantsNodes(t *testing.T) {
	for _, tr := range []tunnel.Transport{tunnel.TransportTCP, tunnel.TransportQUIC} {
		t.Run(string(tr), func(t *testing.T) {
			r := startBroker(t, t.TempDir())
			r.addTenant(t, "acme")
			r.addTenant(t, "globex")
			node := newBox(t, r.bundle(t, "acme", 1), "edge-1").connectAs(t, r, line{instance(1), nil, 1})
			awaitAccepted(t, node)
			s := r.sidecar(t, r.issueEgress(t, "acme"), tr)

			trace := wire.NewTrace()
			st, err := s.Open(tunnel.WithTrace(t.Context(), trace), wire.KindDial, "edge-1:"+echoPort)
			if err != nil {
				t.Fatal(err)
			}
			wantEcho(t, st, "through the sidecar's session")
			_ = st.CloseWrite()
			if rest, err := io.ReadAll(st); err != nil || len(rest) > 0 {
				t.Errorf("the end: %q, %v", rest, err)
			}
			st.Close()
			r.logs.await(t, `msg="egress connection ended" dial=`+trace.String()+` tenant=acme target=edge-1:7 node=edge-1`)

			wantRefused(t, s, wire.KindDial, "edge-9:10250", wire.NotFound, `no connected node has the name or address "edge-9"`)
			wantRefused(t, s, wire.KindDial, "edge-1", wire.BadRequest, "want host:port")
			wantRefused(t, s, wire.KindAPI, "", wire.BadRequest, "connections to its nodes only")
			wantRefused(t, s, 77, "x", wire.BadRequest, "connections to its nodes only")
			wantRefused(t, node, wire.KindDial, "edge-1:"+echoPort, wire.BadRequest, "to its API server only")

			other := r.sidecar(t, r.issueEgress(t, "globex"), tr)
			wantRefused(t, other, wire.KindDial, "edge-1:"+echoPort, wire.NotFound, `no connected node has the name or address "edge-1"`)
			r.logs.await(t, `msg="sidecar of an API server connected" tenant=globex`)
			if n, err := r.client.Status(t.Context()); err != nil || n.Sidecars != 2 || n.Connected != 1 {
				t.Errorf("status: %d sidecars, %d nodes, %v", n.Sidecars, n.Connected, err)
			}
		})
	}
}

// TestSidecarIsCutWithItsTenant: a removed tenant's sidecars are cut at once, and its certificate speaks for nobody who has the
// name later. Several sidecars of one tenant go beside each other. Mechanism: watchTenants. Seen failing without its recheck (the
// sessions go on).
func TestSidecarIsCutWithItsTenant(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	r.addTenant(t, "globex")
	e := r.issueEgress(t, "acme")
	one, two := r.sidecar(t, e, tunnel.TransportTCP), r.sidecar(t, e, tunnel.TransportQUIC)
	r.logs.await(t, "sidecars=2")
	other := r.sidecar(t, r.issueEgress(t, "globex"), tunnel.TransportTCP)
	r.logs.await(t, `msg="sidecar of an API server connected" tenant=globex`)
	for _, s := range []*tunnel.Session{one, two} {
		wantRefused(t, s, wire.KindDial, "edge-9:1", wire.NotFound, "")
	}
	if err := r.client.RemoveTenant(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, one, wire.Revoked, "the first")
	wantEnd(t, two, wire.Revoked, "the second")
	if other.Err() != nil {
		t.Errorf("another tenant's ended: %v", other.Err())
	}
	for _, again := range []bool{false, true} {
		if again {
			time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // certificates count in seconds
			r.addTenant(t, "acme")
		}
		s, err := sidecarDialer(t, e, tunnel.TransportTCP, e.Broker).Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantEnd(t, s, wire.Revoked, "one with the old certificate")
	}
}

// TestSidecarIsCutWhenItsCertificateEnds, and no sooner. Mechanism: the expiry timer. Seen failing with the timer stopped (the
// session goes on).
func TestSidecarIsCutWhenItsCertificateEnds(t *testing.T) {
	ca, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.IssueBroker("b", []string{"localhost"}, nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	still := func(s *tunnel.Session) error {
		return pki.VerifyPeer(ca.Pool, x509.ExtKeyUsageClientAuth, time.Now, nil)(s.ConnectionState())
	}
	all := newSidecars(reg, slog.New(slog.DiscardHandler), still)
	entered := make(chan error, 1)
	acceptor := tunnel.NewAcceptor(tunnel.AcceptorConfig{
		TLS: pki.ServerTLS(func() (*tls.Certificate, error) { return &server, nil },
			pki.VerifyPeer(ca.Pool, x509.ExtKeyUsageClientAuth, time.Now, nil), pki.ServerOptions{}),
		OnSession: func(_ context.Context, s *tunnel.Session) { entered <- all.enter(s, "acme") },
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go acceptor.ServeConn(ctx, c)
		}
	}()
	t.Cleanup(func() { cancel(); l.Close(); <-served })
	connect := func(ttl time.Duration) *tunnel.Session {
		cert, key, err := ca.IssueAPIServer("acme", time.Now(), ttl)
		if err != nil {
			t.Fatal(err)
		}
		e := admin.EgressResponse{Certificate: string(cert), Key: string(key), CA: string(ca.CertPEM())}
		s, err := sidecarDialer(t, e, tunnel.TransportTCP, l.Addr().String()).Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close(wire.Shutdown, "the test is over") })
		if err := <-entered; err != nil {
			t.Fatal(err)
		}
		return s
	}
	lasting, brief := connect(time.Hour), connect(2*time.Second)
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if want := `mooring_sidecar_sessions{tenant="acme",transport="tcp"} 2`; !strings.Contains(rec.Body.String(), want) {
		t.Errorf("the metrics have no %s:\n%s", want, rec.Body)
	}
	wantEnd(t, brief, wire.Revoked, "the brief one")
	if lasting.Err() != nil || all.Count() != 1 {
		t.Errorf("the lasting one: %v; %d are counted", lasting.Err(), all.Count())
	}
}

// TestSidecarsAreBounded: a tenant has so many sessions and no more, and gets a place back. Seen failing without the bound.
func TestSidecarsAreBounded(t *testing.T) {
	r := startBroker(t, t.TempDir(), func(c *config.Broker) { c.Tunnel.MaxStreams = 10 })
	r.addTenant(t, "acme")
	e := r.issueEgress(t, "acme")
	var all []*tunnel.Session
	for range maxSidecars {
		all = append(all, r.sidecar(t, e, tunnel.TransportTCP))
	}
	for _, s := range all {
		wantRefused(t, s, wire.KindDial, "edge-9:1", wire.NotFound, "") // each was let in, and counted, by then
	}
	r.logs.await(t, "sidecars=64")
	more, err := sidecarDialer(t, e, tunnel.TransportTCP, e.Broker).Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantEnd(t, more, wire.Overloaded, "one more")
	all[0].Close(wire.OK, "")
	r.logs.await(t, `msg="sidecar's session ended" tenant=acme`)
	r.sidecar(t, e, tunnel.TransportTCP)
}

// TestSidecarMovesBeforeTheBrokerStops: with a spread a sidecar is asked to move, as nodes are, and what it carries is carried to its
// end. Mechanism: broker.drain. Seen failing without sidecars.drain (nobody asks).
func TestSidecarMovesBeforeTheBrokerStops(t *testing.T) {
	r := startBroker(t, t.TempDir(), func(c *config.Broker) {
		c.Drain = config.BrokerDrain{Spread: config.Duration{Duration: 500 * time.Millisecond}, Grace: config.Duration{Duration: time.Minute}}
	})
	r.addTenant(t, "acme")
	awaitAccepted(t, newBox(t, r.bundle(t, "acme", 1), "edge-1").connectAs(t, r, line{instance(1), nil, 1}))
	s := r.sidecar(t, r.issueEgress(t, "acme"), tunnel.TransportTCP)
	st, err := s.Open(t.Context(), wire.KindDial, "edge-1:"+echoPort)
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	within(t, s.Draining(), "the sidecar to be asked to move")
	r.logs.await(t, "draining before the end")
	wantEcho(t, st, "to the end")
	select {
	case <-stopped:
		t.Fatal("stopped while a stream was open")
	default:
	}
	_ = st.CloseWrite()
	if rest, err := io.ReadAll(st); err != nil || len(rest) > 0 {
		t.Errorf("the stream ended with %q, %v", rest, err)
	}
	st.Close()
	within(t, stopped, "the broker to stop")
	if !strings.Contains(r.logs.String(), "cut=0") {
		t.Error("something was cut")
	}
}
