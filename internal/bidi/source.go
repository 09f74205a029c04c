package bidi

import (
	"io"
	"net"
	"sync"

	"github.com/mooring-edge/mooring/internal/bulk"
)

// readSize is how much of a connection is read at a time.
const readSize = 64 << 10

var readBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// source is what is read of a connection. While it waits it holds no buffer.
type source struct {
	conn   net.Conn
	socket *bulk.Source[[readSize]byte] // nil: conn is none
	before func()                       // called before it waits

	buf  *[readSize]byte // nil: there is nothing, or rest is of somebody else's
	rest []byte          // was read, and not taken yet
}

func newSource(conn net.Conn, early []byte, before func()) *source {
	return &source{
		conn: conn, rest: early, before: before,
		socket: bulk.NewSource(conn, &readBuffers, func(b *[readSize]byte) []byte { return b[:] }),
	}
}

// next returns up to n bytes of what there is, of which there is one at least; it waits for that. They are good until next is called again.
func (s *source) next(n int) ([]byte, error) {
	if len(s.rest) == 0 {
		if err := s.fill(); err != nil {
			return nil, err
		}
	}
	b := s.rest[:min(n, len(s.rest))]
	s.rest = s.rest[len(b):]
	return b, nil
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := s.next(len(p))
	return copy(p, b), err
}

func (s *source) fill() error {
	s.free()
	s.before()
	if s.socket != nil {
		buf, n, err := s.socket.Read()
		if err != nil {
			return err
		}
		s.buf, s.rest = buf, buf[:n]
		return nil
	}
	buf := readBuffers.Get().(*[readSize]byte)
	n, err := s.conn.Read(buf[:])
	if n == 0 {
		readBuffers.Put(buf)
		if err == nil {
			err = io.ErrNoProgress
		}
		return err
	}
	s.buf, s.rest = buf, buf[:n]
	return nil
}

// free gives the buffer back.
func (s *source) free() {
	if s.buf != nil {
		readBuffers.Put(s.buf)
		s.buf, s.rest = nil, nil
	}
}
