package bulk

import (
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	// SmallPiece and LargePiece are how many bytes of payload the two kinds of buffers are for.
	SmallPiece = 64 << 10
	LargePiece = 256 << 10
	// around is what TLS and a multiplexer add to those of SmallPiece: five records' headers and ends, a frame, and what goes ahead of it.
	around = 1<<10 + 256

	smallSize = SmallPiece + around
	largeSize = LargePiece + 4*around

	// largeEach is how many large ones there are for each processor at the most. Who is stuck in a write holds on to its own, for long maybe, and must not
	// take more memory for having been quick: all others have small ones then.
	largeEach = 16
)

// Piece is a buffer, with what it held before.
type Piece struct{ mem []byte }

// Payload is the memory of SmallPiece or LargePiece bytes.
func (p *Piece) Payload() []byte {
	if len(p.mem) == largeSize {
		return p.mem[:LargePiece]
	}
	return p.mem[:SmallPiece]
}

var (
	smalls, larges           sync.Pool    // of *Piece
	smallsThere, largesThere atomic.Int64 // in use, in the pool, or about to be collected
)

// There is how many pieces there are, in use or kept for use. It is for tests: once garbage was collected twice, what is left is in use.
func There() int64 { return smallsThere.Load() + largesThere.Load() }

// newPiece makes one that was counted; one that is lost, as with a connection that nobody reads to its end, is counted off when it is collected.
func newPiece(size int, there *atomic.Int64) *Piece {
	p := &Piece{make([]byte, size)}
	runtime.AddCleanup(p, func(there *atomic.Int64) { there.Add(-1) }, there)
	return p
}

// Pieces gives pieces to one who reads or writes: a large one while Large is set, if there are not too many in use. It implements Pool, and is for one goroutine
// at a time.
type Pieces struct{ Large bool }

// Get implements Pool, with a *Piece.
func (p *Pieces) Get() any { return p.Take() }

// Put implements Pool.
func (p *Pieces) Put(piece any) { piece.(*Piece).Free() }

// Take is Get.
func (p *Pieces) Take() *Piece {
	if p.Large {
		if piece := larges.Get(); piece != nil {
			return piece.(*Piece)
		}
		if largesThere.Add(1) <= int64(largeEach*runtime.GOMAXPROCS(0)) {
			return newPiece(largeSize, &largesThere)
		}
		largesThere.Add(-1)
	}
	if piece := smalls.Get(); piece != nil {
		return piece.(*Piece)
	}
	smallsThere.Add(1)
	return newPiece(smallSize, &smallsThere)
}

// Filled takes note of what was read or written of a piece: who needs as much as a small one has is given a large one next time.
func (p *Pieces) Filled(n int) { p.Large = n >= SmallPiece }

// Free gives the piece back.
func (p *Piece) Free() {
	if len(p.mem) == largeSize {
		larges.Put(p)
		return
	}
	smalls.Put(p)
}
