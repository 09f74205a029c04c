package relay

import (
	"net"
	"os"
	"sync"
	"time"
)

// memQueue is how many datagrams wait to be read; more are lost, as in a kernel.
const memQueue = 8192

// Mem is a network of datagrams in memory, whose connections may be used under
// testing/synctest. Nothing is lost or delayed in it but by a Relay.
type Mem struct {
	mu    sync.Mutex // guards the following
	conns map[string]*memConn
	ports int
}

// NewMem makes an empty network.
func NewMem() *Mem { return &Mem{conns: make(map[string]*memConn)} }

// ListenPacket makes a connection with an address of its own. It is never out of addresses before 60,000.
func (m *Mem) ListenPacket() net.PacketConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ports++
	c := &memConn{m: m, addr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1).To4(), Port: 1024 + m.ports}, changed: make(chan struct{})}
	m.conns[c.addr.String()] = c
	return c
}

type datagram struct {
	b    []byte
	from net.Addr
}

// memConn is a net.PacketConn of a Mem.
type memConn struct {
	m    *Mem
	addr *net.UDPAddr

	mu       sync.Mutex // guards the following
	queue    []datagram
	deadline time.Time
	closed   bool
	changed  chan struct{} // closed with each change
}

func (c *memConn) LocalAddr() net.Addr { return c.addr }

// SetReadBuffer and SetWriteBuffer do nothing: buffers are what they are.
func (c *memConn) SetReadBuffer(int) error  { return nil }
func (c *memConn) SetWriteBuffer(int) error { return nil }

func (c *memConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil } // a write waits for nothing
func (c *memConn) SetReadDeadline(t time.Time) error {
	c.change(func() { c.deadline = t })
	return nil
}

func (c *memConn) Close() error {
	c.m.mu.Lock()
	delete(c.m.conns, c.addr.String())
	c.m.mu.Unlock()
	c.change(func() { c.closed = true })
	return nil
}

func (c *memConn) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *memConn) WriteTo(b []byte, to net.Addr) (int, error) {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	c.m.mu.Lock()
	dst := c.m.conns[to.String()]
	c.m.mu.Unlock()
	if dst != nil {
		d := datagram{append([]byte(nil), b...), c.addr}
		dst.change(func() {
			if len(dst.queue) < memQueue {
				dst.queue = append(dst.queue, d)
			}
		})
	}
	return len(b), nil
}

func (c *memConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		c.mu.Lock()
		switch {
		case c.closed:
			c.mu.Unlock()
			return 0, nil, net.ErrClosed
		case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
			c.mu.Unlock()
			return 0, nil, os.ErrDeadlineExceeded
		case len(c.queue) > 0:
			d := c.queue[0]
			c.queue = c.queue[1:]
			c.mu.Unlock()
			return copy(b, d.b), d.from, nil
		}
		changed, deadline := c.changed, c.deadline
		c.mu.Unlock()
		if !await(changed, deadline) {
			return 0, nil, os.ErrDeadlineExceeded
		}
	}
}

// await waits for a change, up to deadline.
func await(changed <-chan struct{}, deadline time.Time) bool {
	if deadline.IsZero() {
		<-changed
		return true
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-changed:
		return true
	case <-t.C:
		return false
	}
}
