package peers

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/internal/underway"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// linkTimeout bounds the wait for another broker to take a stream: it is a machine of the same place, or it is gone.
	linkTimeout = 3 * time.Second
	// linkStreams is how many connections may be handed on to one broker at a time.
	linkStreams = 100_000
	// dialTimeout bounds what another broker has a node do; the asking broker's own patience ends before.
	dialTimeout = 30 * time.Second
	// handshakes is how many connections may be in their handshake at a time. There are as many brokers.
	handshakes = 64
)

// Here reaches the nodes that are connected to this broker. A refusal is a *tunnel.RefusedError.
type Here interface {
	DialHere(ctx context.Context, tenant, node, addr string) (net.Conn, error)
}

// LinksConfig is what Links are made of.
type LinksConfig struct {
	Directory *Directory
	// Client and Server are this broker's sides of TLS; each must verify that the other one is a broker.
	Client, Server *tls.Config
	// Here answers what other brokers ask of this one.
	Here Here
	// Heartbeat is the time between two signs of life; a broker that gives none for twice as long is given up. Default 5 s.
	Heartbeat time.Duration
	Logger    *slog.Logger
}

// Links are the sessions with other brokers, in either direction: each makes one to whom it asks. Safe for concurrent use.
type Links struct {
	cfg      LinksConfig
	session  tunnel.Config
	acceptor *tunnel.Acceptor
	serving  underway.Count // connections that were handed on to this broker

	mu      sync.Mutex // guards the following
	running context.Context
	clients map[string]*link // by the broker's id
	work    sync.WaitGroup
}

// link is the session to one broker.
type link struct {
	client *tunnel.Client
	end    context.CancelFunc
}

// NewLinks makes Links; they start nothing.
func NewLinks(cfg LinksConfig) *Links {
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, 5*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Links{cfg: cfg, clients: map[string]*link{}, session: tunnel.Config{
		HeartbeatInterval: cfg.Heartbeat, HeartbeatTimeout: 2 * cfg.Heartbeat, OpenTimeout: linkTimeout,
		MaxStreams: linkStreams, MaxPending: 256, Logger: cfg.Logger,
	}}
	server := l.session
	server.Handler = l.serveStream
	l.acceptor = tunnel.NewAcceptor(tunnel.AcceptorConfig{
		TLS: cfg.Server, Config: server,
		OnSession: func(_ context.Context, s *tunnel.Session) { s.Admitted() },
	})
	return l
}

// Serve takes other brokers' sessions from ln, and lets Dial make some, until ctx ends; then it closes all of them.
func (l *Links) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	l.mu.Lock()
	l.running = ctx
	l.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer func() {
		stop()
		l.mu.Lock()
		cancel() // whoever comes later finds it so
		l.mu.Unlock()
		l.work.Wait()
	}()
	slots := make(chan struct{}, handshakes)
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("listener for other brokers %s: %w", ln.Addr(), err)
		case err != nil:
			l.cfg.Logger.Warn("can't accept another broker; trying again", "err", err)
			pause(ctx, 100*time.Millisecond)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		guest := &stranger{Conn: conn, leave: sync.OnceFunc(func() { <-slots })}
		l.work.Go(func() { l.acceptor.ServeConn(ctx, guest) })
	}
}

// stranger is a connection that holds one of the places for handshakes until it is known whose it is.
type stranger struct {
	net.Conn
	leave func()
}

// Admitted is called by the acceptor once a broker's session is up.
func (s *stranger) Admitted() { s.leave() }

func (s *stranger) Close() error {
	s.leave()
	return s.Conn.Close()
}

// NetConn lets the tunnel tune the socket.
func (s *stranger) NetConn() net.Conn { return s.Conn }

// Dial has the broker of a route dial addr at its node. Errors are *tunnel.RefusedError, the node's own among them.
func (l *Links) Dial(ctx context.Context, r Route, tenant, node, addr string) (net.Conn, error) {
	conn, err := l.dial(ctx, r, tenant, node, addr)
	var refused *tunnel.RefusedError
	if err != nil && !errors.As(err, &refused) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &tunnel.RefusedError{Code: wire.Unavailable, Message: fmt.Sprintf("the broker that node %s is connected to can't be reached: %v", node, err)}
	}
	return conn, err
}

func (l *Links) dial(ctx context.Context, r Route, tenant, node, addr string) (net.Conn, error) {
	target, err := appendTarget(tenant, node, addr)
	if err != nil {
		return nil, &tunnel.RefusedError{Code: wire.BadRequest, Message: err.Error()}
	}
	client, err := l.client(r.Broker)
	if err != nil {
		return nil, err
	}
	reach, cancel := context.WithTimeoutCause(ctx, linkTimeout, fmt.Errorf("no session within %s", linkTimeout))
	defer cancel()
	stream, err := client.Open(reach, wire.KindForward, target)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.Abort() })
	answer, err := wire.ReadAnswer(stream)
	switch {
	case !stop():
		return nil, context.Cause(ctx)
	case err != nil:
		_ = stream.Abort()
		return nil, err
	case answer.Code != wire.OK:
		_ = stream.Close()
		return nil, &tunnel.RefusedError{Code: answer.Code, Message: answer.Message}
	}
	return stream, nil
}

