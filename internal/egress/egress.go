// Package egress is what an API server calls to reach its own nodes: HTTP CONNECT over mTLS, the
// HTTPConnect protocol of kube-apiserver's egress selector (KEP-1281, k8s.io/apiserver/pkg/server/egressselector).
//
// The tenant is what the client certificate says and nothing else. The package knows no sessions and
// no nodes: it hands each request to a Dialer and joins the two connections.
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
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
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
	// MaxPending is how many of a tenant's dials may wait for an answer. One more is refused as overloaded,
	// at once. Default 500.
	MaxPending int
	// Enter is asked for each connection that is accepted: over a bound it returns an error, and the connection
	// is closed at once. leave, which is to do nothing but the first time, is called when the peer is known or
	// the connection closed. It must not block. nil: no bound.
	Enter func(remote net.Addr) (leave func(), err error)
	// Registerer takes the metrics; nil leaves them out.
	Registerer prometheus.Registerer
	Logger     *slog.Logger
	// Audit takes a line for each refused dial, within bounds; nil drops them.
	Audit *audit.Log
}

// Server answers CONNECT requests. Safe for concurrent use.
type Server struct {
	cfg      Config
	dials    *prometheus.HistogramVec
	pending  *pending
	refusals refusals
	open     openDials
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
	s := &Server{cfg: cfg, pending: newPending(cfg.MaxPending), refusals: refusals{log: cfg.Audit}, dials: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "mooring_egress_dial_seconds",
		Help:    "Time from an API server's CONNECT request to its answer, by tenant and outcome.",
		Buckets: []float64{.005, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 20},
	}, []string{"tenant", "outcome"})}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(s.dials, s.pending.gauge)
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
	err := srv.ServeTLS(guests{l, s.cfg.Enter}, "", "")
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
	id, err := s.identity(r)
	if err != nil {
		s.cfg.Logger.Warn("egress request refused: its certificate does not speak for a tenant's API server", "tenant", id.Tenant, "remote", r.RemoteAddr, "err", err)
		s.refusals.record(id, r.RemoteAddr, r.Host, wire.Denied, err)
		http.Error(w, "a client certificate of an API server is needed: see `broker egress issue`", http.StatusForbidden)
		return
	}
	admitted(r.Context())
	if r.Method != http.MethodConnect {
		w.Header().Set("Allow", http.MethodConnect)
		http.Error(w, "this port takes CONNECT requests of kube-apiserver's egress selector only", http.StatusMethodNotAllowed)
		return
	}
	defer s.open.begin()()
	started := time.Now()
	node, err := s.dial(r, id.Tenant)
	took := time.Since(started)
	code := codeOf(err)
	s.dials.WithLabelValues(id.Tenant, code.String()).Observe(took.Seconds())
	log := s.cfg.Logger.With("tenant", id.Tenant, "target", r.Host)
	if err != nil {
		log.Info("egress dial refused", "code", code.String(), "took", took, "err", err)
		s.refusals.record(id, r.RemoteAddr, r.Host, code, err)
		refuse(w, code, err)
		return
	}
	client, err := hijack(w)
	if err != nil {
		log.Error("egress connection lost before its answer", "err", err)
		node.Close()
		return
	}
	toNode, toClient, err := splice.Splice(client, node)
	log.Debug("egress connection ended", "toNode", toNode, "toAPIServer", toClient, "err", err)
}

func (s *Server) dial(r *http.Request, tenant string) (net.Conn, error) {
	end, err := s.pending.begin(tenant)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.DialTimeout)
	defer cancel()
	return s.cfg.Dialer.Dial(ctx, tenant, r.Host)
}

// identity is the caller's, from the certificate that the TLS handshake verified.
func (s *Server) identity(r *http.Request) (pki.Identity, error) {
	if r.TLS == nil {
		return pki.Identity{}, errors.New("no TLS")
	}
	id, err := pki.PeerIdentity(*r.TLS)
	if err != nil {
		return pki.Identity{}, err
	}
	if id.Role != pki.RoleAPIServer {
		return pki.Identity{}, fmt.Errorf("identity %s is not an API server's", id)
	}
	return id, s.cfg.Authorize(id, r.TLS.PeerCertificates[0])
}

func codeOf(err error) wire.Code {
	var refused *tunnel.RefusedError
	switch {
	case err == nil:
		return wire.OK
	case errors.As(err, &refused):
		return refused.Code
	case errors.Is(err, context.DeadlineExceeded):
		return wire.DialTimeout
	case errors.Is(err, context.Canceled):
		return wire.Canceled
	}
	return wire.Unavailable
}

// refuse answers with the reason in the status line too: kube-apiserver puts that line, and not the
// body, into the error that the person at kubectl reads.
func refuse(w http.ResponseWriter, code wire.Code, err error) {
	reason := oneLine(err.Error())
	conn, _, hijackErr := http.NewResponseController(w).Hijack()
	if hijackErr != nil {
		http.Error(w, reason, code.HTTPStatus())
		return
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(headerTimeout))
	fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		code.HTTPStatus(), reason, len(reason), reason)
}

// oneLine makes a text fit for a status line: no control characters, and bounded.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, s)
	if len(s) > 512 {
		s = s[:512]
	}
	return s
}

// hijack takes the connection over and answers 200. Bytes that came early are not lost.
func hijack(w http.ResponseWriter) (net.Conn, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Time{}) // the server's header deadline would cut a long exec
	// Not a byte may follow the empty line before the API server speaks.
	if _, err := conn.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")); err != nil {
		conn.Close()
		return nil, err
	}
	if n := buf.Reader.Buffered(); n > 0 {
		early, _ := buf.Reader.Peek(n)
		return &replayConn{Conn: conn, early: early}, nil
	}
	return conn, nil
}
