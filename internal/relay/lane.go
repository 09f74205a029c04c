package relay

import (
	"math/rand/v2"
	"time"
)

const (
	defaultBurst = 16 << 10
	defaultQueue = 200 * time.Millisecond
	segment      = 1448
)

// lane decides what becomes of each packet of one way. It reads no clock and has no lock: its relay's guards it.
type lane struct {
	rng   *rand.Rand
	free  time.Time // when the bytes admitted so far are through the bottleneck
	stats PathStats
}

func newLane(seed, stream uint64) lane { return lane{rng: rand.New(rand.NewPCG(seed, stream))} }

// datagram returns when a datagram of n bytes that came at now arrives, and whether it does.
func (l *lane) datagram(p Path, now time.Time, n int) (time.Time, bool) {
	// One number for each, whatever the settings are: so the same seed loses the same packets.
	unlucky := l.rng.Float64() < p.Loss
	switch {
	case p.MaxDatagram > 0 && n > p.MaxDatagram:
		l.stats.TooBig++
		return time.Time{}, false
	case p.Hole || unlucky:
		l.stats.Lost++
		return time.Time{}, false
	}
	if p.Rate > 0 && l.backlog(p, now) > p.queue() {
		l.stats.Lost++
		return time.Time{}, false
	}
	l.stats.Largest = max(l.stats.Largest, n)
	return l.pass(p, now, n), true
}

// bytes returns when n bytes of TCP that came at now arrive; trip is a round trip.
func (l *lane) bytes(p Path, now time.Time, n int, trip time.Duration) time.Time {
	due := l.pass(p, now, n)
	for at := 0; at < n; at += segment {
		if l.rng.Float64() < p.Loss {
			l.stats.Lost++
			due = due.Add(trip)
			break // the others that are lost are repeated in the same round trip
		}
	}
	return due
}

func (p Path) queue() time.Duration {
	if p.Queue > 0 {
		return p.Queue
	}
	return defaultQueue
}

// backlog is how long a packet would wait for the bottleneck.
func (l *lane) backlog(p Path, now time.Time) time.Duration {
	return max(l.free.Sub(now), 0)
}

// pass takes n bytes through the bottleneck and over the way.
func (l *lane) pass(p Path, now time.Time, n int) time.Time {
	due := now
	if p.Rate > 0 {
		burst := p.Burst
		if burst <= 0 {
			burst = defaultBurst
		}
		// A bucket of tokens: free lags behind now by at most what the burst is worth.
		if full := now.Add(-span(burst, p.Rate)); l.free.Before(full) {
			l.free = full
		}
		l.free = l.free.Add(span(n, p.Rate))
		if l.free.After(due) {
			due = l.free
		}
	}
	due = due.Add(p.Delay)
	if p.Jitter > 0 {
		due = due.Add(time.Duration(l.rng.Int64N(int64(p.Jitter) + 1)))
	}
	l.stats.Packets++
	l.stats.Bytes += int64(n)
	l.stats.InFlight += int64(n)
	l.stats.Peak = max(l.stats.Peak, l.stats.InFlight)
	return due
}

// span is how long n bytes take at rate.
func span(n, rate int) time.Duration {
	return time.Duration(float64(n) / float64(rate) * float64(time.Second))
}
