package tunnel

import (
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Stream is one connection through a session. It is a net.Conn, with these
// precisions:
//
// Read returns io.EOF only when the other side ended its bytes in the ordinary
// way. After a reset by the other side it returns a *ResetError, after the end
// of the session a *ClosedError. Write returns a *ResetError when the other
// side has closed or reset the stream: nobody will read.
//
// CloseWrite ends the bytes written here; reading goes on. Close does the same
// and stops reading. Reset ends both directions abnormally. None of them waits
// for the other side. Closing while a Write is under way in another goroutine
// is a reset: half of what that Write was given would be no clean end.
type Stream struct {
	raw    muxStream
	s      *Session
	slot   *limiter
	closed atomic.Bool
	bytes  atomic.Uint64
}

var _ net.Conn = (*Stream)(nil)

// Read implements net.Conn.
func (st *Stream) Read(p []byte) (int, error) {
	if st.closed.Load() {
		return 0, errStreamClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := st.raw.Read(p)
	st.countRead(n)
	if err != nil && err != io.EOF {
		err = st.s.streamErr(err)
	}
	return n, err
}

func (st *Stream) countRead(n int) {
	if n > 0 {
		st.bytes.Add(uint64(n))
		st.s.bytesIn.Add(uint64(n))
		st.s.meter.read(n)
	}
}

// Write implements net.Conn.
func (st *Stream) Write(p []byte) (int, error) {
	if st.closed.Load() {
		return 0, errStreamClosed
	}
	st.s.writes.Add(1)
	n, err := st.raw.Write(p)
	st.countWritten(n)
	if err != nil {
		err = st.s.streamErr(err)
	}
	return n, err
}

func (st *Stream) countWritten(n int) {
	if n > 0 {
		st.bytes.Add(uint64(n))
		st.s.bytesOut.Add(uint64(n))
		st.s.meter.wrote(n)
	}
}

// WaitRead returns once Read would not block. Whoever copies needs no buffer
// while a stream is idle.
func (st *Stream) WaitRead() error {
	if w, ok := st.raw.(interface{ waitRead() error }); ok {
		if err := w.waitRead(); err != nil && err != io.EOF {
			return st.s.streamErr(err)
		}
	}
	return nil
}

// Deliver has what arrives given to f, by whoever reads the session, while a WaitRead waits for it, which does not return for what f took. So
// a message is passed on without another goroutine being woken for it. f returns how many bytes it took; the rest, and what
// comes after it, is there to be read. It must not wait for anything: all the session's streams would. It keeps nothing of p, and must not
// use the stream. With nil that ends: f is not called any more once Deliver has returned. Over QUIC it has no effect, as each
// stream is read by its reader there.
func (st *Stream) Deliver(f func(p []byte) int) {
	d, ok := st.raw.(interface{ deliver(func(p []byte) int) })
	switch {
	case !ok:
	case f == nil:
		d.deliver(nil)
	default:
		d.deliver(func(p []byte) int {
			n := f(p)
			st.countRead(n)
			return n
		})
	}
}

// TryWrite writes p, a message of a few KiB at the most, or has it written soon, if that can be done without waiting for anything. If not, it writes nothing and
// returns false; why, Write says. Over QUIC it always does.
func (st *Stream) TryWrite(p []byte) bool {
	w, ok := st.raw.(interface{ tryWrite(p []byte) bool })
	if !ok || st.closed.Load() || !w.tryWrite(p) {
		return false
	}
	st.s.writes.Add(1)
	st.countWritten(len(p))
	return true
}

// CloseWrite ends what is written here: the other side reads io.EOF.
func (st *Stream) CloseWrite() error {
	if st.closed.Load() {
		return errStreamClosed
	}
	if err := st.raw.closeWrite(); err != nil {
		return st.s.streamErr(err)
	}
	return nil
}

// Close implements net.Conn. What was written before arrives, unless the session ends first.
func (st *Stream) Close() error {
	if !st.closed.Swap(true) {
		st.raw.close()
		st.slot.release()
	}
	return nil
}

// Reset ends both directions abnormally: the other side's Read and Write return
// a *ResetError with code. After Close it does nothing.
func (st *Stream) Reset(code wire.Code) error {
	if !st.closed.Swap(true) {
		st.raw.reset(code)
		st.slot.release()
	}
	return nil
}

// Abort is Reset(wire.Canceled), for those who know nothing of codes.
func (st *Stream) Abort() error { return st.Reset(wire.Canceled) }

// Bytes returns how many bytes were read and written so far, together.
func (st *Stream) Bytes() uint64 { return st.bytes.Load() }

// Session returns the session that carries the stream.
func (st *Stream) Session() *Session { return st.s }

// LocalAddr implements net.Conn; it is the session's.
func (st *Stream) LocalAddr() net.Addr { return st.s.l.local }

// RemoteAddr implements net.Conn; it is the session's.
func (st *Stream) RemoteAddr() net.Addr { return st.s.l.remote }

// SetDeadline implements net.Conn.
func (st *Stream) SetDeadline(t time.Time) error {
	if err := st.SetReadDeadline(t); err != nil {
		return err
	}
	return st.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (st *Stream) SetReadDeadline(t time.Time) error {
	if st.closed.Load() {
		return errStreamClosed
	}
	return st.raw.SetReadDeadline(t)
}

// SetWriteDeadline implements net.Conn. Where the session's connection itself
// takes no more bytes, a Write over TCP may outlast it, until the heartbeat
// gives the session up.
func (st *Stream) SetWriteDeadline(t time.Time) error {
	if st.closed.Load() {
		return errStreamClosed
	}
	return st.raw.SetWriteDeadline(t)
}

// limiter counts what is bounded.
type limiter struct {
	n        atomic.Int64
	max      int64
	released func() // called after each release; may be nil
}

func (l *limiter) acquire() bool {
	if l.n.Add(1) > l.max {
		l.n.Add(-1)
		return false
	}
	return true
}

func (l *limiter) release() {
	l.n.Add(-1)
	if l.released != nil {
		l.released()
	}
}