// client is the one to a broker, made if there is none.
func (l *Links) client(id string) (*tunnel.Client, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil || l.running.Err() != nil {
		return nil, errors.New("this broker is about to stop")
	}
	if k := l.clients[id]; k != nil {
		return k.client, nil
	}
	if _, ok := l.cfg.Directory.address(id); !ok {
		return nil, errNoBroker(id)
	}
	ctx, end := context.WithCancel(l.running)
	k := &link{end: end, client: tunnel.NewClient(tunnel.ClientConfig{
		Dialer: func() *tunnel.Dialer {
			address, ok := l.cfg.Directory.address(id)
			if !ok { // for good: an id is of one process
				l.drop(id)
			}
			return &tunnel.Dialer{Endpoint: address, TLS: l.cfg.Client, Transport: tunnel.TransportTCP, Config: l.session}
		},
		BackoffMin: 100 * time.Millisecond, BackoffMax: 2 * time.Second,
		Logger: l.cfg.Logger.With("broker", id),
	})}
	l.clients[id] = k
	l.work.Go(func() { _ = k.client.Run(ctx) }) // which ends with ctx alone
	return k.client, nil
}

// drop ends the session to a broker that is gone.
func (l *Links) drop(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.clients[id]; k != nil {
		k.end()
		delete(l.clients, id)
	}
}

// serveStream answers another broker. The stream is accepted before the node has answered, which then comes as an answer
// of its own: so no slow node holds one of the few places for opens that wait.
func (l *Links) serveStream(ctx context.Context, s *tunnel.Session, r *tunnel.Request) {
	if r.Kind != wire.KindForward {
		_ = r.Refuse(wire.BadRequest, "brokers ask each other for connections to nodes only")
		return
	}
	tenant, node, addr, err := parseTarget(r.Target)
	if err != nil {
		_ = r.Refuse(wire.BadRequest, err.Error())
		return
	}
	stream, err := r.Accept()
	if err != nil {
		return
	}
	defer l.serving.Begin()()
	ctx, cancel := context.WithTimeout(tunnel.WithTrace(ctx, r.Trace), dialTimeout)
	conn, err := l.cfg.Here.DialHere(ctx, tenant, node, addr)
	cancel()
	log := l.cfg.Logger.With("tenant", tenant, "node", node, "dial", r.Trace.String(), "peer", s.RemoteAddr().String())
	answer := wire.Answer{}
	if err != nil {
		answer = wire.Answer{Code: tunnel.CodeOf(err), Message: err.Error()}
		var refused *tunnel.RefusedError
		if errors.As(err, &refused) {
			answer.Message = refused.Message // the code says the rest
		}
		log.Debug("refused another broker's dial", "target", addr, "err", err)
	}
	if _, werr := stream.Write(wire.AppendAnswer(nil, answer)); werr != nil || err != nil {
		if conn != nil {
			conn.Close()
		}
		stream.Close()
		return
	}
	there, back, err := splice.Splice(stream, conn)
	log.Debug("connection handed on by another broker ended", "target", addr, "toNode", there, "back", back, "err", err)
}

// appendTarget is the target of a forward stream: tenant/node/host:port, with no host where that is the node's name.
func appendTarget(tenant, node, addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if strings.EqualFold(host, node) {
		addr = ":" + port
	}
	t := tenant + "/" + node + "/" + addr
	if len(t) > wire.MaxTarget {
		return "", fmt.Errorf("the address %.60s... is too long", addr)
	}
	return t, nil
}

func parseTarget(t string) (tenant, node, addr string, err error) {
	tenant, rest, ok := strings.Cut(t, "/")
	node, addr, more := strings.Cut(rest, "/")
	if !ok || !more || tenant == "" || node == "" {
		return "", "", "", fmt.Errorf("target %.100q is not tenant/node/host:port", t)
	}
	if err := errors.Join(pki.ValidTenant(tenant), pki.ValidNode(node)); err != nil {
		return "", "", "", err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" {
		return "", "", "", fmt.Errorf("target %.100q is not tenant/node/host:port", t)
	}
	if host == "" {
		addr = net.JoinHostPort(node, port)
	}
	return tenant, node, addr, nil
}

// WaitIdle returns when nothing is handed on to this broker's nodes, or ctx has ended.
func (l *Links) WaitIdle(ctx context.Context) { l.serving.WaitIdle(ctx) }
