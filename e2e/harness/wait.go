package harness

import (
	"context"
	"fmt"
	"time"
)

// Wait calls ready until it returns nil, and returns how long that took. It gives up at the limit, or
// when a process of the run has died, and says what was still missing; meanwhile it says so now and then.
func (e *Env) Wait(ctx context.Context, what string, limit time.Duration, ready func(context.Context) error) (time.Duration, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	said := start
	var last error
	for {
		err := ready(ctx)
		if err == nil {
			return time.Since(start), nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // not the error of a call that was cut short
		}
		if err := e.dead(); err != nil {
			return time.Since(start), fmt.Errorf("waiting for %s: %w", what, err)
		}
		if time.Since(said) > 10*time.Second {
			said = time.Now()
			e.Logf("still waiting for %s (%.0f s): %v", what, time.Since(start).Seconds(), last)
		}
		select {
		case <-ctx.Done():
			return time.Since(start), fmt.Errorf("waited %.0f s for %s: %w", time.Since(start).Seconds(), what, last)
		case <-tick.C:
		}
	}
}
