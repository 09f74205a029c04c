// Package egress is what an API server calls to reach its own nodes: HTTP CONNECT over mTLS, the
// HTTPConnect protocol of kube-apiserver's egress selector (KEP-1281, k8s.io/apiserver/pkg/server/egressselector), or a
// stream of the session that a sidecar of the API server keeps (internal/egressproxy). Both are answered in one way.
//
// The tenant is what the client certificate says and nothing else. The package knows no sessions and
// no nodes: it hands each request to a Dialer and joins the two connections. Each dial has a name, a W3C
// trace context, by which it is found in the logs of both ends.
package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/httpconnect"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/strangers"
	"github.com/mooring-edge/mooring/internal/tracing"
	"github.com/mooring-edge/mooring/internal/underway"
)

// Dialer reaches an address as a tenant's API server knows it, e.g. "edge-1:10250". A refusal is a
// *tunnel.RefusedError.
type Dialer interface {
	Dial(ctx context.Context, tenant, addr string) (net.Conn, error)
}

// Config is what a Server is made of.
type Config struct {
	// TLS must demand and verify a client certificate of role apiserver. It is used as it is, but for
	// the protocols: the egress selector's client speaks HTTP/1.1 only.
	TLS *tls.Config
	// Dialer finds the node.
	Dialer Dialer
	// Authorize says whether a verified certificate still speaks for the tenant in its identity.
	Authorize func(id pki.Identity, cert *x509.Certificate) error
	// DialTimeout bounds a dial; the API server itself waits for the answer without a deadline, so
	// there always is one. Default 20 s.
	DialTimeout time.Duration
	// MaxPending is how many of a tenant's dials may wait for an answer, whichever way they came. One more is refused
	// as overloaded, at once. Default 500.
	MaxPending int
	// Enter is asked for each connection that is accepted: over a bound it returns an error, and the connection
	// is closed at once. leave, which is to do nothing but the first time, is called when the peer is known or
	// the connection closed. It must not block. nil: no bound.
	Enter func(remote net.Addr) (leave func(), err error)
	// Registerer takes the metrics; nil leaves them out.
	Registerer prometheus.Registerer
	// Tracer names each dial, and makes spans of it. nil: names alone.
	Tracer *tracing.Tracer
	Logger *slog.Logger
	// Audit takes a line for each refused dial, within bounds; nil drops them.
	Audit *audit.Log
}

// Server answers CONNECT requests, and streams of sidecars. Safe for concurrent use.
type Server struct {
	cfg      Config
	requests *requests
	refusals refusals
	open     underway.Count
}

// New makes a Server; it starts nothing.
func New(cfg Config) *Server {
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = 20 * time.Second
	}
	if cfg.MaxPending == 0 {
		cfg.MaxPending = 500
	}
	if cfg.Enter == nil {
		cfg.Enter = func(net.Addr) (func(), error) { return func() {}, nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, requests: newRequests(cfg.MaxPending), refusals: refusals{log: cfg.Audit}}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(s.requests.dials, s.requests.gauge)
	}
	return s
}

const (
	// headerTimeout bounds the TLS handshake and the reading of the request line and headers.
	headerTimeout = 10 * time.Second
	// maxHeader bounds a request's headers, in bytes; the egress selector sends about 100.
	maxHeader = 8 << 10
)

// Serve accepts API servers on l until ctx ends, then closes l and every connection that is not yet
// joined to a node's, and returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	tlsConfig := s.cfg.TLS.Clone()
	tlsConfig.NextProtos = []string{"http/1.1"}
	var http1 http.Protocols
	http1.SetHTTP1(true)
	srv := &http.Server{
		Handler:           s,
		TLSConfig:         tlsConfig,
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    maxHeader,
		// HTTP/2 has no hijacking and ways of its own to flood: keep it off this listener.
		Protocols:   &http1,
		ErrorLog:    slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: withGuest,
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	err := srv.ServeTLS(guests{l, s.cfg.Enter, strangers.NewTurns(handshakesEach())}, "", "")
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("egress listener %s: %w", l.Addr(), err)
}

// ServeHTTP answers one CONNECT request and, if the dial succeeds, carries its bytes until both
// directions end.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// What is answered here and not by the splice is the last of its connection, which would idle unbounded.
	w.Header().Set("Connection", "close")
	defer s.open.Begin()()
	v := s.decide(r)
	switch {
	case errors.Is(v.err, errMethod):
		w.Header().Set("Allow", http.MethodConnect)
		http.Error(w, v.err.Error(), http.StatusMethodNotAllowed)
		return
	case v.err != nil:
		httpconnect.Refuse(w, v.code.HTTPStatus(), httpconnect.Reason(v.err.Error(), v.trace.String()))
		return
	}
	client, err := httpconnect.Accept(w)
	v.carry(client, err)
}

var errMethod = errors.New("this port takes CONNECT requests of kube-apiserver's egress selector only")

// decide finds out who calls and dials. When it returns, all that is counted of the request is.
func (s *Server) decide(r *http.Request) verdict {
	id, err := identity(r)
	c := call{id: id, source: r.RemoteAddr, target: r.Host}
	defer s.requests.enter(id.Tenant)() // before it is known that there is the tenant: see Forget
	if err == nil {
		err = s.cfg.Authorize(id, r.TLS.PeerCertificates[0])
	}
	if err != nil {
		return s.forbid(c, err)
	}
	admitted(r.Context())
	if r.Method != http.MethodConnect {
		return verdict{err: errMethod}
	}
	c.parent = traceparent(r.Header)
	return s.dial(r.Context(), c)
}

// Forget drops the metrics of a tenant that Authorize lets nobody speak for any more, once what is under way for it was
// answered.
func (s *Server) Forget(tenant string) { s.requests.forget(tenant) }

// identity is the caller's, from the certificate that the TLS handshake verified.
func identity(r *http.Request) (pki.Identity, error) {
	if r.TLS == nil {
		return pki.Identity{}, errors.New("no TLS")
	}
	id, err := pki.PeerIdentity(*r.TLS)
	if err != nil {
		return pki.Identity{}, err
	}
	if id.Role != pki.RoleAPIServer {
		return pki.Identity{}, notAPIServer(id)
	}
	return id, nil
}

func notAPIServer(id pki.Identity) error { return fmt.Errorf("identity %s is not an API server's", id) }
