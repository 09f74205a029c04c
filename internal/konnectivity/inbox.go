package konnectivity

import (
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// maxInbox is how many bytes of one connection may wait to be read before the agent has to wait.
	maxInbox = 1 << 20
	// maxInboxes is the same of all connections of one agent: over it, the connection of which the most waits is closed.
	maxInboxes = 16 << 20
	// chunkCost is what a packet costs beside its bytes, so that many small ones count too.
	chunkCost = 64
	// patience is for how long a connection that is not read may hold its agent up at once. It comes back with what is read.
	patience = 2 * time.Second
	// minRate is how many bytes a second a connection has to read, in the long run, of an agent that always has more: so
	// fast, and faster, it is never closed for being slow, and the agent's other connections are held up no more than that.
	minRate = 256 << 10
)

var (
	errSlow = errors.New("not read fast enough: the konnectivity agent's other connections could not wait any longer")
	errFull = errors.New("too much of the konnectivity agent's connections waits to be read, and of this one the most")
)

// inbox is what has come of one connection and was not read yet.
type inbox struct {
	mu       sync.Mutex // guards the following
	chunks   [][]byte
	size     int
	end      error         // once the chunks are read
	credit   time.Duration // what is left of patience
	readable chan struct{} // holds one: something changed for the reader
	room     chan struct{} // holds one: something changed for the writer
}

func newInbox() *inbox {
	return &inbox{credit: patience, readable: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// push adds a chunk, which it keeps, and waits for room if there is none. It returns how much more waits now; errSlow: the reader
// used up its patience, and nothing was added. What comes after the end is dropped.
func (b *inbox) push(p []byte, stop <-chan struct{}) (added int, err error) {
	cost := len(p) + chunkCost
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.end == nil && b.size > 0 && b.size+cost > maxInbox {
		if b.credit <= 0 {
			return 0, errSlow
		}
		credit := b.credit
		b.mu.Unlock()
		waited := waitFor(b.room, stop, credit)
		b.mu.Lock()
		b.credit -= waited
	}
	if b.end != nil {
		return 0, nil
	}
	b.chunks, b.size = append(b.chunks, p), b.size+cost
	signal(b.readable)
	return cost, nil
}

// waitFor waits for either channel, and not longer than limit, and returns for how long.
func waitFor(a, b <-chan struct{}, limit time.Duration) time.Duration {
	began := time.Now()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-a:
	case <-b:
		return limit
	case <-timer.C:
	}
	return time.Since(began)
}

// take reads what is there. It returns 0 and no error if there is nothing yet; freed is how much less waits now.
func (b *inbox) take(p []byte) (n, freed int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n < len(p) && len(b.chunks) > 0 {
		c := copy(p[n:], b.chunks[0])
		n, freed = n+c, freed+c
		if b.chunks[0] = b.chunks[0][c:]; len(b.chunks[0]) == 0 {
			b.chunks[0] = nil
			b.chunks, freed = b.chunks[1:], freed+chunkCost
		}
	}
	b.size -= freed
	b.credit = min(patience, b.credit+time.Duration(n)*time.Second/minRate)
	if freed > 0 {
		signal(b.room)
	}
	if n == 0 && len(p) > 0 {
		err = b.end
	}
	if len(b.chunks) > 0 || b.end != nil {
		signal(b.readable)
	}
	return n, freed, err
}

// finish sets what is read at the end. io.EOF leaves what waits to be read; anything else drops it. The first wins, but that an
// end of file gives way to an error. It returns how much less waits now.
func (b *inbox) finish(err error) (freed int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.end != nil && (b.end != io.EOF || err == io.EOF) {
		return 0
	}
	if b.end = err; err != io.EOF {
		freed, b.size, b.chunks = b.size, 0, nil
	}
	signal(b.readable)
	signal(b.room)
	return freed
}

// ready tells whether take returns something.
func (b *inbox) ready() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.chunks) > 0 || b.end != nil
}

// waiting is how much waits to be read.
func (b *inbox) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size
}
