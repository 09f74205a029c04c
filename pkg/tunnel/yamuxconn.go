package tunnel

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"

	"github.com/mooring-edge/mooring/internal/bulk"
)

// frameConn is what yamux reads and writes. It shows yamux how streams begin and end, and nothing of what they carry: see frameReader, and
// yamuxStream.Write. Yamux writes a frame's header and
// its body apart, of which TLS would make records apart: here they are joined.
// TLS writes each of its records apart: while a frame is written that takes
// more than one, the connection beneath TLS is corked.
//
// It takes out of what yamux writes what that grants the other side, and writes
// grants of its own, as yamuxWindows decides; and it is written to beside yamux, by streams, whole frames at a time.
type frameConn struct {
	*tls.Conn
	bulk    *bulk.Conn
	windows *yamuxWindows
	spawn   func(func()) bool // as yamuxMux has it

	in     atomic.Uint64         // bytes that came
	frames *frameReader          // used by yamux's one reader
	err    atomic.Pointer[error] // the first one
	lost   func()                // called once the connection is of no more use, before yamux knows it

	head [yamuxHeader]byte // of the frame that is being written; used by yamux's one writer, and so is body
	body bool              // head is of a frame whose body is next

	wmu sync.Mutex // held through the writing of whole frames

	mu       sync.Mutex // guards the following
	ahead    []byte     // frames that go before the next one: grants, of each stream no more than a few, as it is granted what was read, and what hold says
	granting bool       // somebody is about to write them
}

// newFrameConn takes over conn; under is what it runs on.
func newFrameConn(conn *tls.Conn, under *bulk.Conn, windows *yamuxWindows) *frameConn {
	c := &frameConn{Conn: conn, bulk: under, windows: windows}
	c.frames = newFrameReader(tally{conn, &c.in}, under.Waiting, windows)
	return c
}

// tally counts what is read.
type tally struct {
	io.Reader
	n *atomic.Uint64
}

// Read implements io.Reader.
func (t tally) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	t.n.Add(uint64(n))
	return n, err
}

// Read implements io.Reader, for yamux: see frameReader.
func (c *frameConn) Read(p []byte) (int, error) {
	n, err := c.frames.Read(p)
	return n, c.note(err)
}

// Write implements io.Writer.
func (c *frameConn) Write(p []byte) (int, error) {
	if c.body {
		c.body = false
		return len(p), c.write(c.head[:], p)
	}
	f := yamuxFrame(c.head[:])
	copy(f, p)
	if f.kind() == yamuxTypeData && f.length() > 0 {
		c.body = true
		return len(p), nil
	}
	if f.kind() <= yamuxTypeWindow {
		if !f.has(yamuxFlagSYN | yamuxFlagACK | yamuxFlagFIN | yamuxFlagRST) {
			return len(p), nil // it would be a grant, and nothing else
		}
		f.setLength(0)
		if err := c.follow(f); err != nil {
			return 0, err
		}
		if !f.has(yamuxFlagFIN | yamuxFlagRST) {
			c.hold(f)
			return len(p), nil
		}
	}
	return len(p), c.write(f, nil)
}

// hold has a frame that begins a stream go with the next one, which follows at once, or when it is wanted: the stream's preamble, its answer,
// or the reset of who did not wait for either. It saves each stream a write, a read, and the waking of the other side.
func (c *frameConn) hold(f yamuxFrame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead = append(c.ahead, f...)
}

// follow takes note of the streams that begin and end with a frame of ours.
func (c *frameConn) follow(f yamuxFrame) error {
	if f.has(yamuxFlagSYN) {
		return c.windows.opened(f.stream())
	}
	if f.has(yamuxFlagRST) { // yamux did not take the stream
		c.windows.closed(f.stream())
	}
	return nil
}

// writeData writes a data frame of a stream. It waits where the connection takes no more.
func (c *frameConn) writeData(stream uint32, p []byte) error {
	var f [yamuxHeader]byte
	binary.BigEndian.PutUint32(f[4:8], stream)
	yamuxFrame(f[:]).setLength(uint32(len(p)))
	return c.write(f[:], p)
}

// write writes a frame, and what goes ahead of it, in as few records of TLS as that takes and all of them at once.
func (c *frameConn) write(head, body []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	first := recordPool.Get().(*[]byte)
	defer recordPool.Put(first)
	*first = append(c.takeAhead((*first)[:0]), head...)
	n := min(len(body), max(recordSize-len(*first), 0))
	*first = append(*first, body[:n]...)
	if n == len(body) {
		_, err := c.Conn.Write(*first)
		return c.note(err)
	}
	c.bulk.Cork()
	_, err := c.Conn.Write(*first)
	if err == nil {
		_, err = c.Conn.Write(body[n:])
	}
	if ferr := c.bulk.Uncork(); err == nil {
		err = ferr
	}
	return c.note(err)
}

// grant lets the other side send n more bytes on a stream. It does not wait for
// the connection to take that: a reader has no part in how writing goes.
func (c *frameConn) grant(stream, n uint32) {
	c.mu.Lock()
	c.ahead = appendGrant(c.ahead, stream, n)
	start := !c.granting
	c.granting = true
	c.mu.Unlock()
	if start {
		c.spawn(c.writeAhead)
	}
}

// writeAhead writes what goes with no other frame.
func (c *frameConn) writeAhead() {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if b := c.takeAhead(nil); len(b) > 0 {
		_, err := c.Conn.Write(b)
		if c.note(err) != nil {
			_ = c.bulk.Conn.Close() // for yamux to know
		}
	}
}

// takeAhead appends what goes before the next frame. wmu is held.
func (c *frameConn) takeAhead(b []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	b = append(b, c.ahead...)
	c.ahead, c.granting = c.ahead[:0], false
	return b
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

// recordSize is what TLS puts in one record at the most.
const recordSize = 16 << 10

// recordPool holds what is joined to one record, and on either side of TLS: what is idle has none.
var recordPool = sync.Pool{New: func() any { b := make([]byte, 0, recordSize); return &b }}
