package tunnel

import (
	"context"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Why a session is replaced while it is up; the values are the metric's labels.
const (
	moveUpgrade = "upgrade" // from TCP to QUIC
	moveDrain   = "drain"   // the broker is about to stop
	moveRenew   = "renew"   // this end has a new certificate, or another address of the broker
)

// move is an attempt to take over from a session that is up: make before break.
type move struct {
	why    string
	cancel context.CancelFunc
	result chan moved // of capacity 1
}

type moved struct {
	s   *Session
	err error
}

// stay keeps s company until it ends, and returns the session that took its place meanwhile; nil: none did.
func (c *clientLoop) stay(ctx context.Context, s *Session) *Session {
	var (
		m      *move            // nil: no attempt is under way
		why    string           // of the attempt that due is for
		due    <-chan time.Time // nil: no attempt is planned
		drain  = s.Draining()
		renew  = c.renew // nil while an attempt is under way, which may have begun before
		result <-chan moved
		tries  int // to get away from a session that drains, or is to be renewed
	)
	plan := func(reason string, wait time.Duration) {
		why, due = reason, time.After(wait)
	}
	if c.choosing && s.Transport() == TransportTCP {
		plan(moveUpgrade, c.probeWait())
	}
	for {
		select {
		case <-c.ticks.C:
			c.tick()
		case <-drain:
			drain = nil
			delay, _ := s.leaving.asks()
			// Not in the last quarter: the other side goes when delay is over, and a session takes a while to be made.
			plan(moveDrain, c.cfg.jitter(delay-delay/4))
		case <-renew:
			plan(moveRenew, 0)
		case <-due:
			if due = nil; m == nil { // else what becomes of that one decides
				m = c.begin(ctx, why)
				result, renew = m.result, nil
			}
		case r := <-result:
			result, renew = nil, c.renew
			if r.err == nil {
				m.cancel()
				c.handOver(ctx, s, r.s, m.why)
				return r.s
			}
			c.moveFailed(m, r.err)
			plan(c.again(m.why, drain == nil, &tries))
			m = nil
		case <-s.Done():
			return c.lastHope(ctx, s, m)
		case <-ctx.Done():
			c.abandon(m)
			return nil
		}
	}
}

// again is what follows an attempt that came to nothing: the next, and when.
func (c *clientLoop) again(why string, drained bool, tries *int) (string, time.Duration) {
	if drained {
		why = moveDrain
	}
	if why == moveUpgrade {
		return why, c.probeWait()
	}
	*tries++
	return why, c.cfg.jitter(c.span(*tries - 1))
}

// probeWait is how long to wait for the next try of QUIC.
func (c *clientLoop) probeWait() time.Duration {
	d := c.policy.probeAfter(c.network)
	return d/2 + c.cfg.jitter(d)
}

// begin sets an attempt going.
func (c *clientLoop) begin(ctx context.Context, why string) *move {
	d := c.dialer()
	d.Handover = true
	if why == moveUpgrade {
		d.Transport = TransportQUIC
	}
	ctx, cancel := context.WithCancel(ctx)
	m := &move{why: why, cancel: cancel, result: make(chan moved, 1)}
	go func() {
		s, err := c.cfg.dial(ctx, d)
		m.result <- moved{s, err}
	}()
	return m
}

// moveFailed takes note of an attempt that came to nothing.
func (c *clientLoop) moveFailed(m *move, err error) {
	m.cancel()
	if m.why == moveUpgrade && c.choosing {
		c.policy.probeFailed(c.network)
		c.remember()
	}
	c.cfg.Logger.Debug("no other session can be had; staying on this one", "why", m.why, "err", err)
}

// handOver has next take over from s, whose streams go on.
func (c *clientLoop) handOver(ctx context.Context, s, next *Session, why string) {
	c.cfg.Logger.Info("moving to another session; what runs on the old one goes on there",
		"why", why, "transport", string(next.Transport()), "old", string(s.Transport()))
	s.meter.moved(next.Transport(), why)
	if c.choosing {
		c.policy.up(c.network, next.Transport(), time.Now())
		c.remember()
	}
	c.past.Go(func() {
		defer s.wait()
		ctx, cancel := context.WithTimeout(ctx, c.cfg.RetireTimeout)
		defer cancel()
		retire(ctx, s)
	})
}

// retire ends a session that another took over from, once its streams have ended on both sides or ctx has.
func retire(ctx context.Context, s *Session) {
	_ = s.Drain(0)
	select {
	case <-s.Quiet():
	case <-ctx.Done():
	case <-s.Done():
	}
	_ = s.Close(wire.OK, "moved to a newer session")
}

// lastHope waits for an attempt that is under way when the session ends which it was to take over from.
func (c *clientLoop) lastHope(ctx context.Context, s *Session, m *move) *Session {
	if m == nil {
		return nil
	}
	defer m.cancel()
	c.setCurrent(nil)
	var r moved
	c.tickWhile(func() { r = <-m.result })
	if ctx.Err() != nil && r.s != nil {
		c.hangUp(r.s)
		return nil
	}
	if r.err != nil {
		c.moveFailed(m, r.err)
		return nil
	}
	c.cfg.OnDown(s.Err())
	c.past.Go(s.wait)
	if c.choosing {
		c.policy.up(c.network, r.s.Transport(), time.Now())
	}
	return r.s
}

// abandon ends an attempt that is wanted no more.
func (c *clientLoop) abandon(m *move) {
	if m == nil {
		return
	}
	m.cancel()
	var r moved
	c.tickWhile(func() { r = <-m.result })
	if r.s != nil {
		c.hangUp(r.s)
	}
}
