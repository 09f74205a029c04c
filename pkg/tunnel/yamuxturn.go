package tunnel

import (
	"sync/atomic"
	"time"
)

const (
	// leastTurn is the largest frame of a stream on a connection that is not known to be quick: streams take turns by frames, and on an uplink of
	// 10 Mbit/s one of that size takes 50 ms.
	leastTurn = 64 << 10
	// mostTurn is the same on a quick one, where fewer wakings of all on the way count for more. It is no more than baseWindow.
	mostTurn = 256 << 10
	// quickTurn is how long writing leastTurn takes at the most where it is quick: 32 MB/s.
	quickTurn = 2 * time.Millisecond
	// quickTurns is how many in a row it takes. What the kernel takes at once without having sent it (tcpNotSent) is less.
	quickTurns = 8
)

// turn is how many bytes a stream may write before it is another's turn. wrote is for one at a time.
type turn struct {
	grown atomic.Bool
	quick int // how many in a row were
}

// most is what a frame may have.
func (t *turn) most() int {
	if t.grown.Load() {
		return mostTurn
	}
	return leastTurn
}

// wrote takes note of how long a frame took. Short ones say nothing.
func (t *turn) wrote(n int, took time.Duration) {
	switch {
	case n < leastTurn:
	case took > quickTurn*time.Duration(n/leastTurn):
		t.quick = 0
		t.grown.Store(false)
	case t.quick < quickTurns:
		t.quick++
	default:
		t.grown.Store(true)
	}
}
