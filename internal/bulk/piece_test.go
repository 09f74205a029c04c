package bulk

import (
	"runtime"
	"testing"
	"time"
)

// TestLargePiecesAreBounded: who comes too late does with a small one, and one that is lost makes room for another.
func TestLargePiecesAreBounded(t *testing.T) {
	for end := time.Now().Add(10 * time.Second); largesThere.Load() > 0; runtime.GC() { // what tests before have left in the pool
		if time.Now().After(end) {
			t.Fatalf("%d large pieces are held by tests that have ended", largesThere.Load())
		}
	}
	p := Pieces{}
	if piece := p.Take(); len(piece.Payload()) != SmallPiece {
		t.Errorf("the first has %d bytes", len(piece.Payload()))
	}
	p.Filled(SmallPiece - 1)
	if p.Large {
		t.Error("large after less than a small one has")
	}
	p.Filled(SmallPiece)
	most := largeEach * runtime.GOMAXPROCS(0)
	taken := make([]*Piece, most)
	for i := range taken {
		if taken[i] = p.Take(); len(taken[i].Payload()) != LargePiece {
			t.Fatalf("piece %d of %d has %d bytes", i, most, len(taken[i].Payload()))
		}
	}
	if piece := p.Take(); len(piece.Payload()) != SmallPiece {
		t.Errorf("beyond %d: %d bytes", most, len(piece.Payload()))
	}
	runtime.KeepAlive(taken)
	taken = nil // none was given back
	for end := time.Now().Add(10 * time.Second); len(p.Take().Payload()) != LargePiece; runtime.GC() {
		if time.Now().After(end) {
			t.Fatal("those that were lost still count")
		}
	}
}
