package strangers

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func ip(s string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(s), Port: 1} }

// TestTurns: of one source no more than so many work at a time, and another source does not wait for them.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(2)
		var working, most atomic.Int64
		release := make(chan struct{})
		var all sync.WaitGroup
		for range 10 {
			turn := turns.Join(ip("192.0.2.1"))
			all.Go(func() {
				defer turn.Leave()
				turn.Take()
				turn.Take() // has it
				n := working.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				<-release
				working.Add(-1)
				turn.Give()
				turn.Give() // has none
			})
		}
		synctest.Wait()
		if n := working.Load(); n != 2 {
			t.Errorf("%d work at a time, want 2", n)
		}
		other := turns.Join(ip("192.0.2.2"))
		other.Take() // or the test is deadlocked
		other.Leave()
		other.Leave()
		other.Take() // has left: waits for nobody
		close(release)
		all.Wait()
		if most.Load() != 2 {
			t.Errorf("%d worked at a time, want 2", most.Load())
		}
		if len(turns.sources) != 0 {
			t.Errorf("%d sources are kept of which nobody is there", len(turns.sources))
		}
	})
}

// TestTurnLeftWhileWaiting: who leaves while it waits keeps nobody from his turn.
func TestTurnLeftWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(1)
		first, second, third := turns.Join(nil), turns.Join(nil), turns.Join(nil)
		first.Take()
		waited := make(chan struct{})
		go func() { second.Take(); close(waited) }()
		synctest.Wait()
		second.Leave()
		first.Leave()
		<-waited
		third.Take() // or the test is deadlocked
		third.Leave()
		if len(turns.sources) != 0 {
			t.Errorf("%d sources are kept of which nobody is there", len(turns.sources))
		}
	})
}
