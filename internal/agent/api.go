package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// sessionWait is how long a connection to the local endpoint is held while there is no tunnel: long
	// enough to ride out a reconnect, short enough that a client sees an error before its own timeout.
	sessionWait = 10 * time.Second
	// maxAPIConns bounds the connections at a time; a node's own clients need some ten.
	maxAPIConns = 512
	// moveIdle is how long nothing must have passed on a connection for it to be closed for the sake of a new session:
	// a kubelet says something every 10 s, and is answered within fractions of one.
	moveIdle = 2 * time.Second
)

// sessions is where streams to the broker are had from.
type sessions interface {
	// Open opens a stream on the session that takes them, or waits for one.
	Open(ctx context.Context, kind wire.Kind, target string) (*tunnel.Stream, error)
	// Session waits for a live one.
	Session(ctx context.Context) (*tunnel.Session, error)
}

// apiEndpoint is the node's local way to its API server: each connection becomes a stream. TLS is
// between the client and the API server; nothing is seen of it here.
type apiEndpoint struct {
	sessions sessions
	logger   *slog.Logger
	metrics  *metrics
	// allow says why a client is turned away; nil: nobody is.
	allow func(remote netip.Addr) error
}

// serve takes connections until ctx ends, then closes l and all of them.
func (e *apiEndpoint) serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxAPIConns)
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if conn != nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of file descriptors, as a rule: that passes, and stopping would cut off the kubelet.
			e.logger.Warn("local API endpoint: can't accept a connection", "err", err)
			pause(ctx, 100*time.Millisecond)
			continue
		}
		if err := e.allowed(conn); err != nil {
			e.logger.Info("local API endpoint: turned a client away", "remote", conn.RemoteAddr().String(), "err", err)
			conn.Close()
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			e.logger.Warn("local API endpoint: too many connections at a time, closing the newest", "limit", maxAPIConns)
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			e.carry(ctx, conn)
		})
	}
}

func (e *apiEndpoint) allowed(conn net.Conn) error {
	if e.allow == nil {
		return nil
	}
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return err
	}
	return e.allow(remote.Addr().Unmap())
}

// carry joins one connection with a stream to the API server.
func (e *apiEndpoint) carry(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	started, trace := time.Now(), wire.NewTrace()
	log := e.logger.With("dial", trace.String())
	stream, err := e.open(tunnel.WithTrace(ctx, trace))
	e.metrics.api(err)
	if err != nil {
		log.Debug("local API endpoint: no way to the API server, closing the connection", "took", time.Since(started), "err", err)
		conn.Close()
		return
	}
	over := make(chan struct{})
	defer close(over)
	go e.move(conn, stream, over)
	up, down, err := splice.Splice(conn, stream)
	log.Debug("local API endpoint: connection ended", "up", up, "down", down, "after", time.Since(started), "err", err)
}

func (e *apiEndpoint) open(ctx context.Context) (*tunnel.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	return e.sessions.Open(ctx, wire.KindAPI, "")
}

// move closes a connection whose session was taken over from by another, at a moment at which nothing has passed for a
// while: its client keeps it open for good, and the next one goes by the new session. What is in the middle of
// something is left alone until then.
func (e *apiEndpoint) move(conn net.Conn, stream *tunnel.Stream, over <-chan struct{}) {
	select {
	case <-stream.Session().Draining():
	case <-over:
		return
	}
	tick := time.NewTicker(moveIdle / 4)
	defer tick.Stop()
	bytes, since := stream.Bytes(), time.Now()
	for {
		select {
		case <-tick.C:
		case <-over:
			return
		}
		if now := stream.Bytes(); now != bytes {
			bytes, since = now, time.Now()
		}
		if time.Since(since) >= moveIdle && e.movedFrom(stream.Session()) {
			conn.Close()
			return
		}
	}
}

// movedFrom tells whether another session is up than s.
func (e *apiEndpoint) movedFrom(s *tunnel.Session) bool {
	ctx, cancel := context.WithTimeout(context.Background(), moveIdle)
	defer cancel()
	now, err := e.sessions.Session(ctx)
	return err == nil && now != s
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
