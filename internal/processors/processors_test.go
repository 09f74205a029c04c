//go:build unix

package processors

import (
	"context"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// withProcessors is for tests that change for how many there are, on a machine of one processor too.
func withProcessors(t *testing.T, n int) {
	if Named() {
		t.Skip("the environment says on how many processors this runs")
	}
	was := runtime.GOMAXPROCS(0)
	t.Cleanup(func() {
		runtime.GOMAXPROCS(was)
		single.Store(was == 1)
	})
	set(n)
}

func TestNamed(t *testing.T) {
	for value, want := range map[string]bool{"": false, "2": true, "1": true, "0": false, "-1": false, "two": false, "99999999999": false} {
		t.Setenv("GOMAXPROCS", value)
		if Named() != want {
			t.Errorf("GOMAXPROCS=%s is heeded: %v", value, Named())
		}
	}
}

func TestOne(t *testing.T) {
	withProcessors(t, 3)
	if Single() || Most() != 3 {
		t.Errorf("single is %v, and the most %d, of 3", Single(), Most())
	}
	t.Setenv("GOMAXPROCS", "3")
	One()
	if Single() || runtime.GOMAXPROCS(0) != 3 {
		t.Error("the environment says 3, and it is one")
	}
	os.Unsetenv("GOMAXPROCS") // Setenv takes it back
	One()
	if !Single() || runtime.GOMAXPROCS(0) != 1 {
		t.Error("it is not one")
	}
}

// TestFollow: one processor while little is used, all as soon as it is much, and one again after a while of little; all at the end.
func TestFollow(t *testing.T) {
	withProcessors(t, 4)
	everything := func() int { // what the machine gives
		runtime.SetDefaultGOMAXPROCS()
		defer set(4)
		return runtime.GOMAXPROCS(0)
	}()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		var percent, total atomic.Int64 // of one processor; nanoseconds
		var ended sync.WaitGroup
		ended.Go(func() {
			follow(ctx, func() time.Duration {
				return time.Duration(total.Add(percent.Load() * int64(look) / 100))
			})
		})
		want := func(after time.Duration, at, procs, most int) {
			t.Helper()
			percent.Store(int64(at))
			time.Sleep(after)
			synctest.Wait()
			if p := runtime.GOMAXPROCS(0); p != procs || Single() != (procs == 1) || Most() != most {
				t.Errorf("after %s at %d %%: on %d processors, single %v, of %d at the most; want %d and %d", after, at, p, Single(), Most(), procs, most)
			}
		}
		want(calm-look/2, 0, 4, 4)
		want(look, 0, 1, 4)
		want(trial-look, many, 1, 4)
		want(look, some, 1, 4)
		want(look, many+1, everything, everything)
		want(2*calm, few+1, everything, everything)
		want(calm-look, few, everything, everything)
		if everything > 1 {
			want(look, few, 1, everything)
			want(trial-look, some+1, 1, everything)
			want(look, some+1, everything, everything) // is it more than some on all of them?
			want(calm, some+1, 1, everything)
		}
		cancel()
		ended.Wait()
		if p := runtime.GOMAXPROCS(0); p != everything || Most() != everything {
			t.Errorf("at the end: on %d processors, and at the most %d; want %d", p, Most(), everything)
		}
	})
}

// TestFollowBusy: it is this process's own use that counts.
func TestFollowBusy(t *testing.T) {
	withProcessors(t, 2)
	if runtime.NumCPU() == 1 {
		t.Skip("a machine of one processor")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Go(func() { Follow(ctx) })
	defer ended.Wait()
	defer cancel()
	until := func(single bool) {
		t.Helper()
		look := time.NewTicker(10 * time.Millisecond)
		defer look.Stop()
		late := time.After(time.Minute)
		for Single() != single {
			select {
			case <-look.C:
			case <-late:
				t.Fatalf("single is %v", Single())
			}
		}
	}
	until(true)
	var stop atomic.Bool
	for range 4 { // on a machine that is busy one alone might not get enough of a processor
		ended.Go(func() {
			for !stop.Load() {
			}
		})
	}
	defer stop.Store(true)
	until(false)
	stop.Store(true)
	until(true)
}
