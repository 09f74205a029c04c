package bulk

import (
	"io"
	"net"
	"os"
	"syscall"
)

// Source reads from a socket into buffers of a pool, and takes one only when there is something to read: who waits holds none. One goroutine
// may use it, in the place of the connection's Read, whose deadline and Close it heeds.
type Source[B any] struct {
	conn  net.Conn
	raw   syscall.RawConn
	pool  Pool // of *B
	bytes func(*B) []byte
	try   func(fd uintptr) bool
	look  func(fd uintptr)

	writable bool // of the look that is under way

	// Of the read that is under way.
	buf *B
	n   int
	err error
}

// Pool is what a Source takes buffers from; a *sync.Pool, for one.
type Pool interface {
	Get() any
	Put(any)
}

// NewSource returns nil where c is no socket, or the system has no such reads. bytes is the memory of a buffer.
func NewSource[B any](c net.Conn, pool Pool, bytes func(*B) []byte) *Source[B] {
	socket, ok := c.(syscall.Conn)
	if !ok || ReadSocket == nil {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	s := &Source[B]{conn: c, raw: raw, pool: pool, bytes: bytes}
	s.try = s.attempt // once: the hot path makes no closures
	s.look = func(fd uintptr) { s.writable = canWrite(fd) }
	return s
}

// Read waits, and returns a buffer with what was read, which is the caller's to give back to the pool. With an error, io.EOF among them, there is
// none.
func (s *Source[B]) Read() (buf *B, n int, err error) {
	s.buf, s.n, s.err = nil, 0, nil
	err = s.raw.Read(s.try)
	if err == nil {
		err = s.err
	}
	return s.buf, s.n, err
}

// attempt reads what is there; false: there is nothing yet.
func (s *Source[B]) attempt(fd uintptr) bool {
	buf := s.pool.Get().(*B)
	n, err := ReadSocket(fd, s.bytes(buf))
	if err == nil && n > 0 {
		s.buf, s.n = buf, n
		return true
	}
	s.pool.Put(buf)
	switch err {
	case nil:
		s.err = io.EOF
	case syscall.EAGAIN:
		return false
	default: // a reset is told once: who drops it here makes the next read a clean end
		s.err = ReadError(s.conn, err)
	}
	return true
}

// Writable says whether the socket takes some KiB now. One goroutine may ask at a time, beside the one that reads.
func (s *Source[B]) Writable() bool {
	s.writable = false
	_ = s.raw.Control(s.look)
	return s.writable
}

// ReadError makes of an error of ReadSocket what c's own Read would return.
func ReadError(c net.Conn, err error) error {
	return &net.OpError{Op: "read", Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("read", err)}
}
