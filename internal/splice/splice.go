// Package splice is the only copy loop: it joins two connections until both
// directions have ended, keeps half-closes, and never lets an abnormal end on
// one side look like a clean one on the other.
//
// It knows connections only as net.Conn and by what they can do beyond that:
// CloseWrite (half-close), Abort (an end that the other side sees as abnormal)
// and WaitRead (wait without a buffer). TCP connections are helped out where
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
)

const (
	bufferSize = 64 << 10
	// tailTime is how long the rest of a direction may pause, once nothing can be
	// sent in the other one any more: an answer that is still on its way is worth it.
	tailTime = 10 * time.Second
)

var buffers = sync.Pool{New: func() any { b := new([bufferSize]byte); return b }}

type (
	halfCloser interface{ CloseWrite() error }
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
	var wg sync.WaitGroup
	wg.Go(func() { bToA = s.run(b, a, &s.tailB, &s.tailA) })
	aToB = s.run(a, b, &s.tailA, &s.tailB)
	wg.Wait()
	cerr := errors.Join(ignoreClosed(a.Close()), ignoreClosed(b.Close())) // what was aborted is closed already
	if s.err != nil {
		return aToB, bToA, s.err
	}
	return aToB, bToA, cerr
}

// splice is what the two directions of one Splice share.
type splice struct {
	// tailA is set when nothing can be written to a any more, tailB likewise: what
	// is read from it then is a tail.
	tailA, tailB atomic.Bool

	mu  sync.Mutex // guards err
	err error      // the first abnormal end
}

// run copies src to dst. tailSrc says that src is no longer written to.
func (s *splice) run(src, dst net.Conn, tailSrc, tailDst *atomic.Bool) int64 {
	n, rerr, werr := copyAll(src, dst, tailSrc)
	switch {
	case rerr != nil:
		s.fail(fmt.Errorf("read: %w", rerr))
		abort(src)
		abort(dst)
	case werr != nil && socketReset(dst, werr):
		// The kernel tells of a reset once: reading dst would now look like a clean end.
		s.fail(fmt.Errorf("write: %w", werr))
		abort(src)
		abort(dst)
	case werr != nil:
		// dst takes no more, but may have more to say: it is read until it ends. That
		// is bounded, as there may be nobody there at all.
		s.fail(fmt.Errorf("write: %w", werr))
		tailDst.Store(true)
		_ = dst.SetReadDeadline(time.Now().Add(tailTime))
	default:
		if h, ok := dst.(halfCloser); !ok {
			_ = dst.Close()
		} else if err := h.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
			s.fail(fmt.Errorf("half-close: %w", err))
			_ = dst.SetReadDeadline(time.Now().Add(tailTime))
			tailDst.Store(true)
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
func copyAll(src, dst net.Conn, tail *atomic.Bool) (n int64, rerr, werr error) {
	wait := waitFunc(src)
	for {
		if wait != nil {
			if err := wait(); err != nil {
				return n, err, nil
			}
		}
		more, done, rerr, werr := burst(src, dst, tail, wait != nil)
		n += more
		if done || rerr != nil || werr != nil {
			return n, rerr, werr
		}
	}
}

// burst copies with one buffer until src has nothing more at hand, if that can
// be told; done is the end of file.
func burst(src, dst net.Conn, tail *atomic.Bool, short bool) (n int64, done bool, rerr, werr error) {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		if tail.Load() {
			_ = src.SetReadDeadline(time.Now().Add(tailTime))
		}
		r, err := src.Read(buf[:])
		if r > 0 {
			w, werr := dst.Write(buf[:r])
			n += int64(w)
			if werr != nil {
				return n, false, nil, werr
			}
		}
		switch {
		case err == io.EOF:
			return n, true, nil, nil
		case err != nil:
			return n, false, err, nil
		case short && r < len(buf)/4:
			return n, false, nil, nil
		}
	}
}

// waitFunc returns how to wait for src without a buffer; nil: not at all.
func waitFunc(c net.Conn) func() error {
	switch v := c.(type) {
	case waiter:
		return v.WaitRead
	case *net.TCPConn:
		return tcpWait(v)
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

// abort ends c so that the other side can not take it for a clean end.
func abort(c net.Conn) {
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
