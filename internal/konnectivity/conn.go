package konnectivity

import (
	"bytes"
	"net"
	"os"
	"sync"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

// maxData is how many bytes go in one packet.
const maxData = 32 << 10

// conn is one connection through an agent. It has no half-close: the protocol has none.
type conn struct {
	s      *Session
	id     int64
	target string
	in     *inbox
	gone   chan struct{} // closed when nothing can be written any more
	leave  func()        // closes gone, and takes the connection off the session; once

	read, write deadline
}

func newConn(s *Session, id int64, target string) *conn {
	c := &conn{s: s, id: id, target: target, in: newInbox(), gone: make(chan struct{}), read: newDeadline(), write: newDeadline()}
	c.leave = sync.OnceFunc(func() {
		close(c.gone)
		s.forget(c)
	})
	return c
}

// Read returns what the agent has sent.
func (c *conn) Read(p []byte) (int, error) {
	for {
		select {
		case <-c.read.passed():
			return 0, os.ErrDeadlineExceeded
		default:
		}
		n, freed, err := c.in.take(p)
		c.s.queued.Add(-int64(freed))
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		select {
		case <-c.in.readable:
		case <-c.read.passed():
		}
	}
}

// WaitRead waits until Read has something to return, for who wants no buffer until then.
func (c *conn) WaitRead() error {
	for !c.in.ready() {
		select {
		case <-c.in.readable:
		case <-c.read.passed():
			return os.ErrDeadlineExceeded
		}
	}
	return nil
}

// Write has the agent write. What it has taken may still be lost with the connection: the protocol tells nobody.
func (c *conn) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		chunk := bytes.Clone(p[:min(len(p), maxData)])
		pkt := &client.Packet{Type: client.PacketType_DATA, Payload: &client.Packet_Data{Data: &client.Data{ConnectID: c.id, Data: chunk}}}
		select { // a select of several that are ready takes any
		case <-c.gone:
			return n, net.ErrClosed
		case <-c.write.passed():
			return n, os.ErrDeadlineExceeded
		default:
		}
		select {
		case c.s.out <- pkt:
		case <-c.gone:
			return n, net.ErrClosed
		case <-c.write.passed():
			return n, os.ErrDeadlineExceeded
		}
		n, p = n+len(chunk), p[len(chunk):]
		c.s.bytesOut.Add(uint64(len(chunk)))
	}
	return n, nil
}

// Close has the agent close the connection.
func (c *conn) Close() error {
	c.end(net.ErrClosed)
	return nil
}

// Abort is Close: the protocol knows one end only.
func (c *conn) Abort() error { return c.Close() }

// end closes from this side.
func (c *conn) end(why error) {
	c.s.queued.Add(-int64(c.in.finish(why)))
	select {
	case <-c.gone:
		return
	default:
	}
	c.leave()
	c.s.urge(closeRequest(c.id))
}

// ended notes that the agent closed it. What it has sent before is read before.
func (c *conn) ended(why error) {
	c.s.queued.Add(-int64(c.in.finish(why)))
	c.leave()
}

func (c *conn) LocalAddr() net.Addr  { return address("konnectivity") }
func (c *conn) RemoteAddr() net.Addr { return address(c.target) }

func (c *conn) SetDeadline(t time.Time) error {
	c.read.set(t)
	c.write.set(t)
	return nil
}
func (c *conn) SetReadDeadline(t time.Time) error  { c.read.set(t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.write.set(t); return nil }

// address names what an agent dialled.
type address string

func (a address) Network() string { return "konnectivity" }
func (a address) String() string  { return string(a) }

// deadline is one of a connection's two.
type deadline struct{ *deadlineState }

type deadlineState struct {
	mu    sync.Mutex // guards the following
	timer *time.Timer
	done  chan struct{} // closed when it has passed
}

func newDeadline() deadline { return deadline{&deadlineState{done: make(chan struct{})}} }

func (d deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

func (d deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.done // its function is running, or was
	}
	d.timer = nil
	select {
	case <-d.done:
		d.done = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	done := d.done
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() { close(done) })
		return
	}
	close(done)
}
