package broker

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// trimEvery is how often it is looked whether there is memory to be given back.
	trimEvery = 30 * time.Second
	// manySessions is how many in that time are a fleet that comes back, and not the coming and going of a day.
	manySessions = 500
	// trimRounds is how many collections it takes until stacks that a handshake has grown are small again: each halves them once.
	trimRounds = 3
)

// gcPercent is how much garbage is let grow beside what is in use, in percent, where GOGC does not say otherwise: with ten thousand
// sessions most of the heap is theirs and lives for days, and what a return of all allocates should not lie between it.
const gcPercent = 50

// boundGarbage sets the collector's pace, unless the environment does.
func boundGarbage() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// trim gives memory back to the system: what the handshakes of a returning fleet took, once it is back, and what heartbeats leave
// behind. The collector by itself lets garbage grow to as much as is in use, and takes its time for that where little is
// allocated; a broker that has much to do is left to it. It runs until ctx ends.
func (b *broker) trim(ctx context.Context) error {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	var seen, allocated uint64
	rounds := 0
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		metrics.Read(sample)
		total, live := sample[0].Value.Uint64(), sample[1].Value.Uint64()
		fresh := total - allocated
		now := b.admitted.Load()
		switch {
		case now-seen >= manySessions:
			rounds = trimRounds
		case rounds > 0:
			rounds--
			debug.FreeOSMemory()
		case fresh > live/8 && fresh < live:
			debug.FreeOSMemory()
		}
		seen, allocated = now, total
	}
}
