// Package splice is the only copy loop: it joins two connections until both
// directions have ended, keeps half-closes, and never lets an abnormal end on
// one side look like a clean one on the other.
//
// It knows connections only as net.Conn and by what they can do beyond that:
// CloseWrite (half-close), Abort (an end that the other side sees as abnormal)
// and WaitRead (wait without a buffer), Deliver and TryWrite (pass on what came without a change of goroutine, see ahead.go). TCP connections are helped out where
// they lack one of these, and so is what wraps one and has NetConn, such as TLS.
package splice

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/internal/bulk"
)

const (
	bufferSize = bulk.SmallPiece
	// recordSize is what TLS puts in one record at the most.
	recordSize = 16 << 10
	// tailTime is how long the rest of a direction may pause, once nothing can be
	// sent in the other one any more: an answer that is still on its way is worth it.
	tailTime = 10 * time.Second
)

type (
	halfCloser interface{ CloseWrite() error }
	deliverer  interface{ Deliver(f func(p []byte) int) }
	tryWriter  interface{ TryWrite(p []byte) bool }
	aborter    interface{ Abort() error }
	waiter     interface{ WaitRead() error }
	wrapper    interface{ NetConn() net.Conn }
)

// Splice copies between a and b until both directions have ended, and closes
// both. An end of file on one side is a half-close of the other; where that is
// not to be had, it ends both directions. Any other error on one side aborts
// the other. The first such error is returned, with the bytes that were copied
// each way.
func Splice(a, b net.Conn) (aToB, bToA int64, err error) {
	s := &splice{}
	sa, sb := newSide(a), newSide(b)
	var wg sync.WaitGroup
	wg.Go(func() { bToA = s.run(sb, sa) })
	aToB = s.run(sa, sb)
	wg.Wait()
	cerr := errors.Join(ignoreClosed(a.Close()), ignoreClosed(b.Close())) // what was aborted is closed already
	if s.err != nil {
		return aToB, bToA, s.err
	}
	return aToB, bToA, cerr
}

// splice is what the two directions of one Splice share.
type splice struct {
	mu  sync.Mutex // guards err
	err error      // the first abnormal end
}

// side is one of the two connections.
type side struct {
	net.Conn
	bulk   *bulk.Conn  // beneath TLS; nil: there is none
	gather *gatherer   // nil: there is none
	tail   atomic.Bool // it takes no more; what is read from it now is a tail

	wmu   sync.Mutex // held through each write; guards the following
	reset bool       // a write was told that the connection was reset
	told  error      // what a delivery was told; the next Write says it
}

func newSide(c net.Conn) *side { return &side{Conn: c, bulk: bulk.Of(c), gather: newGatherer(c)} }

// Write writes what TLS makes several records of at once.
func (d *side) Write(p []byte) (int, error) {
	d.wmu.Lock()
	defer d.wmu.Unlock()
	cork := d.bulk != nil && len(p) > recordSize
	if cork {
		d.bulk.Cork()
	}
	n, err := d.Conn.Write(p)
	if cork {
		if uerr := d.bulk.Uncork(); err == nil && uerr != nil {
			n, err = 0, uerr
		}
	}
	d.noteWrite(err)
	if err != nil && d.told != nil {
		err = d.told
	}
	return n, err
}

// noteWrite remembers what the kernel tells once. wmu is held.
func (d *side) noteWrite(err error) {
	if err != nil && socketReset(d.Conn, err) {
		d.reset = true
	}
}

// Read tells a reset from an end of file. The kernel tells of a reset once: if
// that was to a write, a read sees an end of file.
func (d *side) Read(p []byte) (int, error) {
	n, err := d.Conn.Read(p)
	return n, d.ended(err)
}

// ended is what an error of a read is.
func (d *side) ended(err error) error {
	if err == io.EOF && tcpClosed(d.Conn) && d.wasReset() {
		return syscall.ECONNRESET
	}
	return err
}

// fill reads what is there, several records of TLS if so.
func (d *side) fill(p []byte) (n int, err error) {
	for {
		m, err := d.Read(p[n:])
		n += m
		if err != nil || d.bulk == nil || len(p)-n < recordSize || !d.bulk.Waiting() {
			return n, err
		}
	}
}

// wasReset waits for a write that is under way, which on a connection that is closed returns.
func (d *side) wasReset() bool {
	d.wmu.Lock()
	defer d.wmu.Unlock()
	return d.reset
}

// takesNoMore begins the tail: d is read until it ends, but not for ever, as
// there may be nobody there at all.
func (d *side) takesNoMore() {
	d.tail.Store(true)
	_ = d.SetReadDeadline(time.Now().Add(tailTime))
	if d.gather != nil { // after the deadline, which may have been in the place of the gatherer's own
		d.gather.mark(1)
	}
}

// expectTail is called before each read: a tail may not pause for longer.
func (d *side) expectTail() {
	if d.tail.Load() {
		_ = d.SetReadDeadline(time.Now().Add(tailTime))
	}
}

