// Package processors says on how many processors a program's goroutines run at a time (docs/decisions/0023, 0033).
package processors

import (
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
)

var (
	// single says that goroutines run one at a time.
	single atomic.Bool
	// most is how many processors there were when Follow took them away, or 0.
	most atomic.Int32
)

func init() { single.Store(runtime.GOMAXPROCS(0) == 1) }

// Named reports whether the environment says how many there are: who sets GOMAXPROCS knows better than a program does. A value that the Go runtime takes no notice
// of (a word, 0) names none.
func Named() bool {
	n, err := strconv.ParseInt(os.Getenv("GOMAXPROCS"), 10, 32)
	return err == nil && n > 0
}

// One has goroutines run one at a time from now on, unless the environment says otherwise. System calls that block still have threads of their own.
func One() {
	if !Named() {
		set(1)
	}
}

// Single reports whether goroutines run one at a time. It is for choices of which either is right, and one is quicker: it may change at any time. Safe for concurrent
// use.
func Single() bool { return single.Load() }

// Most is on how many processors goroutines run where there is much to do, which Follow may not let them at the moment. It is for bounds. Safe for concurrent use.
func Most() int {
	if n := most.Load(); n > 0 {
		return int(n)
	}
	return runtime.GOMAXPROCS(0)
}

// set has goroutines run on n processors.
func set(n int) {
	runtime.GOMAXPROCS(n)
	single.Store(n == 1)
}

// all has them run on all that the machine and its container give, which is followed from then on.
func all() {
	runtime.SetDefaultGOMAXPROCS()
	most.Store(0)
	single.Store(runtime.GOMAXPROCS(0) == 1)
}
