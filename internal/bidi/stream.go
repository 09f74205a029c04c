package bidi

import (
	"encoding/binary"
	"errors"
	"net"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrEnded says that the client takes no more of a stream.
var ErrEnded = errors.New("the stream of the client has ended")

// Stream is one stream, for its handler to send on. Send and TrySend are for one goroutine at a time; Pause and Resume for any.
type Stream struct {
	c       *conn
	id      uint32
	handler Handler

	// Of the one who reads the connection.
	deaf   bool // nothing more is taken: Ended was called
	prefix [prefixSize]byte
	have   int     // of the prefix
	need   int     // of the message behind it, if all of the prefix is there
	msg    *[]byte // what is there of the message, if it comes in parts

	begun bool // the headers were sent; of the one who sends

	// Guarded by c.mu.
	window int           // what the client takes, in bytes
	room   chan struct{} // holds one: there is more of it, or silent is set
	waits  bool          // somebody waits for that
	silent bool          // nothing is sent any more
	ahead  int           // what the client may send, in bytes
	taken  int           // what came, and the client was not told yet
	paused int
	// closedByClient is written by the one who reads the connection.
	closedByClient bool
}

// take takes bytes of the stream's messages. An error is the handler's, or for a message that can't be one.
func (s *Stream) take(b []byte) error {
	for len(b) > 0 {
		if s.have < prefixSize {
			n := copy(s.prefix[s.have:], b)
			b = b[n:]
			if s.have += n; s.have < prefixSize {
				return nil
			}
			if err := s.begins(); err != nil {
				return err
			}
		}
		if s.msg == nil && len(b) >= s.need { // also one of no bytes at the end of b
			m := Message{bytes: b[:s.need]}
			b = b[s.need:]
			s.have = 0
			if err := s.handler.Take(&m); err != nil {
				return err
			}
			continue
		}
		n := s.gather(b)
		b = b[n:]
		if len(*s.msg) < s.need {
			return nil
		}
		m := Message{bytes: *s.msg, own: s.msg}
		s.msg, s.have = nil, 0
		err := s.handler.Take(&m)
		m.free()
		if err != nil {
			return err
		}
	}
	return nil
}

// begins looks at the prefix of a message.
func (s *Stream) begins() error {
	switch most := s.c.cfg.MaxMessage; {
	case s.prefix[0] == 1:
		return status.Error(codes.Unimplemented, "messages that are compressed are not taken here")
	case s.prefix[0] != 0:
		return status.Errorf(codes.Internal, "a message can't begin with %#x", s.prefix[0])
	case uint64(binary.BigEndian.Uint32(s.prefix[1:])) > uint64(most):
		return status.Errorf(codes.ResourceExhausted, "a message of %d bytes, where %d are taken", binary.BigEndian.Uint32(s.prefix[1:]), most)
	}
	s.need = int(binary.BigEndian.Uint32(s.prefix[1:]))
	return nil
}

// gather adds to a message that comes in parts, and returns how much. What is not there yet has no memory, but for that of a buffer.
func (s *Stream) gather(b []byte) int {
	if s.msg == nil {
		s.msg = getBuffer(min(s.need, largestSize))
		*s.msg = (*s.msg)[:0]
	}
	have := len(*s.msg)
	b = b[:min(len(b), s.need-have)]
	if have+len(b) > cap(*s.msg) {
		more := make([]byte, have, min(s.need, 2*(have+len(b))))
		copy(more, *s.msg)
		putBuffer(s.msg)
		s.msg = &more
	}
	*s.msg = append(*s.msg, b...)
	return len(b)
}

// ended tells the handler that nothing more comes, and has the stream end for the client when it has. err is why, if that is not the client's doing. It is for
// the one who reads the connection, and may be called again.
func (s *Stream) ended(err error) {
	if s.deaf {
		return
	}
	s.deaf = true
	if s.msg != nil {
		putBuffer(s.msg)
		s.msg = nil
	}
	s.handler.Ended()
	s.c.work.Go(func() {
		s.handler.Wait()
		s.finish(err)
	})
}

// finish sends the end of the stream.
func (s *Stream) finish(err error) {
	s.c.mu.Lock()
	silent, closed := s.hush(), s.closedByClient
	delete(s.c.streams, s.id)
	s.c.mu.Unlock()
	if silent {
		return
	}
	last := statusBlock(status.Convert(err), !s.begun)
	read := s.c.w.add(func(b []byte) []byte {
		b = appendFrame(b, len(last), http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, s.id)
		b = append(b, last...)
		if !closed { // RFC 9113, section 8.1: it need not send what nobody reads
			b = appendReset(b, s.id, http2.ErrCodeNo)
		}
		return b
	})
	if !read { // by a client that opens and ends streams, and reads nothing
		_ = s.c.conn.Close()
		return
	}
	s.c.w.push()
}

// cut ends the stream in both directions. It is for the one who reads the connection.
func (s *Stream) cut() {
	s.silence()
	s.ended(nil)
}

// silence has nothing sent any more.
func (s *Stream) silence() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.hush()
	s.wake()
}

