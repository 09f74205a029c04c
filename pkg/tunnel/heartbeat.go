package tunnel

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// pulse decides when to ping, and when the other side is dead. It reads no
// clock and sends nothing: heartbeat does.
//
// The dialling side pings at each interval, the other answers, and pings once
// at the start for a round trip of its own. Either gives the session up after
// HeartbeatTimeout without a sign of life, or with a ping unanswered for as
// long. A probe is a ping sent upon a suspicion, with ProbeTimeout in place of
// HeartbeatTimeout; anything heard in that time is an answer, as a pong may be
// behind other bytes.
type pulse struct {
	interval, timeout, probeTimeout time.Duration
	pinger                          bool // this end pings at each interval
	acked                           bool // see link.acked

	mu        sync.Mutex // guards the following
	last      activity   // when heard was last seen to rise
	heardAt   time.Time  // and the time
	nextPing  time.Time  // zero: none is due
	seq       uint64
	pingAt    time.Time     // when ping seq was sent; zero: it was answered
	waitingAt time.Time     // since when some ping is unanswered; zero: none is
	probeAt   time.Time     // when the probe was sent; zero: none is out
	probed    uint64        // heard at that time
	answered  chan struct{} // closed by the next answer; nil: nobody waits

	rtt       atomic.Int64 // nanoseconds; 0: none yet
	lastHeard atomic.Int64 // heardAt, Unix nanoseconds
}

// activity is what counters of a session say.
type activity struct {
	heard   uint64 // link.heard
	writes  uint64 // calls of Stream.Write
	packets uint64 // link.sent
}

// probePackets is how many packets without any in return are a suspicion: more
// than the acknowledgements that follow the last one heard.
const probePackets = 4

// unanswered says whether something was sent since last that should have been acknowledged.
func (a activity) unanswered(last activity) bool {
	return a.writes != last.writes || a.packets-last.packets >= probePackets
}

func (p *pulse) init(c Config, l *link, now time.Time) {
	p.interval, p.timeout, p.probeTimeout = c.HeartbeatInterval, c.HeartbeatTimeout, c.ProbeTimeout
	p.pinger, p.acked = l.dialled, l.acked
	p.nextPing, p.heardAt = now, now
	p.lastHeard.Store(now.UnixNano())
}

// period is how often tick wants to be called while there is something to find out.
func (p *pulse) period() time.Duration {
	return max(min(p.interval/2, p.timeout/4, p.probeTimeout/2), time.Millisecond)
}

// next is how long tick need not be called. busy: streams are open, so something may be sent. Of a session that is quite idle
// it is enough to notice its silence and to ping in time: ten thousand of them are what a broker has.
func (p *pulse) next(now time.Time, busy bool) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if busy || !p.waitingAt.IsZero() || !p.probeAt.IsZero() {
		return p.period()
	}
	due := p.heardAt.Add(p.timeout)
	if !p.nextPing.IsZero() && p.nextPing.Before(due) {
		due = p.nextPing
	}
	return max(min(p.interval/2, p.timeout/4, due.Sub(now)), p.period()/2, time.Millisecond)
}

// tick takes note of the counters. It returns the ping to send, if any, and
// whether the other side is dead, with what tells so.
func (p *pulse) tick(now time.Time, a activity) (ping *wire.Ping, dead string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.observe(now, a)
	switch {
	case now.Sub(p.heardAt) >= p.timeout:
		return nil, "nothing was heard for " + p.timeout.String()
	case !p.waitingAt.IsZero() && now.Sub(p.waitingAt) >= p.timeout:
		return nil, "no heartbeat was answered for " + p.timeout.String()
	case !p.probeAt.IsZero() && now.Sub(p.probeAt) >= p.probeTimeout:
		if a.heard == p.probed {
			return nil, "nothing was heard for " + p.probeTimeout.String() + " after a probe"
		}
		p.probeAt = time.Time{}
	case p.acked && p.probeAt.IsZero() && a.unanswered(p.last) && now.Sub(p.heardAt) >= p.probeTimeout:
		return p.probe(now), ""
	}
	if !p.nextPing.IsZero() && !now.Before(p.nextPing) {
		return p.ping(now), ""
	}
	return nil, ""
}

// observe takes note of the counters. mu is held.
func (p *pulse) observe(now time.Time, a activity) {
	if a.heard != p.last.heard {
		p.last, p.heardAt = a, now
		p.lastHeard.Store(now.UnixNano())
	}
}

