//go:build unix

package processors

import (
	"context"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// look is how often Follow looks how much the program does.
	look = 100 * time.Millisecond
	// many is how much of one processor makes it want all of them, in percent: with more, its goroutines wait for each other too long.
	many = 80
	// few is how much of a processor it takes on all of them where one is enough, in percent. On several it takes more for the same.
	few = 60
	// calm is for how long that must be so.
	calm = 500 * time.Millisecond
	// some and trial are for a machine that is busy with others, where one processor's share may never be many: with more than some of one for so long it is given
	// all to see what it makes of them. If that is few, it's back on one after calm.
	some  = 40
	trial = 5 * time.Second
)

// Follow has goroutines run one at a time while the program takes little, and on all processors else, until ctx ends: then on all. Where the environment says how
// many (Named) it does nothing. It is to be called once at a time, and not with One.
func Follow(ctx context.Context) {
	if !Named() {
		follow(ctx, used)
	}
}

func follow(ctx context.Context, used func() time.Duration) {
	t := time.NewTicker(look)
	defer t.Stop()
	defer all()
	g := newGovernor(time.Now(), used())
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		switch now := time.Now(); g.next(now, used()) {
		case toOne:
			most.Store(int32(runtime.GOMAXPROCS(0)))
			set(1)
		case toAll:
			all()
		default:
			single.Store(runtime.GOMAXPROCS(0) == 1) // on all, Go follows what the machine and the container give
		}
	}
}

// step is what a governor wants to be done.
type step int

const (
	stay step = iota
	toOne
	toAll
)

// governor decides from how much was used.
type governor struct {
	at   time.Time     // of the last look
	used time.Duration // by then
	much time.Time     // when it was more than few last, on all
	less time.Time     // when it was no more than some last, on one
	one  bool          // goroutines run one at a time
}

func newGovernor(now time.Time, used time.Duration) *governor {
	return &governor{at: now, used: used, much: now}
}

// next is told how much time of processors was used by now, in all.
func (g *governor) next(now time.Time, used time.Duration) step {
	passed := now.Sub(g.at)
	if passed < look/2 { // the last look came late, and so short a time says little
		return stay
	}
	percent := 100 * (used - g.used) / passed
	g.at, g.used = now, used
	if percent > few {
		g.much = now
	}
	if percent <= some {
		g.less = now
	}
	switch {
	case g.one && (percent > many || now.Sub(g.less) >= trial):
		g.one, g.much = false, now
		return toAll
	case !g.one && now.Sub(g.much) >= calm:
		g.one, g.less = true, now
		return toOne
	}
	return stay
}

// used is how much time of processors this process has taken, in the kernel as well.
func used() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
