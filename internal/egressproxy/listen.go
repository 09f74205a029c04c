package egressproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// firstBytes bounds how long a connection may take to say what it speaks, and then to ask.
const firstBytes = 10 * time.Second

// preface begins a connection of HTTP/2 with prior knowledge (RFC 9113, section 3.4), and no request of HTTP/1.1. Its first bytes are
// enough to tell: the method is reserved. The rest is looked at by the server that takes the connection.
const preface = "PRI "

// listenUnix opens a socket for its owner alone. One that nobody answers at was left by somebody who was killed.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another process answers there", path)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket == 0 {
		return nil, fmt.Errorf("socket %s: there is something else at that path", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	// Made with its final mode: a chmod afterwards would leave a moment in which others can connect.
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}

// serve takes connections until ctx ends, then closes l and all of them.
func (p *Proxy) serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	grpcConns, connectConns := newHanded(l.Addr()), newHanded(l.Addr())
	var servers, conns sync.WaitGroup
	servers.Go(func() { p.serveGRPC(ctx, grpcConns) })
	servers.Go(func() { p.serveConnect(ctx, connectConns) })
	defer servers.Wait()
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
			p.take(ctx, conn, grpcConns, connectConns)
		})
	}
}

// take finds out what a connection speaks, hands it on, and returns when it is closed.
func (p *Proxy) take(ctx context.Context, conn net.Conn, grpcConns, connectConns *handed) {
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
	c := &sniffed{Conn: conn, early: early, closed: make(chan struct{})}
	to := connectConns
	if h2 {
		to = grpcConns
	}
	to.hand(ctx, c)
	<-c.closed
}

// sniff reads as much of r as it takes to tell whether it speaks HTTP/2. early is what was read.
func sniff(r io.Reader) (early []byte, h2 bool, err error) {
	buf := make([]byte, len(preface))
	for n := 0; n < len(buf); {
		m, err := r.Read(buf[n:])
		n += m
		if string(buf[:n]) != preface[:n] {
			return buf[:n], false, nil
		}
		if err != nil && n < len(buf) {
			return nil, false, err
		}
	}
	return buf, true, nil
}

// sniffed is a connection whose first bytes were read.
type sniffed struct {
	net.Conn
	early  []byte
	once   sync.Once
	closed chan struct{}
}

func (c *sniffed) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite keeps half-close working through the wrapper.
func (c *sniffed) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

func (c *sniffed) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// handed is the listener of a server that is handed its connections.
type handed struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHanded(addr net.Addr) *handed {
	return &handed{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// hand passes a connection on; it is the server's from then on.
func (l *handed) hand(ctx context.Context, c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	case <-ctx.Done():
		c.Close()
	}
}

func (l *handed) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *handed) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *handed) Addr() net.Addr { return l.addr }

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
