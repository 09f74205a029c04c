// Package bulk is what lies between TLS and its socket where many bytes go: it has several records of TLS read and written by one
// system call. crypto/tls itself takes one for each record of 16 KiB, and with each, the other end of the connection is woken.
//
// Writes are joined between Cork and Uncork. Reads take what the socket has, up to a buffer's size, and Waiting says whether the next
// record is there already, so that who passes bytes on can join them too. An idle connection holds no buffer.
// The buffers, of two sizes and bounded in number where they are large, are for those who copy above TLS, too: see Pieces.
package bulk

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"sync"
)

const (
	recordHeader = 5 // RFC 8446, section 5.1

	// largeRecord is how long a record is that carries a part of many bytes. What TLS itself has to say, for which nobody's Read returns, is shorter.
	largeRecord = 4 << 10
)

// mostLooks is how many records Waiting looks at: among a great many that are tiny it would take longer than to read them.
const mostLooks = 64

// Conn is a connection under TLS. One goroutine may read and several may write at a time, as net.Conn has it.
type Conn struct {
	net.Conn

	// Used by the one who reads.
	source *Source[Piece] // nil: reads are the connection's own
	plain  bool           // for good
	ins    Pieces
	in     *Piece // nil: nothing was read ahead
	r, w   int    // of in: what was read ahead
	header [recordHeader]byte
	have   int // bytes of header that were given out
	left   int // bytes of the record that are to be given out

	mu     sync.Mutex // guards the following
	corked int
	outs   Pieces
	out    *Piece // nil: nothing is held
	held   int
	failed error // of a write that TLS was told is done: nothing may follow it
}

// New makes a Conn on c. Reads are c's own, unless c is a socket itself: see Direct.
func New(c net.Conn) *Conn {
	b := &Conn{Conn: c}
	b.source = b.newSource(c)
	_, wraps := c.(wrapper)
	b.plain = b.source == nil && !wraps
	return b
}

type wrapper interface{ NetConn() net.Conn }

func (c *Conn) newSource(socket net.Conn) *Source[Piece] {
	return NewSource(socket, &c.ins, func(p *Piece) []byte { return p.mem })
}

// Direct has reads go to the socket beneath all wrappers from now on. It is for when these have given out all that they have read, and no
// Read is under way, such as the end of a handshake. Where there is no socket they stay as they are.
func (c *Conn) Direct() {
	below := c.Conn
	for {
		w, ok := below.(wrapper)
		if _, other := below.(*tls.Conn); other || !ok { // beneath other TLS, such as a proxy's, are other bytes
			break
		}
		below = w.NetConn()
	}
	if c.source == nil {
		c.source = c.newSource(below)
	}
	c.plain = c.source == nil
}

// NetConn returns what c is on.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Of returns the Conn that c, be it TLS or another wrapper, is on; nil: none.
func Of(c net.Conn) *Conn {
	for {
		switch v := c.(type) {
		case *Conn:
			return v
		case wrapper:
			c = v.NetConn()
		default:
			return nil
		}
	}
}

// CloseWrite ends what is written. errors.ErrUnsupported: not on such a connection.
func (c *Conn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Read implements io.Reader. It returns no more than up to the end of a record.
func (c *Conn) Read(p []byte) (int, error) {
	switch {
	case len(p) == 0:
		return 0, nil
	case c.plain:
		return c.Conn.Read(p)
	case c.source == nil: // not beyond the end of the record, for Direct to begin with the next one
		end := c.left
		if c.have < recordHeader {
			end = recordHeader - c.have
		}
		n, err := c.Conn.Read(p[:min(len(p), end)])
		c.follow(p[:n])
		return n, err
	}
	if c.in == nil {
		buf, n, err := c.source.Read()
		if err != nil {
			return 0, err
		}
		c.in, c.r, c.w = buf, 0, n
		c.ins.Filled(n)
	}
	n := c.follow(c.in.mem[c.r:min(c.w, c.r+len(p))])
	copy(p, c.in.mem[c.r:c.r+n])
	if c.r += n; c.r == c.w {
		c.in.Free()
		c.in = nil
	}
	return n, nil
}

// follow notes that b is given out, but for what is behind the end of a record, and returns how much that is.
func (c *Conn) follow(b []byte) (n int) {
	for n < len(b) {
		if c.have < recordHeader {
			m := copy(c.header[c.have:], b[n:])
			n += m
			if c.have += m; c.have < recordHeader {
				return n
			}
			c.left = int(binary.BigEndian.Uint16(c.header[3:]))
		}
		m := min(c.left, len(b)-n)
		n += m
		if c.left -= m; c.left == 0 {
			c.have = 0
			return n
		}
	}
	return n
}

// Waiting says that whoever reads records from c would not have to wait: a large one is there, whole, be it behind short ones. Of what is TLS
// itself, as all is that API servers and kubelets say to each other, each record of 16 KiB makes a full one and a short one here. It is for the one who reads.
func (c *Conn) Waiting() bool {
	if c.in == nil || c.have > 0 {
		return false
	}
	ahead := c.in.mem[c.r:c.w]
	for looks := 0; len(ahead) >= recordHeader && looks < mostLooks; looks++ {
		n := int(binary.BigEndian.Uint16(ahead[3:]))
		if len(ahead) < recordHeader+n {
			return false
		}
		if n >= largeRecord {
			return true
		}
		ahead = ahead[recordHeader+n:]
	}
	return false
}

// Writable says that a write of some KiB would not wait for the connection; false where that is not known. One goroutine may ask at a time, which
// is the one that is about to write.
func (c *Conn) Writable() bool { return c.source != nil && c.source.Writable() }

// Cork holds back what is written from now on, up to a buffer's size, until an Uncork for each Cork.
func (c *Conn) Cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked++
}

// Uncork writes what was held back. An error is that of the write.
func (c *Conn) Uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.corked--; c.corked > 0 {
		return nil
	}
	return c.flush()
}

// Write implements io.Writer.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		return 0, c.failed
	}
	if c.corked == 0 {
		return c.Conn.Write(p)
	}
	if c.out == nil {
		c.out = c.outs.Take()
	}
	if c.held+len(p) > len(c.out.mem) && !c.enlarge(c.held+len(p)) {
		if err := c.flush(); err != nil {
			return 0, err
		}
		if len(p) > smallSize {
			return c.Conn.Write(p)
		}
		c.out = c.outs.Take()
	}
	c.held += copy(c.out.mem[c.held:], p)
	return len(p), nil
}

// enlarge makes room for n bytes in a large buffer, if one is to be had and has it. mu is held.
func (c *Conn) enlarge(n int) bool {
	c.outs.Large = true
	if n > largeSize || len(c.out.mem) == largeSize {
		return false
	}
	more := c.outs.Take()
	if len(more.mem) < n {
		more.Free()
		return false
	}
	copy(more.mem, c.out.mem[:c.held])
	c.out.Free()
	c.out = more
	return true
}

// flush writes what is held. mu is held.
func (c *Conn) flush() error {
	if c.out == nil {
		return c.failed
	}
	_, c.failed = c.Conn.Write(c.out.mem[:c.held])
	c.outs.Filled(c.held)
	c.out.Free()
	c.out, c.held = nil, 0
	return c.failed
}
