package tunnel

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
)

// frameConn is what yamux reads and writes. Yamux writes a frame's header and
// its body apart, and TLS each of its records: between a header and the end of
// its body the connection beneath TLS is corked, so that a frame is one write.
type frameConn struct {
	*tls.Conn
	cork *corkConn
	body bool // a header was written, its body is next; used by yamux's one writer
	in   atomic.Uint64
	seen yamuxGuard            // used by yamux's one reader
	err  atomic.Pointer[error] // the first one
	lost func()                // called once the connection is of no more use, before yamux knows it
}

const (
	yamuxHeader   = 12
	yamuxTypeData = 0
)

// Read implements io.Reader.
func (c *frameConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.Add(uint64(n))
	if gerr := c.seen.check(p[:n]); gerr != nil {
		n, err = 0, gerr
	}
	return n, c.note(err)
}

// Write implements io.Writer.
func (c *frameConn) Write(p []byte) (int, error) {
	if c.body {
		c.body = false
		n, err := c.Conn.Write(p)
		if ferr := c.cork.uncork(); err == nil {
			err = ferr
		}
		return n, c.note(err)
	}
	if len(p) == yamuxHeader && p[1] == yamuxTypeData && binary.BigEndian.Uint32(p[8:]) > 0 {
		c.body = true
		c.cork.cork()
	}
	n, err := c.Conn.Write(p)
	return n, c.note(err)
}

// note remembers the first error, which is the reason for all others.
func (c *frameConn) note(err error) error {
	if err != nil {
		c.err.CompareAndSwap(nil, &err)
		c.lost()
	}
	return err
}

// Close implements io.Closer. It is yamux that calls it, as the first thing when it gives up.
func (c *frameConn) Close() error {
	c.lost()
	return c.Conn.Close()
}

func (c *frameConn) failure() error {
	if err := c.err.Load(); err != nil {
		return *err
	}
	return nil
}

// corkConn is a net.Conn that can hold writes back to join them.
type corkConn struct {
	net.Conn

	mu     sync.Mutex // guards the following
	corked bool
	held   *[]byte // from corkPool; nil: nothing is held
}

// corkSize holds a whole frame as TLS records: header, body, and what TLS adds.
const corkSize = yamuxChunk + 1<<10

var corkPool = sync.Pool{New: func() any { b := make([]byte, 0, corkSize); return &b }}

// Write implements io.Writer.
func (c *corkConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked {
		return c.Conn.Write(p)
	}
	if c.held == nil {
		c.held = corkPool.Get().(*[]byte)
	}
	if len(*c.held)+len(p) > corkSize {
		if err := c.flush(); err != nil {
			return 0, err
		}
		return c.Conn.Write(p)
	}
	*c.held = append(*c.held, p...)
	return len(p), nil
}

func (c *corkConn) cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = true
}

func (c *corkConn) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	return c.flush()
}

// flush writes what is held. mu is held.
func (c *corkConn) flush() error {
	if c.held == nil {
		return nil
	}
	_, err := c.Conn.Write(*c.held)
	*c.held = (*c.held)[:0]
	corkPool.Put(c.held)
	c.held = nil
	return err
}
