package join

import (
	"context"
	"math/rand/v2"
	"time"
)

// Nudge says why the certificate should be renewed before its time.
type Nudge int

const (
	// NudgeRefused: the broker refused the certificate.
	NudgeRefused Nudge = iota + 1
	// NudgeIssuer: the broker's CA is another than the certificate's. All nodes learn that at once, so
	// each waits a random part of Config.IssuerSpread.
	NudgeIssuer
)

const (
	// lookInterval is how often the clock is looked at while renewal is waited for: it may be set.
	lookInterval = time.Minute
	// soon is how long after a renewal another one counts as one too many, at the most, and has to wait longer:
	// up to longestGap, where one follows the other without end: each is due at once where this machine's clock
	// is ahead by most of a certificate's life, and each writes to the disk.
	soon       = 10 * time.Minute
	longestGap = 30 * time.Minute
)

// KeepCertificate renews the node's certificate whenever that is due or a nudge asks for it, and tells
// renewed of each new identity. It returns when ctx ends. A failed renewal is tried again as Enrol is.
func (j *Joiner) KeepCertificate(ctx context.Context, nudges <-chan Nudge, renewed func(*Identity)) error {
	var last time.Duration // when the last renewal was, by the clock that nobody sets
	var life time.Duration // of the certificate that it brought
	inARow, again := 0, false
	for {
		var err error
		if again {
			again, err = false, j.wait(ctx, rand.N(j.cfg.IssuerSpread))
		} else {
			err = j.untilDue(ctx, nudges)
		}
		if err != nil {
			return err
		}
		if inARow == 0 || !isSoon(j.clock.passed()-last, life) {
			inARow = 0
		} else if err := j.wait(ctx, j.gap(inARow, life)); err != nil {
			return err
		}
		var id *Identity
		err = j.retry(ctx, StepRenew, func(ctx context.Context) (err error) {
			id, err = j.Renew(ctx)
			return err
		})
		if err != nil {
			return err
		}
		last, life, inARow = j.clock.passed(), id.leaf.NotAfter.Sub(id.leaf.NotBefore), inARow+1
		select {
		case n := <-nudges:
			// A refusal was the old certificate's. Another issuer may have come after the new one was issued.
			again = n == NudgeIssuer
		default:
		}
		renewed(id)
	}
}

// isSoon tells whether a renewal comes too soon after the one before, which brought a certificate of that life.
func isSoon(after, life time.Duration) bool { return after <= min(soon, life/3) }

// gap is how long the next renewal waits after so many in a row.
func (j *Joiner) gap(inARow int, life time.Duration) time.Duration {
	return j.backoffWithin(inARow, j.gapLimit(life))
}

func (j *Joiner) gapLimit(life time.Duration) time.Duration { return min(longestGap, life/3) }

// untilDue returns when the certificate is to be renewed.
func (j *Joiner) untilDue(ctx context.Context, nudges <-chan Nudge) error {
	for {
		wait := lookInterval
		if id, err := j.inUse(); err == nil {
			left := id.RenewAt().Sub(j.clock.Now())
			if left <= 0 {
				return nil
			}
			wait = min(wait, left)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		case n := <-nudges:
			timer.Stop()
			if n == NudgeIssuer {
				return j.wait(ctx, rand.N(j.cfg.IssuerSpread))
			}
			return nil
		}
	}
}
