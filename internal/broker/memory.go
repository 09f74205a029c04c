package broker

import (
	"context"
	"runtime/debug"
	"time"
)

const (
	// trimEvery is how often it is looked whether many sessions have come.
	trimEvery = 30 * time.Second
	// manySessions is how many in that time are a fleet that comes back, and not the coming and going of a day.
	manySessions = 500
	// trimRounds is how many collections it takes until stacks that a handshake has grown are small again: each halves them once.
	trimRounds = 3
)

// trim gives the memory back to the system that the handshakes of a returning fleet took, once it is back: some 50 KB a session,
// which the collector by itself keeps for the next time for as long as little is allocated. It runs until ctx ends.
func (b *broker) trim(ctx context.Context) error {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var seen uint64
	rounds := 0
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		now := b.admitted.Load()
		switch came := now - seen; {
		case came >= manySessions:
			rounds = trimRounds
		case rounds > 0:
			rounds--
			debug.FreeOSMemory()
		}
		seen = now
	}
}
