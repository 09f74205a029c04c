package tunnel

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// TestFault08HalfOpenAfterHandshake: the handshake went through, and then nothing passes any more, one way or both.
// Mechanism: the heartbeat at each end. Seen failing with a HeartbeatTimeout of an hour: neither end is ever free.
func TestFault08HalfOpenAfterHandshake(t *testing.T) {
	t.Parallel()
	hole := relay.Path{Hole: true}
	for name, set := range map[string]relay.Settings{"both ways": {Up: hole, Down: hole}, "to the broker": {Up: hole}, "to the agent": {Down: hole}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachTransport(t, func(t *testing.T, tr Transport) {
				t.Parallel()
				agent, brk, r := relayed(t, tr, quick(Config{}), quick(Config{}))
				waitFor(t, func() bool { return agent.Stats().RTT > 0 && brk.Stats().RTT > 0 }, "a heartbeat")
				r.Set(func(s *relay.Settings) { *s = set })
				within(t, 5*time.Second, agent.Done(), "the agent's end to be free")
				within(t, 5*time.Second, brk.Done(), "the broker's end to be free")
				if set.Up.Hole { // who still hears something may be told, which is as well
					wantClosed(t, brk.Err(), wire.HeartbeatLost, false)
				}
				if set.Down.Hole {
					wantClosed(t, agent.Err(), wire.HeartbeatLost, false)
				}
			})
		})
	}
}

// TestFault08CloseNeverHangs: nothing gets through any more, buffers are full, writers
// are stuck; Close of streams and of the session return all the same.
func TestFault08CloseNeverHangs(t *testing.T) {
	t.Parallel() // it mostly waits
	eachTransport(t, func(t *testing.T, tr Transport) {
		agent, brk, r := relayed(t, tr, Config{Handler: echo}, Config{Handler: echo})
		var streams []*Stream
		for i := range 20 {
			st, err := []*Session{agent, brk}[i%2].Open(t.Context(), wire.KindDial, "node:1")
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, st)
		}
		both(r, relay.Path{Stall: true})
		released := make(chan struct{}, len(streams))
		for _, st := range streams {
			go func() {
				_, _ = st.Write(make([]byte, 16<<20)) // more than any window
				released <- struct{}{}
			}()
		}
		waitFor(t, func() bool { // the buffers are full: nothing moves any more
			before := agent.Stats().BytesOut + brk.Stats().BytesOut
			time.Sleep(50 * time.Millisecond)
			return agent.Stats().BytesOut+brk.Stats().BytesOut == before
		}, "writers to be stuck")
		start := time.Now()
		for _, st := range streams[:10] {
			_ = st.Close()
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("closing ten streams took %s", d)
		}
		for _, s := range []*Session{agent, brk} {
			start = time.Now()
			_ = s.Close(wire.Shutdown, "")
			if d := time.Since(start); d > 4*time.Second {
				t.Errorf("Close took %s", d)
			}
		}
		for range streams {
			within(t, 5*time.Second, released, "writers to be let go")
		}
	})
}

