package tunnel

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// attempt is one way to get a link, tried after a delay, or at once when all
// that were started before it have failed.
type attempt struct {
	name  string
	after time.Duration // since the start of the race; attempts are in this order
	dial  func(ctx context.Context) (*link, error)
}

// race returns the first link that is made, and closes those made after it.
func race(ctx context.Context, attempts []attempt, discard func(*link)) (*link, int, error) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		i   int
		l   *link
		err error
	}
	var (
		results = make(chan result)
		begin   = time.Now()
		next    = 0 // the first attempt that is not started
		running = 0
		errs    []error
	)
	start := func() {
		i := next
		next++
		running++
		go func() {
			l, err := attempts[i].dial(ctx)
			results <- result{i, l, err}
		}()
	}
	defer func() {
		cancel()
		go func() { // the losers
			for range running {
				if r := <-results; r.err == nil {
					discard(r.l)
				}
			}
		}()
	}()
	for {
		if running == 0 {
			if next == len(attempts) {
				return nil, -1, errors.Join(errs...)
			}
			start()
		}
		var due <-chan time.Time
		if next < len(attempts) {
			due = time.After(time.Until(begin.Add(attempts[next].after)))
		}
		select {
		case <-due:
			start()
		case r := <-results:
			running--
			if r.err == nil {
				return r.l, r.i, nil
			}
			errs = append(errs, fmt.Errorf("%s: %w", attempts[r.i].name, r.err))
		case <-ctx.Done():
			return nil, -1, errors.Join(append(errs, context.Cause(ctx))...)
		}
	}
}
