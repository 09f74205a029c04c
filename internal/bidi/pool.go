package bidi

import "sync"

// Message is one that was received.
type Message struct {
	bytes []byte
	own   *[]byte // of the pool, with bytes in it; nil: they are in the memory of who reads the connection
}

// MessageOf makes a Message of bytes that are the caller's, for handlers that are not on a connection.
func MessageOf(b []byte) *Message { return &Message{bytes: b} }

// Bytes is the message.
func (m *Message) Bytes() []byte { return m.bytes }

// Keep keeps a part of Bytes beyond Take. It may be called once.
func (m *Message) Keep(part []byte) Held {
	if m.own != nil {
		h := Held{Bytes: part, buf: m.own}
		m.own = nil
		return h
	}
	buf := getBuffer(len(part))
	copy(*buf, part)
	return Held{Bytes: *buf, buf: buf}
}

func (m *Message) free() {
	if m.own != nil {
		putBuffer(m.own)
		m.own = nil
	}
}

// Held are bytes that were kept.
type Held struct {
	Bytes []byte
	buf   *[]byte
}

// Weight is what they take of the memory, in bytes, in a queue.
func (h Held) Weight() int {
	const around = 96 // h, what buf points to, and what a queue has spare
	if h.buf == nil {
		return len(h.Bytes) + around
	}
	return cap(*h.buf) + around
}

// Free gives the memory back. Bytes are not to be used any more.
func (h Held) Free() {
	if h.buf != nil {
		putBuffer(h.buf)
	}
}

// sizes are those of the buffers: for what is short, for a frame of HTTP/2, for a message of io.Copy's at the client, and for one of 64 KiB.
// No buffer is much larger than what is in it: who sends little things must not fill the memory with them.
var sizes = [...]int{4 << 10, 16<<10 + 64, 32<<10 + 64, largestSize}

const largestSize = 64<<10 + 64

// leastSize is from when on a buffer is worth to be kept.
const leastSize = 512

// pools have buffers that hold what they held before.
var pools [len(sizes)]sync.Pool

func init() {
	for i, n := range sizes {
		pools[i].New = func() any { b := make([]byte, n); return &b }
	}
}

func getBuffer(n int) *[]byte {
	for i, size := range sizes {
		if n > leastSize && n <= size {
			b := pools[i].Get().(*[]byte)
			*b = (*b)[:n]
			return b
		}
	}
	b := make([]byte, n)
	return &b
}

func putBuffer(b *[]byte) {
	for i, size := range sizes {
		if cap(*b) == size {
			pools[i].Put(b)
			return
		}
	}
}
