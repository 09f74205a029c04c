// Package front is the broker's one public port on TCP: it looks at each connection's TLS ClientHello,
// without answering it, and hands the connection on by the protocol (ALPN) that the hello offers, or else passes it on
// by the name that it asks for (SNI), TLS and all, to a tenant's API server.
//
// It ends no TLS, and knows no nodes, and of tenants only which names lead to them. The same port on UDP carries only
// the tunnel's QUIC and does not pass through here.
package front

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Route takes the connections whose ClientHello offers Protocol. Serve owns the connection, whose
// bytes start with the hello, and returns when it is done with it. Until it has called the connection's method
// Admitted, or closed it, the connection counts as a stranger's (Config.Enter).
type Route struct {
	Protocol string // an ALPN protocol id
	Serve    func(ctx context.Context, conn net.Conn)
}

// NamedRoute is a Route for some names (SNI) alone.
type NamedRoute struct {
	Route
	// Name tells whether it takes a connection that asks for a name, in lower case.
	Name func(serverName string) bool
	// As is the metric's word for it.
	As string
}

// Config is what a Server is made of.
type Config struct {
	// Routes are tried in order; a connection that fits none, nor Named, nor Passthrough, is closed without an answer.
	Routes []Route
	// Named are tried next.
	Named []NamedRoute
	// Passthrough is where names lead.
	Passthrough Passthrough
	// Balancers are the networks whose connections must begin with a PROXY header, of version 2 or 1, and are taken for those of
	// the client that it names. From elsewhere none is read.
	Balancers []netip.Prefix
	// MaxHeaders bounds the connections of balancers that have not sent their header yet. Default 2048: they send it first of all.
	MaxHeaders int
	// HelloTimeout bounds the reading of the ClientHello, and of the PROXY header before it. Default 10 s.
	HelloTimeout time.Duration
	// Enter is asked for each connection that is accepted: over a bound it returns an error, and the
	// connection is closed at once. leave, which is to do nothing but the first time, is called when the
	// peer is known or the connection closed. It must not block. nil: no bound.
	Enter func(remote net.Addr) (leave func(), err error)
	// Registerer takes the metrics; nil leaves them out.
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Server routes connections. Make it with New.
type Server struct {
	cfg    Config
	routed *prometheus.CounterVec
	lines  *lines
	// headers has a place for each connection that has not sent its PROXY header.
	headers chan struct{}
}

// New makes a Server; it starts nothing.
func New(cfg Config) *Server {
	if cfg.HelloTimeout == 0 {
		cfg.HelloTimeout = 10 * time.Second
	}
	if cfg.Enter == nil {
		cfg.Enter = func(net.Addr) (func(), error) { return func() {}, nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxHeaders == 0 {
		cfg.MaxHeaders = 2048
	}
	s := &Server{
		cfg: cfg, lines: newLines(cfg.Passthrough, cfg.Registerer, cfg.Logger), headers: make(chan struct{}, cfg.MaxHeaders),
		routed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_front_connections_total",
			Help: "TCP connections on the public port, by where they were routed: an ALPN protocol, konnectivity, passthrough, or none, malformed, timeout, overloaded.",
		}, []string{"route"}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(s.routed)
	}
	return s
}

// Serve accepts on l until ctx ends, then closes l and the connections still being looked at, waits
// until every route has returned, and returns nil. Routes are expected to end with ctx too.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if isTransient(err) {
				s.cfg.Logger.Warn("public port can't accept; trying again in 100 ms", "err", err)
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
				continue
			}
			return fmt.Errorf("public port %s: %w", l.Addr(), err)
		}
		if s.fromBalancer(conn) {
			s.introduced(ctx, &wg, conn)
			continue
		}
		if c := s.admit(conn, conn.RemoteAddr(), time.Now().Add(s.cfg.HelloTimeout)); c != nil {
			wg.Go(func() { s.serve(ctx, c) })
		}
	}
}

// admit asks for a stranger's place; nil: there is none, and the connection is closed.
func (s *Server) admit(conn net.Conn, remote net.Addr, deadline time.Time) *guest {
	leave, err := s.cfg.Enter(remote)
	if err != nil {
		s.routed.WithLabelValues("overloaded").Inc()
		conn.Close()
		return nil
	}
	return &guest{Conn: conn, remote: remote, deadline: deadline, leave: leave}
}

// isTransient tells a lack of file descriptors and the like, which passes, from a closed listener.
func isTransient(err error) bool {
	return !errors.Is(err, net.ErrClosed)
}

func (s *Server) serve(ctx context.Context, conn *guest) {
	// Aside: the parser needs a large stack, and this goroutine may stay with its connection for days.
	found := make(chan destination)
	go func() { found <- s.look(ctx, conn) }()
	switch to := <-found; {
	case to.route != nil:
		to.route.Serve(ctx, conn)
	case to.tenant != "":
		s.lines.pass(ctx, conn, to)
	default:
		conn.Close()
	}
}

// destination is where a connection goes: to a route, to a tenant, or, empty, nowhere.
type destination struct {
	route        *Route
	tenant, name string
	hello        []byte // what was read of the connection, for a tenant
}

// look reads the hello and finds out where it leads. Who offers a protocol of ours is never led to a tenant.
func (s *Server) look(ctx context.Context, conn *guest) destination {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	log := s.cfg.Logger.With("remote", conn.RemoteAddr().String())
	conn.SetReadDeadline(conn.deadline)
	hello, replay, err := peekHello(conn.Conn)
	if err != nil {
		s.routed.WithLabelValues(outcome(err)).Inc()
		log.Debug("connection closed: no TLS ClientHello", "err", err)
		return destination{}
	}
	conn.SetReadDeadline(time.Time{})
	conn.r = replay
	for i := range s.cfg.Routes {
		if r := &s.cfg.Routes[i]; slices.Contains(hello.protocols, r.Protocol) {
			s.routed.WithLabelValues(r.Protocol).Inc()
			return destination{route: r}
		}
	}
	for i := range s.cfg.Named {
		if r := &s.cfg.Named[i]; slices.Contains(hello.protocols, r.Protocol) && r.Name(hello.serverName) {
			s.routed.WithLabelValues(r.As).Inc()
			return destination{route: &r.Route}
		}
	}
	if tenant, ok := s.lines.find(hello); ok {
		s.routed.WithLabelValues("passthrough").Inc()
		return destination{tenant: tenant, name: hello.serverName, hello: hello.raw}
	}
	s.routed.WithLabelValues("none").Inc()
	log.Debug("connection closed: no route", "sni", hello.serverName, "alpn", hello.protocols)
	return destination{}
}

// outcome is the metric's word for what ended a connection before it was routed.
func outcome(err error) string {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return "timeout"
	}
	return "malformed"
}
