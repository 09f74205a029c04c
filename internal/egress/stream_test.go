package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// session is a sidecar's, of a tenant that f knows, whose streams come to s.
func (f *fixture) session(t *testing.T, s *Server, tenant string) *tunnel.Session {
	t.Helper()
	server, err := f.ca.IssueBroker("b", []string{"localhost"}, nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := f.ca.IssueAPIServer(tenant, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	client, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	acceptor := tunnel.NewAcceptor(tunnel.AcceptorConfig{
		TLS: pki.ServerTLS(func() (*tls.Certificate, error) { return &server, nil },
			pki.VerifyPeer(f.ca.Pool, x509.ExtKeyUsageClientAuth, time.Now, nil), pki.ServerOptions{}),
		Config: tunnel.Config{Handler: s.ServeStream},
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		if c, err := l.Accept(); err == nil {
			acceptor.ServeConn(context.Background(), c)
		}
	})
	d := &tunnel.Dialer{
		Endpoint: l.Addr().String(), Transport: tunnel.TransportTCP,
		TLS: pki.ClientTLS(func() (*tls.Certificate, error) { return &client, nil },
			pki.VerifyPeer(f.ca.Pool, x509.ExtKeyUsageServerAuth, time.Now, nil)),
	}
	session, err := d.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		session.Close(wire.Shutdown, "the test is over")
		l.Close()
		served.Wait()
	})
	return session
}

func codeAndText(err error) (wire.Code, string) {
	var refused *tunnel.RefusedError
	if errors.As(err, &refused) {
		return refused.Code, refused.Message
	}
	return wire.OK, ""
}

// TestStreamIsAnsweredLikeConnect: the dials of a tenant share one bound whichever way they come, and one metric; a refusal has its
// line in the audit log with the id that the sidecar gave it. Mechanism: Server.dial is the one way. Seen failing with
// decideStream asking the Dialer itself (no bound, no metric, no id).
func TestStreamIsAnsweredLikeConnect(t *testing.T) {
	reg := prometheus.NewRegistry()
	var audits safeBuffer
	near, far := pair(t)
	dialling, release := make(chan struct{}, 2), make(chan struct{})
	told := make(chan wire.Trace, 1)
	var srv *Server
	f := startWith(t, func(ctx context.Context, tenant, addr string) (net.Conn, error) {
		switch addr {
		case "slow:1":
			dialling <- struct{}{}
			<-release
		case "edge-1:10250":
			told <- tunnel.TraceOf(ctx)
			return near, nil
		}
		return nil, &tunnel.RefusedError{Code: wire.NotFound, Message: "nobody there for " + tenant}
	}, func(c *Config) {
		c.Registerer, c.MaxPending, c.DialTimeout, c.Audit = reg, 2, time.Minute, audit.New(&audits, nil, nil)
	}, func(s *Server) { srv = s })
	s := f.session(t, srv, "acme")

	trace := wire.NewTrace()
	st, err := s.Open(tunnel.WithTrace(t.Context(), trace), wire.KindDial, "edge-1:10250")
	if err != nil {
		t.Fatal(err)
	}
	if got := <-told; got.ID != trace.ID || got.Span == trace.Span {
		t.Errorf("the node is told %+v of %+v", got, trace)
	}
	io.WriteString(st, "hello")
	_ = st.CloseWrite()
	if got, err := io.ReadAll(far); err != nil || string(got) != "hello" {
		t.Errorf("the node read %q, %v", got, err)
	}
	io.WriteString(far, "late answer")
	far.Close()
	if got, err := io.ReadAll(st); err != nil || string(got) != "late answer" {
		t.Errorf("the sidecar read %q, %v", got, err)
	}
	st.Close()

	// One of each way waits: the next is one too many, whichever way it comes.
	var waiting sync.WaitGroup
	waiting.Go(func() { f.connect(t, "acme", "slow:1") })
	waiting.Go(func() { _, _ = s.Open(t.Context(), wire.KindDial, "slow:1") })
	<-dialling
	<-dialling
	_, err = s.Open(tunnel.WithTrace(t.Context(), trace), wire.KindDial, "edge-9:1")
	if code, text := codeAndText(err); code != wire.Overloaded || !strings.Contains(text, "2 dials of this tenant wait") {
		t.Errorf("a stream more: %v", err)
	}
	if _, _, resp := f.connect(t, "acme", "edge-9:1"); !strings.Contains(resp.Status, "2 dials of this tenant wait") {
		t.Errorf("a CONNECT more: %s", resp.Status)
	}
	if l, ok := audits.line(trace.String()); !ok || !strings.Contains(l, `"target":"edge-9:1"`) || !strings.Contains(l, "tenant/acme/apiserver") {
		t.Errorf("the audit log says %q", l)
	}
	close(release)
	waiting.Wait()
	outcomes := map[string]uint64{}
	for _, m := range family(t, reg, "mooring_egress_dial_seconds") {
		outcomes[labels(m)] = m.Histogram.GetSampleCount()
	}
	if outcomes["ok acme"] != 1 || outcomes["overloaded acme"] != 2 || outcomes["not found acme"] != 2 {
		t.Errorf("outcomes %v", outcomes)
	}

	// One whose tenant is gone.
	gone := f.session(t, srv, "gone")
	_, err = gone.Open(t.Context(), wire.KindDial, "edge-1:10250")
	if code, text := codeAndText(err); code != wire.Denied || !strings.Contains(text, "broker egress issue") {
		t.Errorf("a tenant that is gone: %v", err)
	}
	_, err = s.Open(t.Context(), wire.KindAPI, "")
	if code, _ := codeAndText(err); code != wire.BadRequest {
		t.Errorf("another kind: %v", err)
	}
}
