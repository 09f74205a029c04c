package egressproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/listen"
)

// firstBytes bounds how long a connection may take to say what it speaks, and then to ask.
const firstBytes = 10 * time.Second

// preface begins a connection of HTTP/2 with prior knowledge (RFC 9113, section 3.4), and no request of HTTP/1.1. Its first bytes are
// enough to tell: the method is reserved. The rest is looked at by the server that takes the connection.
const preface = "PRI "

// listenUnix opens the socket.
func listenUnix(path string) (net.Listener, error) {
	l, err := listen.Unix(path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}

// serve takes connections until ctx ends, then closes l and all of them.
func (p *Proxy) serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var conns sync.WaitGroup
	defer conns.Wait()
	slots := make(chan struct{}, maxConns)
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
				return fmt.Errorf("socket %s: %w", p.cfg.Socket, err)
			}
			// Out of file descriptors, as a rule: that passes.
			p.log.Warn("can't accept a connection", "err", err)
			pause(ctx, 100*time.Millisecond)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			p.log.Warn("too many connections at a time, closing the newest", "limit", maxConns)
			conn.Close()
			continue
		}
		conns.Go(func() {
			defer func() { <-slots }()
			p.take(ctx, conn)
		})
	}
}

// take finds out what a connection speaks, and serves it until it is closed.
func (p *Proxy) take(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(firstBytes))
	early, h2, err := sniff(conn)
	if !stop() || err != nil {
		conn.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			p.log.Debug("a connection said nothing", "err", err)
		}
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	if h2 {
		p.grpc(ctx, conn, early)
		return
	}
	p.connect(ctx, conn, early)
}

// sniffed is how much is read, in bytes, to tell what a connection speaks: all of a request, as a rule, so that there is no read more for it.
const sniffed = 512

// sniff reads from r until it can tell whether that speaks HTTP/2. early is what was read.
func sniff(r io.Reader) (early []byte, h2 bool, err error) {
	early = make([]byte, 0, sniffed)
	for {
		n, err := r.Read(early[len(early):sniffed])
		early = early[:len(early)+n]
		switch known := min(len(early), len(preface)); {
		case string(early[:known]) != preface[:known]:
			return early, false, nil
		case known == len(preface):
			return early, true, nil
		case err != nil:
			return nil, false, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
