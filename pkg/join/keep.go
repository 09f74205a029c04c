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
	// soon is how long after a renewal another one counts as one too many, and has to wait longer.
	soon = 10 * time.Minute
)

// KeepCertificate renews the node's certificate whenever that is due or a nudge asks for it, and tells
// renewed of each new identity. It returns when ctx ends. A failed renewal is tried again as Enrol is.
func (j *Joiner) KeepCertificate(ctx context.Context, nudges <-chan Nudge, renewed func(*Identity)) error {
	var last time.Duration // when the last renewal was, by the clock that nobody sets
	inARow := 0
	for {
		if err := j.untilDue(ctx, nudges); err != nil {
			return err
		}
		if now := j.clock.passed(); inARow == 0 || now-last > soon {
			inARow = 0
		} else if err := j.wait(ctx, j.backoff(inARow)); err != nil {
			return err
		}
		var id *Identity
		err := j.retry(ctx, StepRenew, func(ctx context.Context) (err error) {
			id, err = j.Renew(ctx)
			return err
		})
		if err != nil {
			return err
		}
		select {
		case <-nudges: // it was about the old certificate
		default:
		}
		last, inARow = j.clock.passed(), inARow+1
		renewed(id)
	}
}

// untilDue returns when the certificate is to be renewed.
func (j *Joiner) untilDue(ctx context.Context, nudges <-chan Nudge) error {
	for {
		wait := lookInterval
		if id, err := j.LoadIdentity(); err == nil {
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
