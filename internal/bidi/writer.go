package bidi

import (
	"encoding/binary"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"github.com/mooring-edge/mooring/internal/bulk"
)

// writer writes frames to a connection.
//
// Who has a message writes it, and waits for the connection as long as it takes. Who must not wait queues its frames: they are written at once where the
// connection takes them and nobody else writes, else by who does, and where it takes nothing, by a goroutine for that alone.
type writer struct {
	conn   net.Conn
	raw    syscall.RawConn // nil: no write without waiting
	work   *sync.WaitGroup // of what runs beside
	aWhile time.Duration

	mu     sync.Mutex // held through each write; guards the following
	failed error
	little []byte // memory for what is sent without waiting

	// Of the write that is under way, without waiting.
	try func(fd uintptr) bool
	p   []byte
	n   int
	err error

	qmu      sync.Mutex // taken after mu, if both are; guards the following
	queue    []byte     // frames that go before all that is written next
	draining bool       // a goroutine is about to write it
	later    []byte     // a frame that goes behind what is written next, if that is long, and else is queued in a while
	much     bool       // something long was written since addLater was called
	while    *time.Timer
	closed   bool // nothing is written any more
}

const (
	// aWhile is how long later frames wait, and long what they do not wait for: the client reads and answers much anyway.
	aWhile = 25 * time.Millisecond
	long   = 4 << 10
)

func newWriter(conn net.Conn, work *sync.WaitGroup, aWhile time.Duration) *writer {
	w := &writer{conn: conn, work: work, aWhile: aWhile}
	if socket, ok := conn.(syscall.Conn); ok && bulk.WriteSocket != nil {
		w.raw, _ = socket.SyscallConn()
	}
	w.try = func(fd uintptr) bool { // once: the hot path makes no closures
		w.n, w.err = bulk.WriteSocket(fd, w.p)
		return true
	}
	return w
}

// add queues frames, for push to write. False: the client does not read what it asks for.
func (w *writer) add(frames func(b []byte) []byte) bool {
	w.qmu.Lock()
	defer w.qmu.Unlock()
	if w.closed {
		return true
	}
	w.queue = frames(w.queue)
	return len(w.queue) <= maxQueue
}

// addLater is add for a frame that nobody waits for as long as nothing long is written.
func (w *writer) addLater(frame []byte) {
	w.qmu.Lock()
	defer w.qmu.Unlock()
	switch {
	case w.closed || len(w.queue) > maxQueue:
		return
	case w.much || len(w.later) > 0: // the client asks twice: it is in a hurry
		w.much = false
		w.queue = append(append(w.queue, w.takeLater()...), frame...)
		return
	}
	w.later = frame
	if w.while != nil {
		w.while.Reset(w.aWhile)
		return
	}
	w.while = time.AfterFunc(w.aWhile, func() {
		w.qmu.Lock()
		w.queue = append(w.queue, w.takeLater()...)
		w.qmu.Unlock()
		w.push()
	})
}

// takeLater takes what was added for later. qmu is held.
func (w *writer) takeLater() []byte {
	frame := w.later
	w.later = nil
	return frame
}

// push writes what is queued, without waiting.
func (w *writer) push() {
	for w.waits() && w.mu.TryLock() {
		done := w.flush()
		w.mu.Unlock()
		if !done {
			w.drainAside()
			return
		}
	} // who holds mu pushes after it has let it go
}

func (w *writer) waits() bool {
	w.qmu.Lock()
	defer w.qmu.Unlock()
	return len(w.queue) > 0
}

// flush writes what is queued, as much as that takes without waiting; false: there is more. mu is held.
func (w *writer) flush() bool {
	w.qmu.Lock()
	p := w.queue
	w.queue = nil
	w.qmu.Unlock()
	return len(p) == 0 || w.attempt(p)
}

// attempt writes p, as much as that takes without waiting, and queues the rest; false: there is one. mu is held.
func (w *writer) attempt(p []byte) bool {
	if w.failed != nil {
		return true
	}
	n := 0
	if w.raw != nil {
		w.p, w.n, w.err = p, 0, nil
		err := w.raw.Write(w.try)
		if w.p = nil; err == nil && w.err != syscall.EAGAIN {
			err = w.err
		}
		if err != nil {
			w.failed = err // what the client said before it left is still to be read
			return true
		}
		if n = max(w.n, 0); n == len(p) {
			return true
		}
	}
	w.qmu.Lock()
	defer w.qmu.Unlock()
	if !w.closed {
		w.queue = append(append([]byte{}, p[n:]...), w.queue...)
	}
	return false
}

// drainAside has the queue written by a goroutine that waits for the connection.
func (w *writer) drainAside() {
	w.qmu.Lock()
	defer w.qmu.Unlock()
	if w.draining || w.closed {
		return
	}
	w.draining = true
	w.work.Go(func() {
		w.mu.Lock()
		w.qmu.Lock()
		w.draining = false
		w.qmu.Unlock()
		_ = w.writeHeld(nil, 0)
		w.mu.Unlock()
		w.push()
	})
}

// write writes what is queued and then bufs, of so many bytes, and waits for that. An error is the connection's: nothing is written any more.
func (w *writer) write(bufs net.Buffers, size int) error {
	w.mu.Lock()
	err := w.writeHeld(bufs, size)
	w.mu.Unlock()
	w.push() // what was queued meanwhile
	return err
}

// writeHeld is write with mu held.
func (w *writer) writeHeld(bufs net.Buffers, size int) error {
	w.qmu.Lock()
	if len(w.queue) > 0 {
		bufs = append(net.Buffers{w.queue}, bufs...)
		w.queue = nil
	}
	if size > long {
		w.much = true
		if len(w.later) > 0 {
			w.while.Stop()
			bufs = append(bufs, w.takeLater())
		}
	}
	w.qmu.Unlock()
	if w.failed != nil {
		return w.failed
	}
	_, w.failed = bufs.WriteTo(w.conn)
	return w.failed
}

// close ends the writes, and the connection.
func (w *writer) close() {
	w.qmu.Lock()
	w.closed, w.queue, w.later = true, nil, nil
	if w.while != nil {
		w.while.Stop()
	}
	w.qmu.Unlock()
	_ = w.conn.Close() // ends a write that is under way, too
}

// appendFrame begins a frame (RFC 9113, section 4.1), which is followed by its payload.
func appendFrame(b []byte, length int, kind http2.FrameType, flags http2.Flags, stream uint32) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(b, stream)
}
