package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/mooring-edge/mooring/internal/processors"
	"github.com/mooring-edge/mooring/internal/rounds"
)

const (
	// gcPercent is how much garbage is let grow beside what is in use, in percent. Of the little that an agent has in use, Go's own 100 would let
	// 4 MB grow at the least.
	gcPercent = 50
	// trimEvery is how often it is looked whether there is memory to be given back.
	trimEvery = 10 * time.Second
	// trimQuiet is how much may be allocated in that time, in bytes, where nothing goes on.
	trimQuiet = 1 << 20
	// trimWorth is how much has to have been allocated for that to be worth a collection, in bytes. Heartbeats take some minutes for it.
	trimWorth = 256 << 10
)

// modest has this process take little of a machine that is there for its pods, where the environment does not say otherwise: Go code runs on one
// processor at a time (docs/decisions/0023), and less garbage is let grow.
func modest() {
	processors.One()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// trim gives memory back to the system once there is nothing more to do: what enrolment, the join and streams took, and what of the
// program itself they alone needed. It runs until ctx ends.
func trim(ctx context.Context) {
	look := time.NewTimer(rounds.Until(trimEvery))
	defer look.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	allocated := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	var t trimmer
	for {
		select {
		case <-look.C:
			look.Reset(rounds.Until(trimEvery))
		case <-ctx.Done():
			return
		}
		if t.due(allocated()) {
			debug.FreeOSMemory()
			_ = unmapProgram()  // where it can't be done the pages stay, as with any program
			t.done(allocated()) // both allocate, too
		}
	}
}

// trimmer decides when. What it is given is how much was allocated since the start, in bytes.
type trimmer struct{ last, trimmed uint64 }

// due says whether memory is to be given back: much was allocated since that was last done, and little since the last look.
func (t *trimmer) due(allocated uint64) bool {
	quiet := allocated-t.last < trimQuiet
	t.last = allocated
	return quiet && allocated-t.trimmed >= trimWorth
}

func (t *trimmer) done(allocated uint64) { t.last, t.trimmed = allocated, allocated }