// run copies src to dst.
func (s *splice) run(src, dst *side) int64 {
	stop := deliver(src, dst)
	n, rerr, werr := copyAll(src, dst)
	n += stop()
	switch {
	case rerr != nil:
		s.fail(fmt.Errorf("read: %w", rerr))
		Abort(src.Conn)
		Abort(dst.Conn)
	case werr != nil && dst.wasReset():
		s.fail(fmt.Errorf("write: %w", werr))
		Abort(src.Conn)
		Abort(dst.Conn)
	case werr != nil: // it may have more to say: an early answer, for one
		s.fail(fmt.Errorf("write: %w", werr))
		dst.takesNoMore()
	default:
		if h, ok := dst.Conn.(halfCloser); !ok {
			_ = dst.Close()
		} else if err := h.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
			s.fail(fmt.Errorf("half-close: %w", err))
			dst.takesNoMore()
		}
	}
	return n
}

// fail notes the first abnormal end; those that follow are its consequences.
func (s *splice) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

// copyAll copies until the end of src, or an error of either. A buffer is held
// only while there is something to copy: most connections are idle most of the time.
func copyAll(src, dst *side) (n int64, rerr, werr error) {
	pieces := &bulk.Pieces{}
	first, free := firstRead(src, pieces)
	for {
		piece, r, err := first()
		var buf []byte
		if piece != nil {
			buf = piece.Payload()
		}
		more, done, rerr, werr := burst(src, dst, pieces, buf, free, r, err)
		if piece != nil {
			piece.Free()
		}
		n += more
		if done || rerr != nil || werr != nil {
			return n, rerr, werr
		}
	}
}

// burst copies what was read into buf, and goes on until src has nothing more at hand; done is the end of file. free says that src is waited for
// with no buffer elsewhere, so that it is not waited for here.
func burst(src, dst *side, pieces *bulk.Pieces, buf []byte, free bool, r int, err error) (n int64, done bool, rerr, werr error) {
	if src.gather != nil {
		defer src.gather.end()
	}
	small := buf
	var large *bulk.Piece // for what is read ahead beneath TLS, or is gathered; not held while src is waited for without a limit of time
	drop := func() {
		if large != nil {
			large.Free()
			large, buf = nil, small
		}
	}
	enlarge := func() {
		drop()
		pieces.Large = true
		large = pieces.Take()
		buf = large.Payload()
	}
	defer drop()
	for {
		if r > 0 {
			w, werr := dst.Write(buf[:r])
			n += int64(w)
			if werr != nil {
				return n, false, nil, werr
			}
		}
		pieces.Filled(r)
		switch {
		case err == io.EOF:
			return n, true, nil, nil
		case err != nil:
			return n, false, err, nil
		case r < bufferSize/4:
			return n, false, nil, nil
		case src.gather != nil && src.gather.wanted(r) && !src.tail.Load():
			if len(buf) < bulk.LargePiece && src.gather.patient() {
				enlarge()
			}
			r, err = src.gather.read(buf)
			err = src.ended(err)
		case free:
			return n, false, nil, nil
		default:
			drop()
			if r >= bufferSize && src.bulk != nil && src.bulk.Waiting() {
				enlarge()
			}
			src.expectTail()
			r, err = src.fill(buf)
		}
	}
}

// firstRead returns how to wait for src, and read; free says that no buffer is held while it waits. Where that can't be had there is one all the
// time, and it is no large one. Without bytes there may be none.
func firstRead(src *side, pieces *bulk.Pieces) (first func() (*bulk.Piece, int, error), free bool) {
	if socket := newSource(src.Conn, pieces); socket != nil {
		return func() (*bulk.Piece, int, error) {
			src.expectTail()
			piece, r, err := socket.Read()
			return piece, r, src.ended(err)
		}, true
	}
	w, free := src.Conn.(waiter)
	return func() (*bulk.Piece, int, error) {
		src.expectTail()
		if free {
			if err := w.WaitRead(); err != nil {
				return nil, 0, err
			}
		} else {
			pieces.Large = false
		}
		piece := pieces.Take()
		r, err := src.fill(piece.Payload())
		return piece, r, err
	}, free
}

// newSource returns how to read from a socket; nil: c is none.
func newSource(c net.Conn, pieces *bulk.Pieces) *bulk.Source[bulk.Piece] {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn: // and nothing that only wraps one
		return bulk.NewSource(c, pieces, (*bulk.Piece).Payload)
	}
	return nil
}

// socketReset says whether err means that the TCP connection beneath c was reset.
func socketReset(c net.Conn, err error) bool {
	if !errors.Is(err, syscall.ECONNRESET) {
		return false
	}
	for {
		switch v := c.(type) {
		case *net.TCPConn:
			return true
		case wrapper:
			c = v.NetConn()
		default:
			return false
		}
	}
}

// Abort ends c so that the other side can not take it for a clean end. Of two connections that are joined, abort both.
func Abort(c net.Conn) {
	for {
		switch v := c.(type) {
		case aborter:
			_ = v.Abort()
			return
		case *net.TCPConn:
			_ = v.SetLinger(0)
			_ = v.Close()
			return
		case wrapper:
			c = v.NetConn()
		default:
			_ = c.Close()
			return
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
