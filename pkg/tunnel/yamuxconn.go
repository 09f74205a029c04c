package tunnel

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mooring-edge/mooring/internal/bulk"
)

// frameConn is what yamux reads and writes. It shows yamux nothing of streams: see frameReader. These write whole frames
// beside yamux, each with what goes ahead of it, and as few records of TLS as that takes. TLS writes each of its records
// apart: while a frame is written that takes more than one, the connection beneath TLS is corked.
type frameConn struct {
	*tls.Conn
	bulk    *bulk.Conn
	windows *yamuxWindows
	spawn   func(func()) bool // as yamuxMux has it

	in     atomic.Uint64         // bytes that came
	frames *frameReader          // used by yamux's one reader
	err    atomic.Pointer[error] // the first one
	lost   func()                // called once the connection is of no more use, before yamux knows it

	wmu  sync.Mutex // held through the writing of whole frames
	turn turn       // wrote: guarded by wmu

	mu       sync.Mutex  // guards the following
	few      []byte      // frames that go before the next one: grants, of each stream no more than a few, as it is granted what was read, and those of begin, turnDown, end and join
	ahead    *[]byte     // the same in a buffer of the pool, where those are more; nil: they are not
	refused  int         // bytes of these that are turnDown's
	granting bool        // somebody is about to write them
	fins     *time.Timer // writes them in a while, if it runs
	running  bool        // it does
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

// Write implements io.Writer, for yamux. It is given whole frames.
func (c *frameConn) Write(p []byte) (int, error) { return len(p), c.write(p, nil) }

// begin has the frame by which a stream begins on this side go with the next one, which follows at once, or when it is wanted: the stream's
// preamble, its answer, or the reset of who did not wait for either. It saves each stream a write, a read, and the waking of the other side.
func (c *frameConn) begin(stream uint32, flag byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putAhead(flag, stream, 0)
}

// finTime is how long a FIN may wait for another frame to go with.
const finTime = 5 * time.Millisecond

// end says that nothing more follows on a stream; last, that the other side has said so before, has most likely closed, and waits for nothing. Then the FIN
// goes with the next frame, or in finTime: alone it would be a write, a read, and the waking of the other side. Else it is written at once, and waits where
// the connection takes no more.
func (c *frameConn) end(stream uint32, last bool) error {
	if last && c.endLater(stream) {
		return nil
	}
	f := appendFrame(make([]byte, 0, yamuxHeader), yamuxFlagFIN, stream, 0)
	if joined, err := c.join(f, nil); joined {
		return err
	}
	return c.write(f, nil)
}

// endLater is false where too much waits already.
func (c *frameConn) endLater(stream uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting() > maxAhead {
		return false
	}
	c.putAhead(yamuxFlagFIN, stream, 0)
	switch {
	case c.granting || c.running:
		return true
	case c.fins == nil:
		c.fins = time.AfterFunc(finTime, c.flush)
	default:
		c.fins.Reset(finTime)
	}
	c.running = true
	return true
}

// flush has what goes ahead of the next frame written, if there is something. The timer is let run when a frame has taken it: to stop it, and to start it
// anew, is more for each stream than to look in vain now and then.
func (c *frameConn) flush() {
	c.mu.Lock()
	c.running = false
	start := c.waiting() > 0 && !c.granting
	c.granting = c.granting || start
	c.mu.Unlock()
	if start {
		c.spawn(c.writeAhead)
	}
}

// maxAhead bounds what waits for a connection that takes no more, in bytes: what turnDown says, and the FINs that wait behind all else. Grants, and what
// begins streams, are bounded by the streams.
const maxAhead = 64 << 10

// turnDown tells the other side that a stream of its was not taken. errFlood: it does not read that it does not stop.
func (c *frameConn) turnDown(stream uint32) error {
	c.mu.Lock()
	if c.refused > maxAhead {
		c.mu.Unlock()
		return errFlood
	}
	c.refused += yamuxHeader
	c.laterLocked(yamuxFlagRST, stream, 0)
	return nil
}

// writeData writes a data frame of a stream. It waits where the connection takes no more. Where it returns the frame is written, if now says so.
func (c *frameConn) writeData(stream uint32, p []byte, now bool) error {
	f := dataHeader(stream, len(p))
	if !now {
		if joined, err := c.join(f[:], p); joined {
			return err
		}
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	start := time.Now()
	err := c.writeLocked(f[:], p)
	c.turn.wrote(len(p), time.Since(start))
	return err
}

// tryWriteData is writeData where nothing has to be waited for: nobody else writes, the connection takes bytes, and the other side's window
// has room for all of p, which is of a few KiB at the most. If not, it writes nothing and returns false.
func (c *frameConn) tryWriteData(w *yamuxWindow, stream uint32, p []byte) (bool, error) {
	f := dataHeader(stream, len(p))
	if joining() && len(p) <= joinSize {
		return c.tryJoin(w, f[:], p), nil
	}
	if !c.wmu.TryLock() {
		return false, nil
	}
	defer c.wmu.Unlock()
	if !c.short(len(p)) || !c.bulk.Writable() || !c.windows.takeAll(w, len(p)) {
		return false, nil
	}
	return true, c.writeLocked(f[:], p)
}

// dataHeader is the header of a frame of n bytes of a stream.
func dataHeader(stream uint32, n int) (f [yamuxHeader]byte) {
	binary.BigEndian.PutUint32(f[4:8], stream)
	yamuxFrame(f[:]).setLength(uint32(n))
	return f
}

// short says that a frame with a body of n bytes, and what goes ahead of it, makes one record of TLS.
func (c *frameConn) short(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fits(n)
}

// write writes a frame, and what goes ahead of it, in as few records of TLS as that takes and all of them at once.
func (c *frameConn) write(head, body []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.writeLocked(head, body)
}

// writeLocked is write. wmu is held.
func (c *frameConn) writeLocked(head, body []byte) error {
	first := c.takeAhead()
	defer freeRecord(first)
	*first = append(*first, head...)
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
func (c *frameConn) grant(stream, n uint32) { c.later(0, stream, n) }

// later has a frame without a body written soon, by somebody else.
func (c *frameConn) later(flag byte, stream, n uint32) {
	c.mu.Lock()
	c.laterLocked(flag, stream, n)
}

// laterLocked is later. mu is held, and no longer when it returns.
func (c *frameConn) laterLocked(flag byte, stream, n uint32) {
	c.putAhead(flag, stream, n)
	start := !c.granting
	c.granting = true
	c.mu.Unlock()
	if start {
		c.spawn(c.writeAhead)
	}
}

// writeAhead writes what goes with no other frame.
func (c *frameConn) writeAhead() {
	if c.writeWaiting() != nil {
		_ = c.bulk.Conn.Close() // for yamux to know
	}
}

// writeWaiting writes what goes ahead of the next frame, without one.
func (c *frameConn) writeWaiting() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.writeWaitingLocked()
}

// writeWaitingLocked is writeWaiting. wmu is held.
func (c *frameConn) writeWaitingLocked() error {
	b := c.takeAhead()
	defer freeRecord(b)
	if len(*b) == 0 {
		return nil
	}
	_, err := c.Conn.Write(*b)
	return c.note(err)
}

// putAhead has a frame without a body go before the next one. mu is held.
func (c *frameConn) putAhead(flag byte, stream, n uint32) {
	if c.ahead == nil && len(c.few) < fewFrames*yamuxHeader {
		c.few = appendFrame(c.few, flag, stream, n)
		return
	}
	b := c.room()
	*b = appendFrame(*b, flag, stream, n)
}

// fewFrames may wait, for their streams to say something as well, without a buffer of the pool.
const fewFrames = 8

// room is where frames are put that go before the next one. mu is held.
func (c *frameConn) room() *[]byte {
	if c.ahead == nil {
		c.ahead = newRecord()
		*c.ahead, c.few = append(*c.ahead, c.few...), c.few[:0]
	}
	return c.ahead
}

// fits is short. mu is held.
func (c *frameConn) fits(n int) bool { return c.waiting()+yamuxHeader+n <= recordSize }

// waiting is how many bytes go before the next frame. mu is held.
func (c *frameConn) waiting() int {
	if c.ahead == nil {
		return len(c.few)
	}
	return len(*c.ahead)
}

// takeAhead is what goes before the next frame, and the caller's until freeRecord. wmu is held.
func (c *frameConn) takeAhead() *[]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.room()
	c.ahead, c.refused, c.granting = nil, 0, false
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
var recordPool = sync.Pool{New: func() any { b := make([]byte, 0, recordRoom); return &b }}

// recordRoom has room for a header behind a record that is full.
const recordRoom = recordSize + yamuxHeader

func newRecord() *[]byte { return recordPool.Get().(*[]byte) }

func freeRecord(b *[]byte) {
	if cap(*b) == recordRoom { // not one that had to grow
		*b = (*b)[:0]
		recordPool.Put(b)
	}
}
