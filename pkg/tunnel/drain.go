package tunnel

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// leaving is where a session stands on its way to a planned end: asked, shut, quiet on either side.
type leaving struct {
	asked chan struct{} // closed by the first drain of either side
	quiet chan struct{} // closed once both sides are quiet

	shut atomic.Bool // no more streams are opened here

	mu    sync.Mutex // guards the following
	delay time.Duration
	until time.Time   // when shut becomes true
	timer *time.Timer // nil: none is running
	over  bool        // the session has ended
	// here and there: this side, the other side opens no more streams and has none open.
	here, there bool
}

func newLeaving() leaving {
	return leaving{asked: make(chan struct{}), quiet: make(chan struct{})}
}

// Drain tells the other side that this end is about to stop, or has another session already, and returns
// once that is written. The agent is to make itself another session, here or elsewhere, at a moment of its choice
// within delay; when delay is over, or at once if that is 0, no more streams are opened on this
// one, in either direction. Open streams go on, and those whose open crossed the word are served. A later Drain can
// only shorten the delay.
func (s *Session) Drain(delay time.Duration) error {
	s.drain(delay)
	return s.sendFrame(wire.AppendDrain(nil, wire.Drain{Delay: delay}))
}

// Draining returns a channel that is closed once either side called Drain.
func (s *Session) Draining() <-chan struct{} { return s.leaving.asked }

// Quiet returns a channel that is closed once the session was drained and neither side has a stream open any more: nothing
// that was written is still on its way to somebody who wants it. An other side of an older version never says so.
func (s *Session) Quiet() <-chan struct{} { return s.leaving.quiet }

// drain is what a drain of either side does here.
func (s *Session) drain(delay time.Duration) {
	l := &s.leaving
	delay = min(max(delay, 0), wire.MaxDrainDelay)
	until := time.Now().Add(delay)
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.asked:
		if l.over || !until.Before(l.until) {
			return
		}
	default:
		l.delay = delay
		close(l.asked)
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	l.until = until
	switch {
	case l.over:
	case delay == 0:
		s.shutLocked()
	default:
		l.timer = time.AfterFunc(delay, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			s.shutLocked()
		})
	}
}

// shutLocked ends the opening of streams. leaving.mu is held.
func (s *Session) shutLocked() {
	if !s.leaving.shut.Swap(true) {
		s.quietLocked()
	}
}

// noteQuiet is called whenever a stream has ended.
func (s *Session) noteQuiet() {
	if !s.leaving.shut.Load() {
		return
	}
	s.leaving.mu.Lock()
	defer s.leaving.mu.Unlock()
	s.quietLocked()
}

func (s *Session) quietLocked() {
	l := &s.leaving
	if l.here || l.over || s.in.streams.n.Load() > 0 || s.out.streams.n.Load() > 0 {
		return
	}
	l.here = true
	go func() { _ = s.send(wire.AppendQuiet(nil), s.done) }() // ends with the session, and holds nobody up
	l.bothQuiet()
}

// otherQuiet takes the other side's word.
func (s *Session) otherQuiet() {
	l := &s.leaving
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.there {
		l.there = true
		l.bothQuiet()
	}
}

// bothQuiet is called when here or there became true.
func (l *leaving) bothQuiet() {
	if l.here && l.there {
		close(l.quiet)
	}
}

// isShut says whether no more streams are to be opened.
func (l *leaving) isShut() bool { return l.shut.Load() }

// asks returns the delay that the drain named; false: there was none.
func (l *leaving) asks() (time.Duration, bool) {
	select {
	case <-l.asked:
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.delay, true
	default:
		return 0, false
	}
}

// stop is called at the session's end.
func (l *leaving) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	if l.timer != nil {
		l.timer.Stop()
	}
}
