package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
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
)

// sessions is where the current tunnel session is had from.
type sessions interface {
	// Session waits for a live one.
	Session(ctx context.Context) (*tunnel.Session, error)
}

// apiEndpoint is the node's local way to its API server: each connection becomes a stream. TLS is
// between the client and the API server; nothing is seen of it here.
type apiEndpoint struct {
	sessions sessions
	logger   *slog.Logger
	metrics  *metrics
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
	up, down, err := splice.Splice(conn, stream)
	log.Debug("local API endpoint: connection ended", "up", up, "down", down, "after", time.Since(started), "err", err)
}

func (e *apiEndpoint) open(ctx context.Context) (*tunnel.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	s, err := e.sessions.Session(ctx)
	if err != nil {
		return nil, err
	}
	return s.Open(ctx, wire.KindAPI, "")
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
