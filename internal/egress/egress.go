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
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/httpconnect"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/strangers"
	"github.com/mooring-edge/mooring/internal/tracing"
	"github.com/mooring-edge/mooring/internal/underway"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Dialer reaches an address as a tenant's API server knows it, e.g. "edge-1:10250". A refusal is a
// *tunnel.RefusedError.
type Dialer interface {
	Dial(ctx context.Context, tenant, addr string) (net.Conn, error)
}

// Config is what a Server is made of.
type Config struct {
	// TLS must demand and verify a client certificate of role apiserver. If it has protocols, HTTP/1.1 alone: HTTP/2 has ways of
	// its own to flood, and the egress selector's client speaks none.
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
	// acceptPause is how long nothing is accepted when that has failed: out of file descriptors, as a rule.
	acceptPause = 100 * time.Millisecond
)

// Serve accepts API servers on l until ctx ends, then closes l and every connection that is not yet
// joined to a node's, and returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	coming := guests{l, s.cfg.Enter, strangers.NewTurns(handshakesEach())}
	for {
		g, err := coming.next()
		switch {
		case err == nil:
			go s.serve(ctx, g)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("egress listener %s: %w", l.Addr(), err)
		default:
			s.cfg.Logger.Warn("egress: can't accept a connection", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
		}
	}
}

// serve has a connection's one request answered and, if the dial succeeds, carries its bytes until both directions end.
func (s *Server) serve(ctx context.Context, g *guest) {
	log := s.cfg.Logger.With("remote", g.RemoteAddr().String())
	c := tls.Server(g, s.cfg.TLS)
	defer c.Close()
	defer func() {
		if p := recover(); p != nil { // strangers are parsed here: what one of them finds ends his connection, and not the broker
			log.Error("egress: a connection was cut by an error of the program", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	stop := context.AfterFunc(ctx, func() { g.Close() })
	defer stop()
	_ = g.SetDeadline(time.Now().Add(headerTimeout))
	if err := c.Handshake(); err != nil {
		log.Debug("egress: a TLS handshake came to nothing", "err", err)
		if plain, ok := errors.AsType[tls.RecordHeaderError](err); ok && plain.Conn != nil && looksLikeHTTP(plain.RecordHeader) {
			_, _ = io.WriteString(plain.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nthis port speaks HTTPS\n")
		}
		return
	}
	p := s.identify(c.ConnectionState(), g.RemoteAddr().String())
	if p.err == nil {
		g.known()
	}
	r, err := httpconnect.Read(c, nil, "this port takes CONNECT requests of kube-apiserver's egress selector only")
	if err != nil {
		log.Debug("egress: a connection came to nothing", "err", err)
		if p.leave(); p.err != nil {
			s.forbid(call{id: p.id, source: p.source}, p.err)
		}
		return
	}
	_ = g.SetDeadline(time.Time{})
	defer s.open.Begin()()
	v := s.decide(r.Watch(ctx), p, r.Target, traceparent(r.Header))
	if v.err != nil {
		r.Refuse(v.code.HTTPStatus(), httpconnect.Reason(v.err.Error(), v.trace.String()))
		return
	}
	client, err := r.Accept()
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	v.carry(client, err)
}

// looksLikeHTTP says that what was to be the header of a record of TLS begins a request of plain HTTP.
func looksLikeHTTP(header [5]byte) bool {
	switch string(header[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "CONNE":
		return true
	}
	return false
}

// peer is who calls.
type peer struct {
	id     pki.Identity
	source string // where it comes from, for the audit log
	err    error  // why its certificate speaks for nobody
	leave  func() // to be called once what is counted of its call is
}

// identify finds out who calls, from the certificate that a TLS handshake verified.
func (s *Server) identify(cs tls.ConnectionState, source string) peer {
	id, err := identity(cs)
	p := peer{id: id, source: source, leave: s.requests.enter(id.Tenant), err: err} // before it is known that there is the tenant: see Forget
	if err == nil {
		p.err = s.cfg.Authorize(id, cs.PeerCertificates[0])
	}
	return p
}

// decide dials for a peer that may. When it returns, all that is counted of the call is.
func (s *Server) decide(ctx context.Context, p peer, target string, parent wire.Trace) verdict {
	defer p.leave()
	c := call{id: p.id, source: p.source, target: target, parent: parent}
	if p.err != nil {
		return s.forbid(c, p.err)
	}
	return s.dial(ctx, c)
}

// Forget drops the metrics of a tenant that Authorize lets nobody speak for any more, once what is under way for it was
// answered.
func (s *Server) Forget(tenant string) { s.requests.forget(tenant) }

// identity is that of an API server, from the certificate that the TLS handshake verified.
func identity(cs tls.ConnectionState) (pki.Identity, error) {
	id, err := pki.PeerIdentity(cs)
	if err == nil && id.Role != pki.RoleAPIServer {
		err = fmt.Errorf("identity %s is not an API server's", id)
	}
	return id, err
}
