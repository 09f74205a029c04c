package broker

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
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

// Where GOGC does not say otherwise, this much garbage is let grow beside what is in use, in percent: with ten thousand
// sessions most of the heap is theirs and lives for days, and what a return of all allocates should not lie between it. Where little is in
// use, garbageFloor may grow all the same: else a broker of few nodes would collect after every few dozen dials.
const (
	gcPercent    = 50
	gcPercentMax = 400
	garbageFloor = 32 << 20 // bytes
)

// percentFor is the collector's pace with so many bytes in use, in steps, so that it is seldom changed.
func percentFor(live uint64) int {
	percent := gcPercentMax
	for percent > gcPercent && live*uint64(percent)/100 > garbageFloor {
		percent /= 2
	}
	return percent
}

// boundGarbage sets the collector's pace from now on, after each collection anew, until stop is called; not if the environment sets it.
func boundGarbage() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	p := &pacer{}
	p.collected()
	return func() { p.over.Store(true) }
}

// pacer sees collections by what they collect.
type pacer struct {
	over   atomic.Bool
	before int // the pace; used by one goroutine at a time
}

// collected is called after each collection.
func (p *pacer) collected() {
	if p.over.Load() {
		return
	}
	// What garbage may grow by is reckoned of all three (https://go.dev/doc/gc-guide#GOGC).
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(sample)
	var live uint64
	for _, s := range sample {
		live += s.Value.Uint64()
	}
	if pace := percentFor(live); pace != p.before {
		debug.SetGCPercent(pace)
		p.before = pace
	}
	runtime.SetFinalizer(&beacon{}, func(*beacon) { p.collected() })
}

// beacon is something that nobody uses.
type beacon struct{ _ [16]byte }

// trim gives memory back to the system: what the handshakes of a returning fleet took, once it is back, and what heartbeats leave
// behind. The collector by itself lets garbage grow to its bound, and takes its time for that where little is
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