// TestFault12WriteStalls: the path takes nothing for a while, or not any more.
func TestFault12WriteStalls(t *testing.T) {
	t.Parallel()
	// A stall within the limits costs time and nothing else. Mechanism: yamux's write timeout is above the heartbeat's.
	// Seen failing with a ConnectionWriteTimeout of 100 ms: the connection is out of step, and the copy ends.
	t.Run("short", func(t *testing.T) {
		t.Parallel()
		eachTransport(t, func(t *testing.T, tr Transport) {
			t.Parallel()
			cfg := Config{HeartbeatInterval: 50 * time.Millisecond, HeartbeatTimeout: 10 * time.Second, Handler: echo}
			cfg.StreamWindow = streamed // more than the kernels hold
			agent, _, r := relayed(t, tr, cfg, cfg)
			st, err := agent.Open(t.Context(), wire.KindAPI, "")
			if err != nil {
				t.Fatal(err)
			}
			sent, got := make(chan []byte, 1), make(chan []byte, 1)
			go func() { sent <- stream(st) }()
			go func() { got <- digest(t, st) }()
			waitFor(t, func() bool { return agent.Stats().BytesIn > 1<<20 }, "the copy to be under way")
			r.Set(func(s *relay.Settings) { s.Up.Stall = true })
			stuck(t, agent)
			time.Sleep(500 * time.Millisecond) // the stall
			r.Set(func(s *relay.Settings) { s.Up.Stall = false })
			if want := within(t, 20*time.Second, sent, "the copy to be sent"); string(within(t, 20*time.Second, got, "the copy's end")) != string(want) {
				t.Error("other bytes arrived than were sent")
			}
		})
	})
	// A longer one ends the session, and whoever reads, writes or opens is told why. Mechanism: the heartbeat, which does
	// not wait for the one who writes. Seen failing with send in place of trySend in sendPing: nothing ever ends.
	t.Run("long", func(t *testing.T) {
		t.Parallel()
		eachTransport(t, func(t *testing.T, tr Transport) {
			t.Parallel()
			cfg := Config{HeartbeatInterval: 50 * time.Millisecond, HeartbeatTimeout: 3 * time.Second, ProbeTimeout: 2 * time.Second, Handler: echo}
			agent, brk, r := relayed(t, tr, cfg, cfg)
			ends := make(chan error, 8)
			for range 4 {
				st, err := agent.Open(t.Context(), wire.KindAPI, "")
				if err != nil {
					t.Fatal(err)
				}
				go func() { _, err := st.Write(make([]byte, 64<<20)); ends <- err }()
				go func() { _, err := io.Copy(io.Discard, st); ends <- err }()
			}
			waitFor(t, func() bool { return agent.Stats().BytesIn > 1<<20 }, "the copies to be under way")
			both(r, relay.Path{Stall: true})
			within(t, 15*time.Second, agent.Done(), "the agent's session to end")
			within(t, 15*time.Second, brk.Done(), "the broker's session to end")
			for range 8 {
				ended(t, within(t, 5*time.Second, ends, "Read and Write to return"))
			}
			_, err := agent.Open(t.Context(), wire.KindAPI, "")
			ended(t, err)
		})
	})
	// 11 and 30 s of it with the timers as they are, over QUIC: the silence is a suspicion after 5 s, and after 5 more the
	// session is over. Mechanism: ProbeTimeout. Seen failing with one of an hour.
	t.Run("11 s", func(t *testing.T) {
		inFakeTime(t, relay.Config{}, Config{}, Config{Handler: echo}, func(t *testing.T, agent, _ *Session, r *relay.Relay) {
			st, err := agent.Open(t.Context(), wire.KindAPI, "")
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			both(r, relay.Path{Stall: true})
			if _, err := st.Write([]byte("anybody?")); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			ended(t, readErr(st))
			wantClosed(t, agent.Err(), wire.HeartbeatLost, false)
			if d := time.Since(began); d > 11*time.Second {
				t.Errorf("it took %s to tell, want at most two times ProbeTimeout", d)
			}
		})
	})
}

// stuck waits until nothing that the session writes gets out.
func stuck(t *testing.T, s *Session) {
	t.Helper()
	waitFor(t, func() bool {
		before := s.Stats()
		time.Sleep(50 * time.Millisecond)
		after := s.Stats()
		return after.BytesOut == before.BytesOut && after.BytesIn == before.BytesIn
	}, "the writer to be stuck")
}

const streamed = 16 << 20

// stream sends random bytes and their end, and returns their hash.
func stream(st *Stream) []byte {
	h := sha256.New()
	_, _ = io.CopyN(io.MultiWriter(struct{ io.Writer }{st}, h), rand.NewChaCha8([32]byte{7}), streamed)
	_ = st.CloseWrite()
	return h.Sum(nil)
}

// digest returns the hash of all that arrives.
func digest(t *testing.T, st *Stream) []byte {
	var h hash.Hash = sha256.New()
	if n, err := io.Copy(h, st); n != streamed || err != nil {
		t.Errorf("%d bytes arrived, %v", n, err)
	}
	return h.Sum(nil)
}

// TestFault13PeerStopped: the agent's process is stopped (SIGSTOP), its kernel is not: TCP lives and takes what fits.
// Mechanism: MaxPending, OpenTimeout, and the probe that an open without an answer brings about. Seen failing with an
// OpenTimeout of an hour (opens hang), a MaxPending of 256 (nobody is refused), and without openErr's probe (the session
// stays for as long as the heartbeat's timeout, and each new dial waits).
func TestFault13PeerStopped(t *testing.T) {
	t.Parallel()
	eachTransport(t, func(t *testing.T, tr Transport) {
		t.Parallel()
		const bound = 5
		cfg := Config{MaxPending: bound, OpenTimeout: time.Second, ProbeTimeout: time.Second, Handler: echo}
		_, brk, r := relayed(t, tr, cfg, cfg)
		both(r, relay.Path{Stall: true})
		var wg sync.WaitGroup
		var mu sync.Mutex
		codes := map[wire.Code]int{}
		began := time.Now()
		for range 20 {
			wg.Go(func() {
				_, err := brk.Open(t.Context(), wire.KindDial, "node:1")
				var refused *RefusedError
				if !errors.As(err, &refused) {
					t.Errorf("Open: %v, want a refusal", err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				codes[refused.Code]++
			})
		}
		wg.Wait()
		if d := time.Since(began); d < time.Second || d > 9*time.Second {
			t.Errorf("the answers took %s, want about OpenTimeout", d)
		}
		if codes[wire.DialTimeout] != bound || codes[wire.Overloaded] != 20-bound {
			t.Errorf("answers %v, want %d timeouts and the others refused at once", codes, bound)
		}
		within(t, 8*time.Second, brk.Done(), "the session to end")
		wantClosed(t, brk.Err(), wire.HeartbeatLost, false)
		_, err := brk.Open(t.Context(), wire.KindDial, "node:1")
		ended(t, err)
	})
}
