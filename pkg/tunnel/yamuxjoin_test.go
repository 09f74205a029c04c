package tunnel

import (
	"sync/atomic"
	"testing"
)

// How many processors there are changes while a broker runs, so short frames are joined now and then in all tests, and always or never in those that look at it.
const (
	joinNow int32 = iota
	joinAlways
	joinNever
)

var (
	joinMode  atomic.Int32
	joinAsked atomic.Uint32
)

func init() {
	joining = func() bool {
		switch joinMode.Load() {
		case joinAlways:
			return true
		case joinNever:
			return false
		}
		return joinAsked.Add(1)%2 > 0
	}
}

// setJoining is for tests that are not parallel.
func setJoining(t *testing.T, mode int32) {
	joinMode.Store(mode)
	t.Cleanup(func() { joinMode.Store(joinNow) })
}