// hush is silence with c.mu held, and returns what it was before.
func (s *Stream) hush() (silent bool) {
	if s.silent {
		return true
	}
	s.silent = true
	s.c.live--
	return false
}

// wake wakes the one who waits for a window. c.mu is held.
func (s *Stream) wake() {
	if !s.waits {
		return
	}
	s.waits = false
	select {
	case s.room <- struct{}{}:
	default:
	}
}

// reserve waits for the client to take at least one byte, and returns how many of n it takes.
func (s *Stream) reserve(n int) (int, error) {
	for {
		s.c.mu.Lock()
		if s.silent {
			s.c.mu.Unlock()
			return 0, ErrEnded
		}
		if n := min(n, s.window, s.c.window); n > 0 {
			s.window -= n
			s.c.window -= n
			s.c.mu.Unlock()
			return n, nil
		}
		s.waits = true
		s.c.mu.Unlock()
		<-s.room
	}
}

// reserveAll is reserve for all of n, or nothing, without waiting.
func (s *Stream) reserveAll(n int) bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.silent || n > min(s.window, s.c.window) {
		return false
	}
	s.window -= n
	s.c.window -= n
	return true
}

// Send sends a message, of which head comes before body, and waits until the connection has taken it. ErrEnded, or another error of the
// connection's: the client will not see it.
func (s *Stream) Send(head, body []byte) error {
	length := len(head) + len(body)
	little := make([]byte, 0, 128)
	little = s.appendBegin(little)
	little = appendPrefix(little, length)
	headers := len(little) - prefixSize // of it are not of the message
	parts := [...][]byte{little[headers:], head, body}
	for rest := prefixSize + length; rest > 0; {
		n, err := s.reserve(rest)
		if err != nil {
			return err
		}
		rest -= n
		size := n
		frames := (n + maxFrame - 1) / maxFrame
		heads := make([]byte, 0, frames*frameHeader)
		bufs := make(net.Buffers, 0, 2*frames+4)
		if headers > 0 {
			bufs = append(bufs, little[:headers])
			headers = 0
		}
		for n > 0 {
			m := min(n, maxFrame)
			n -= m
			at := len(heads)
			heads = appendFrame(heads, m, http2.FrameData, 0, s.id)
			bufs = append(bufs, heads[at:])
			for i := range parts {
				k := min(m, len(parts[i]))
				if k > 0 {
					bufs = append(bufs, parts[i][:k])
					parts[i] = parts[i][k:]
					m -= k
				}
			}
		}
		if err := s.c.w.write(bufs, size); err != nil {
			return err
		}
	}
	return nil
}

// appendBegin adds the stream's first headers, once.
func (s *Stream) appendBegin(b []byte) []byte {
	if s.begun {
		return b
	}
	s.begun = true
	return append(appendFrame(b, len(begin), http2.FrameHeaders, http2.FlagHeadersEndHeaders, s.id), begin...)
}

func appendPrefix(b []byte, size int) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0), uint32(size))
}

// TrySend sends a message if that waits for nothing. If not, it sends nothing and returns false; why, Send says. Messages larger than a frame (some 16 KiB)
// are not sent so.
func (s *Stream) TrySend(head, body []byte) bool {
	size := prefixSize + len(head) + len(body)
	w := s.c.w
	if w.raw == nil || size > maxFrame || !w.mu.TryLock() {
		return false
	}
	sent := w.failed == nil && w.flush() && s.reserveAll(size)
	if sent {
		b := w.little[:0]
		b = s.appendBegin(b)
		b = appendFrame(b, size, http2.FrameData, 0, s.id)
		b = appendPrefix(b, size-prefixSize)
		b = append(append(b, head...), body...)
		w.attempt(b) // the rest is queued
		if w.little = b; cap(b) > leastLittle {
			w.little = nil
		}
	}
	w.mu.Unlock()
	w.push()
	return sent
}

// leastLittle is what a connection keeps for short messages, in bytes.
const leastLittle = 1 << 10

// Pause has the client not told that it may send more, until a Resume for each Pause. It may still send what it was told before: half a MiB at the most.
func (s *Stream) Pause() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.paused++
}

// Resume ends a Pause.
func (s *Stream) Resume() {
	s.c.mu.Lock()
	s.paused--
	s.c.mu.Unlock()
	_ = s.c.tell(s, 0)
	s.c.w.push()
}
