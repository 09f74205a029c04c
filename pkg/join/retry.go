package join

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
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
		pending, isPending := Pending(err)
		j.cfg.Metrics.outcome(step, err)
		if slow && j.cfg.StopOnRefusal {
			j.cfg.Report(Progress{Step: step, Err: err})
			return err
		}
		d := j.backoff(attempt)
		switch {
		case isPending:
			d = spread(j.pollPace(pending))
			attempt = 0
		case slow:
			d = spread(j.cfg.RefusedRetry)
			attempt = 0
		}
		j.cfg.Report(Progress{Step: step, Err: err, RetryIn: d})
		if err := j.wait(ctx, d); err != nil {
			return err
		}
	}
}

// Pending tells whether err is the broker's word that the box waits for an operator's approval.
func Pending(err error) (*enrollapi.Error, bool) {
	var e *enrollapi.Error
	if errors.As(err, &e) && e.Code == enrollapi.CodePending {
		return e, true
	}
	return nil, false
}

// pollPace is how often a box that waits for approval asks: as the broker says, within reason.
func (j *Joiner) pollPace(e *enrollapi.Error) time.Duration {
	const least, most = time.Second, 10 * time.Minute
	if e.RetryAfter <= 0 {
		return min(30*time.Second, j.cfg.RefusedRetry)
	}
	return min(max(time.Duration(min(e.RetryAfter, 3600))*time.Second, least), most)
}

// spread moves d by up to a fifth either way, so that boxes that were refused together come one by one.
func spread(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1)
}

// backoff is full jitter: anything from nothing to the exponentially growing limit.
func (j *Joiner) backoff(attempt int) time.Duration {
	return j.backoffWithin(attempt, j.cfg.BackoffMax)
}

func (j *Joiner) backoffWithin(attempt int, most time.Duration) time.Duration {
	limit := j.cfg.BackoffMin << min(attempt, 30)
	if limit <= 0 || limit > most {
		limit = most
	}
	return time.Duration(rand.Int64N(int64(limit) + 1))
}
