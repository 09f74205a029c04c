package agent

import (
	"context"
	"os"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"
)

const (
	// gcPercent is how much garbage is let grow beside what is in use, in percent, where GOGC does not say otherwise. Of the little that an agent has
	// in use, Go's own 100 would let 4 MB grow at the least.
	gcPercent = 50
	// trimEvery is how often it is looked whether there is memory to be given back.
	trimEvery = 10 * time.Second
	// trimWorth is how much has to have been allocated for that to be worth a collection, in bytes.
	trimWorth = 1 << 20
)

// trim gives memory back to the system once the agent has nothing more to do: what enrolment, the join and streams took. The node is
// for its pods. It runs until ctx ends.
func trim(ctx context.Context) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var last, trimmed uint64
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		runtimemetrics.Read(sample)
		now := sample[0].Value.Uint64()
		if now-last < trimWorth && now-trimmed >= trimWorth {
			debug.FreeOSMemory()
			runtimemetrics.Read(sample) // a collection allocates, too
			now, trimmed = sample[0].Value.Uint64(), sample[0].Value.Uint64()
		}
		last = now
	}
}
