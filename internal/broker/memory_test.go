package broker

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPercentFor(t *testing.T) {
	for live, want := range map[uint64]int{0: 400, 8 << 20: 400, 9 << 20: 200, 16 << 20: 200, 17 << 20: 100, 32 << 20: 100, 33 << 20: 50, 1 << 40: 50} {
		if got := percentFor(live); got != want {
			t.Errorf("%d bytes in use: %d%%, want %d", live, got, want)
		}
	}
}

// TestBoundGarbage: the pace follows what is in use, from one collection to the next.
func TestBoundGarbage(t *testing.T) {
	t.Setenv("GOGC", "") // for the end of the test to put it back
	os.Unsetenv("GOGC")
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	defer boundGarbage()()
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	pace := func() int {
		metrics.Read(sample)
		return int(sample[0].Value.Uint64())
	}
	want := func(what string, ok func(int) bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(pace()); runtime.GC() {
			if time.Now().After(end) {
				t.Fatalf("%s: %d%%", what, pace())
			}
		}
	}
	want("little in use", func(p int) bool { return p > gcPercent })
	much := make([]byte, 4*garbageFloor)
	want("much in use", func(p int) bool { return p == gcPercent })
	runtime.KeepAlive(much)
	much = nil
	want("little in use again", func(p int) bool { return p > gcPercent })
}
