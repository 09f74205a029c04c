package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"testing"
)

// TestModest: the environment goes before what the agent sets.
func TestModest(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	t.Setenv("GOMAXPROCS", "3")
	t.Setenv("GOGC", "100")
	modest()
	if p, gc := runtime.GOMAXPROCS(0), debug.SetGCPercent(100); p != 3 || gc != 100 {
		t.Errorf("%d processors, %d %%: not as the environment has it", p, gc)
	}
	os.Unsetenv("GOMAXPROCS") // Setenv takes it back
	os.Unsetenv("GOGC")
	modest()
	if p, gc := runtime.GOMAXPROCS(0), debug.SetGCPercent(100); p != 1 || gc != gcPercent {
		t.Errorf("%d processors, %d %%", p, gc)
	}
}

// TestTrimsWhenQuiet: not while much is allocated, and once after that.
func TestTrimsWhenQuiet(t *testing.T) {
	var tr trimmer
	for i, look := range []struct {
		allocated uint64
		due       bool
	}{
		{8 << 20, false},            // it joins
		{20 << 20, false},           // still
		{20<<20 + 1000, true},       // no more
		{20<<20 + 2000, false},      // done
		{20<<20 + 200_000, false},   // heartbeats
		{20<<20 + 300_000, true},    // have added up
		{40 << 20, false},           // a kubectl cp
		{40<<20 + 900_000, true},    // it is through
		{40<<20 + 1_000_000, false}, // little since
	} {
		due := tr.due(look.allocated)
		if due != look.due {
			t.Errorf("look %d, at %d bytes: due %t", i, look.allocated, due)
		}
		if due {
			tr.done(look.allocated)
		}
	}
}