// ping makes the next ping. mu is held.
func (p *pulse) ping(now time.Time) *wire.Ping {
	p.nextPing = time.Time{}
	if p.pinger {
		p.nextPing = now.Add(p.interval)
	}
	p.seq++
	p.pingAt = now
	if p.waitingAt.IsZero() {
		p.waitingAt = now
	}
	return &wire.Ping{ID: p.seq, RTT: time.Duration(p.rtt.Load())}
}

func (p *pulse) probe(now time.Time) *wire.Ping {
	p.probeAt, p.probed = now, p.last.heard
	return p.ping(now)
}

// suspect makes a probe, unless one is out.
func (p *pulse) suspect(now time.Time, a activity) *wire.Ping {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.probeAt.IsZero() {
		return nil
	}
	p.observe(now, a)
	return p.probe(now)
}

// ponged takes an answer. The round trip is measured only by the answer to the last ping.
func (p *pulse) ponged(pong wire.Ping, now time.Time) (rtt time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pong.ID != p.seq || p.pingAt.IsZero() {
		return 0, false
	}
	rtt = max(now.Sub(p.pingAt), 1)
	p.pingAt, p.waitingAt, p.probeAt = time.Time{}, time.Time{}, time.Time{}
	p.rtt.Store(int64(rtt))
	if p.answered != nil {
		close(p.answered)
		p.answered = nil
	}
	return rtt, true
}

// answer returns a channel that is closed once the last ping that was sent by then is answered.
func (p *pulse) answer() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answered == nil {
		p.answered = make(chan struct{})
	}
	return p.answered
}

// pinged takes the round trip that the pinging side has measured.
func (p *pulse) pinged(ping wire.Ping) {
	if !p.pinger && ping.RTT > 0 && ping.RTT < p.timeout {
		p.rtt.Store(int64(ping.RTT))
	}
}

// heartbeat keeps the session alive, or finds out that it is not. It returns when it is to be called again, and does not wait.
func (s *Session) heartbeat() time.Duration {
	now := time.Now()
	ping, dead := s.pulse.tick(now, s.activity())
	if dead != "" {
		s.terminate(&ClosedError{Code: wire.HeartbeatLost, Message: dead}, 0)
		return s.pulse.period()
	}
	s.sendPing(ping)
	return s.pulse.next(now, s.in.streams.n.Load() > 0 || s.out.streams.n.Load() > 0)
}

// watch has the heartbeat look soon: an idle session has begun to do something.
func (s *Session) watch() { s.beat.within(s.pulse.period()) }

// metronome calls a function from time to time. It has no goroutine in between.
type metronome struct {
	mu    sync.Mutex // held through each call; guards the following
	timer *time.Timer
	due   time.Time
	over  bool
}

// start calls f now, and again after what it returns, until stop.
func (m *metronome) start(f func() time.Duration) {
	tick := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if !m.over {
			d := f()
			m.due = time.Now().Add(d)
			m.timer.Reset(d)
		}
	}
	m.mu.Lock()
	m.timer = time.AfterFunc(0, tick) // which waits
	m.mu.Unlock()
}

// within has f called in d at the latest.
func (m *metronome) within(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if due := time.Now().Add(d); !m.over && m.timer != nil && due.Before(m.due) {
		m.due = due
		m.timer.Reset(d)
	}
}

// stop returns when f does not run and is not called any more.
func (m *metronome) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	if m.timer != nil {
		m.timer.Stop()
	}
}

func (s *Session) activity() activity {
	a := activity{heard: s.l.heard(), writes: s.writes.Load()}
	if s.l.sent != nil {
		a.packets = s.l.sent()
	}
	return a
}

// probe is called when the other side should have answered something and did not.
func (s *Session) probe() {
	s.sendPing(s.pulse.suspect(time.Now(), s.activity()))
	s.watch()
}

// sendPing queues a ping. A full queue is no harm: what fills it is not getting out either.
func (s *Session) sendPing(p *wire.Ping) {
	if p != nil {
		s.trySend(wire.AppendPing(nil, wire.FramePing, *p))
	}
}

// Probe asks the other side for a sign of life and returns nil once it has answered. It gives up with ctx, whose error
// it returns, and when the session ends, which an unanswered probe brings about after Config.ProbeTimeout.
func (s *Session) Probe(ctx context.Context) error {
	answer := s.pulse.answer()
	s.probe()
	select {
	case <-answer:
		return nil
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
