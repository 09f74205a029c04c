package switchboard

import (
	"context"
	"sync"
	"time"
)

// Count returns how many sessions there are, those that end with their streams included.
func (b *Board) Count() int { return len(b.every("")) }

// Drain asks all nodes to move within delay, see tunnel.Session.Drain. It returns when all have been told, or ctx has ended:
// a node whose connection takes no bytes holds up nobody else.
func (b *Board) Drain(ctx context.Context, delay time.Duration) {
	told := make(chan struct{})
	go func() { // ends with the sessions
		defer close(told)
		var all sync.WaitGroup
		for _, s := range b.every("") {
			all.Go(func() { _ = s.Drain(delay) })
		}
		all.Wait()
	}()
	select {
	case <-told:
	case <-ctx.Done():
	}
}

// WaitEmpty returns when there are no sessions any more, or ctx has ended.
func (b *Board) WaitEmpty(ctx context.Context) {
	for {
		b.mu.RLock()
		left, gone := len(b.still), b.gone
		b.mu.RUnlock()
		if left == 0 {
			return
		}
		select {
		case <-gone:
		case <-ctx.Done():
			return
		}
	}
}
