package tunnel

import (
	"io"
	"sync"
)

// pieceSize is that of the buffers in which bytes wait to be read: two records of TLS.
const pieceSize = 32 << 10

// piece is a part of what arrived. From r to w it is still to be read.
type piece struct {
	next *piece
	r, w int
	buf  [pieceSize]byte
}

var piecePool = sync.Pool{New: func() any { return new(piece) }}

func newPiece() *piece {
	p := piecePool.Get().(*piece)
	p.next, p.r, p.w = nil, 0, 0
	return p
}

// inbox holds what arrived on a stream and was not read: as much as it needs, and nothing when all was. How much may arrive is
// yamuxWindows' to say.
//
// One goroutine fills it and one reads it, beside each other: each works on a region of its own without the lock. Who reads holds
// the stream's rmu; the control stream has its controlReader, and nobody else. While it rests, who fills may read in its place: see handTo.
type inbox struct {
	wake chan struct{} // holds one: whoever reads has cause to look again

	turn    sync.Mutex         // guards the following; held while deliver is called
	deliver func(p []byte) int // takes what it can at once, and returns how much; nil: nobody does
	resting bool               // whoever reads waits, and is done with all that it read: deliver may go ahead of it

	mu         sync.Mutex // guards the following, but for the two regions
	head, tail *piece
	filling    bool // tail's free part is being written
	dead       bool // nobody reads any more: what arrives is dropped
	over       bool // the other side sends nothing more
	refused    bool // it did not take the stream
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// poke has whoever reads look again.
func (b *inbox) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// handTo has what arrives while whoever reads rests given to f, by who fills; nil: to nobody. f is not called any more once it has returned.
func (b *inbox) handTo(f func(p []byte) int) {
	b.turn.Lock()
	defer b.turn.Unlock()
	b.deliver = f
	b.resting = false
}

// rest is called by whoever reads, before it waits and when it has.
func (b *inbox) rest(rests bool) {
	b.turn.Lock()
	defer b.turn.Unlock()
	b.resting = rests
}

// announce tells whoever reads of what came, unless that was delivered, so that nobody has to be woken for it.
func (b *inbox) announce() {
	if !b.pass() {
		b.poke()
	}
}

// pass delivers what is there. It returns false if not all of it was taken.
func (b *inbox) pass() bool {
	b.turn.Lock()
	defer b.turn.Unlock()
	if b.deliver == nil {
		return false
	}
	for b.resting {
		h, there := b.front()
		if len(there) == 0 {
			return true
		}
		n := b.deliver(there)
		b.consume(h, n)
		b.resting = n == len(there) // else the rest is for whoever reads, and nothing may overtake it
	}
	return false
}

// end says that nothing more comes.
func (b *inbox) end(refused bool) {
	b.mu.Lock()
	b.over = true
	b.refused = b.refused || refused
	b.mu.Unlock()
	b.poke()
}

// drop says that nobody reads any more.
func (b *inbox) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dead = true
	if !b.filling {
		b.head, b.tail = nil, nil
	}
}

// fill takes n bytes of r. What it has is there to be read at once, not only when all has come; but whoever reads is not woken as long as
// more says that the next part is at hand.
//
// The first part may be no more than what was read with the header, and TLS has the rest of its record in most cases: it is announced with the
// next one, for a message to be delivered whole.
func (b *inbox) fill(r io.Reader, n int, more func() bool) error {
	for first := true; n > 0; first = false {
		room := b.room(n)
		if room == nil {
			return discardN(r, int64(n))
		}
		m, err := r.Read(room)
		b.filled(m)
		n -= m
		if n == 0 || err != nil || !more() && !(first && m < headBuffer) {
			b.announce()
		}
		if n > 0 && err != nil {
			return unexpected(err)
		}
	}
	return nil
}

// room is where up to n bytes may be written to until filled is called; nil if nobody would read them.
func (b *inbox) room(n int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dead {
		return nil
	}
	if b.tail == nil || b.tail.w == pieceSize {
		p := newPiece()
		if b.tail == nil {
			b.head = p
		} else {
			b.tail.next = p
		}
		b.tail = p
	}
	b.filling = true
	return b.tail.buf[b.tail.w:min(b.tail.w+n, pieceSize)]
}

func (b *inbox) filled(n int) {
	b.mu.Lock()
	b.filling = false
	b.tail.w += n
	if b.dead {
		b.head, b.tail = nil, nil
	}
	b.free()
	b.mu.Unlock()
}

// free gives back what was read. mu is held.
func (b *inbox) free() {
	for p := b.head; p != nil && p.r == p.w && (p != b.tail || !b.filling); p = b.head {
		if p == b.tail {
			b.tail = nil
		}
		b.head = p.next
		piecePool.Put(p)
	}
}

// ready says whether there is something to read.
func (b *inbox) ready() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.head != nil && b.head.r < b.head.w
}

// ended says that nothing is there and nothing more comes, and whether the other side refused the stream.
func (b *inbox) ended() (over, refused bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.over && (b.head == nil || b.head.r == b.head.w), b.refused
}

// finished says whether the other side has sent all, be it read or not.
func (b *inbox) finished() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.over
}

// take reads what is there, up to len(p) bytes; it waits for nothing.
func (b *inbox) take(p []byte) (n int) {
	for n < len(p) {
		h, there := b.front()
		if len(there) == 0 {
			return n
		}
		m := copy(p[n:], there)
		n += m
		b.consume(h, m)
	}
	return n
}

// front is what is there of the oldest piece, for the one who reads: nobody else touches it before consume.
func (b *inbox) front() (h *piece, there []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h = b.head; h != nil {
		there = h.buf[h.r:h.w]
	}
	return h, there
}

// consume says that n bytes of the front were read.
func (b *inbox) consume(h *piece, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h.r += n
	b.free()
}

// discard reads all that is there.
func (b *inbox) discard() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := b.head; p != nil; p = p.next {
		p.r = p.w
	}
	b.free()
}

// discardN passes over n bytes.
func discardN(r io.Reader, n int64) error {
	p := newPiece()
	defer piecePool.Put(p)
	for n > 0 {
		m, err := r.Read(p.buf[:min(n, pieceSize)])
		if n -= int64(m); n > 0 && err != nil {
			return unexpected(err)
		}
	}
	return nil
}

// unexpected is the error of a frame that is cut short.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
