package tunnel

import (
	"testing"
	"time"
)

// TestTurnGrows: after a number of quick frames in a row, and shrinks with the first slow one; short ones say nothing.
func TestTurnGrows(t *testing.T) {
	var now turn
	wrote := func(times, n int, took time.Duration) {
		for range times {
			now.wrote(n, took)
		}
	}
	want := func(most int) {
		t.Helper()
		if got := now.most(); got != most {
			t.Fatalf("a frame may have %d bytes, want %d", got, most)
		}
	}
	want(leastTurn)
	wrote(1000, 4<<10, 0)
	want(leastTurn)
	wrote(quickTurns, leastTurn, time.Millisecond)
	want(leastTurn)
	wrote(1, leastTurn, 50*time.Millisecond) // what the kernel took at once has filled up
	wrote(quickTurns, leastTurn, time.Millisecond)
	want(leastTurn)
	wrote(1, leastTurn, time.Millisecond)
	want(mostTurn)
	wrote(1, 4<<10, time.Second)
	wrote(1, mostTurn, 4*time.Millisecond) // of four times as much
	want(mostTurn)
	wrote(1, mostTurn, 200*time.Millisecond)
	want(leastTurn)
}
