// Package listen has the listeners that the standard library lacks: one whose connections somebody else has accepted, and a unix
// socket that is its owner's alone from the first moment.
package listen

import (
	"context"
	"net"
	"sync"
)

// Handed is the net.Listener of a server that is handed its connections. Make it with NewHanded. Safe for concurrent use.
type Handed struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// NewHanded makes one that says that it listens at addr.
func NewHanded(addr net.Addr) *Handed {
	return &Handed{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Hand passes a connection on; it is the server's from then on. It is closed if the listener is, or ctx ends before the server takes it.
func (l *Handed) Hand(ctx context.Context, c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	case <-ctx.Done():
		c.Close()
	}
}

// Accept implements net.Listener.
func (l *Handed) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Connections that were accepted go on.
func (l *Handed) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *Handed) Addr() net.Addr { return l.addr }
