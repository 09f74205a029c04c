package join

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// laterError is an error that is tried again at a fixed pace: somebody has to do something about it.
type laterError struct{ error }

func (e laterError) Unwrap() error { return e.error }

// needsHand marks err as one that no retry cures.
func needsHand(err error) error { return laterError{err} }

// retry calls f until it succeeds, reporting each failure. What may come right by itself is tried again
// with full-jitter exponential backoff; what needs a hand, once a RefusedRetry, or not at all with
// StopOnRefusal.
func (j *Joiner) retry(ctx context.Context, step Step, f func(context.Context) error) error {
	for attempt := 0; ; attempt++ {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errStopped) {
			return err
		}
		var later laterError
		slow := refused(err) || errors.As(err, &later)
		j.cfg.Metrics.outcome(step, err)
		if slow && j.cfg.StopOnRefusal {
			j.cfg.Report(Progress{Step: step, Err: err})
			return err
		}
		d := j.backoff(attempt)
		if slow {
			d = j.cfg.RefusedRetry
			attempt = 0
		}
		j.cfg.Report(Progress{Step: step, Err: err, RetryIn: d})
		if err := j.wait(ctx, d); err != nil {
			return err
		}
	}
}

// backoff is full jitter: anything from nothing to the exponentially growing limit.
func (j *Joiner) backoff(attempt int) time.Duration {
	limit := j.cfg.BackoffMin << min(attempt, 30)
	if limit <= 0 || limit > j.cfg.BackoffMax {
		limit = j.cfg.BackoffMax
	}
	return time.Duration(rand.Int64N(int64(limit) + 1))
}
