package tunnel

import (
	"context"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// reluctant is a stream that is written without end, and whose reader keeps up for a while and then stalls.
type reluctant struct {
	wrote, read atomic.Int64
	stalled     chan struct{} // closed once it reads no more
}

// reluctants is both sides of such streams.
type reluctants struct {
	keepUp int64 // bytes that each reader takes before it stalls
	all    chan *reluctant
	over   chan struct{}
}

func newReluctants(keepUp int64) *reluctants {
	return &reluctants{keepUp: keepUp, all: make(chan *reluctant, 64), over: make(chan struct{})}
}

// handle reads what write writes, and is a sink for other streams.
func (rs *reluctants) handle(ctx context.Context, s *Session, r *Request) {
	if r.Target != "reluctant" {
		sink(ctx, s, r)
		return
	}
	st, err := r.Accept()
	if err != nil {
		return
	}
	defer st.Reset(wire.Canceled)
	one := <-rs.all
	buf := make([]byte, 64<<10)
	for one.read.Load() < rs.keepUp {
		n, err := st.Read(buf)
		one.read.Add(int64(n))
		if err != nil {
			return
		}
	}
	close(one.stalled)
	select {
	case <-rs.over:
	case <-ctx.Done():
	}
}

// reluctantWrite is how many bytes write has written at a time.
const reluctantWrite = 64 << 10

// write opens a stream and writes until rs.over, or the session ends.
func (rs *reluctants) write(t *testing.T, s *Session) *reluctant {
	t.Helper()
	one := &reluctant{stalled: make(chan struct{})}
	rs.all <- one
	st, err := s.Open(t.Context(), wire.KindDial, "reluctant")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer st.Close()
		buf := make([]byte, reluctantWrite)
		for {
			n, err := st.Write(buf)
			one.wrote.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	return one
}

// windowed is a Config whose windows are in the default's proportion, and of a size that is soon filled.
var windowed = Config{StreamWindow: 2 << 20, SessionWindow: 32 << 20}

func TestDefaultWindows(t *testing.T) {
	c := Config{}.populate()
	if w := windowed.populate(); c.SessionWindow/c.StreamWindow != w.SessionWindow/w.StreamWindow {
		t.Errorf("a session's window is that of %d streams, the tests are of %d", c.SessionWindow/c.StreamWindow, w.SessionWindow/w.StreamWindow)
	}
	if fat := 300 * 100_000_000 / 8 / 1000; c.StreamWindow < fat*5/4 {
		t.Errorf("a stream's window is %d bytes, 100 Mbit/s at 300 ms are %d", c.StreamWindow, fat)
	}
	c = Config{StreamWindow: 1 << 40, SessionWindow: 1}.populate()
	if c.StreamWindow != maxStreamWindow || c.SessionWindow != maxStreamWindow {
		t.Errorf("windows of %d and %d", c.StreamWindow, c.SessionWindow)
	}
}

// stallRaised has n streams raised one after the other, and stall, and returns what they hold. settle returns once their
// writers are stuck.
func stallRaised(t *testing.T, rs *reluctants, s *Session, n int, settle func()) (each []int64, sum int64) {
	t.Helper()
	var all []*reluctant
	for range n {
		one := rs.write(t, s)
		within(t, 30*time.Second, one.stalled, "a reader to stall")
		all = append(all, one)
	}
	settle()
	return unread(all)
}

// unread is what was written on streams and not read.
func unread(all []*reluctant) (each []int64, sum int64) {
	for _, one := range all {
		n := one.wrote.Load() - one.read.Load()
		each = append(each, n)
		sum += n
	}
	return each, sum
}

// reluctantInFakeTime runs f with a session over QUIC and a path of 40 ms: with less quic-go raises no window.
func reluctantInFakeTime(t *testing.T, cfg Config, keepUp int64, f func(t *testing.T, rs *reluctants, brk *Session)) {
	path := relay.Path{Delay: 20 * time.Millisecond}
	c := relay.Config{Settings: relay.Settings{Up: path, Down: path}}
	var rs *reluctants // its channels are the bubble's
	agentCfg := cfg
	agentCfg.Handler = func(ctx context.Context, s *Session, r *Request) { rs.handle(ctx, s, r) }
	inFakeTime(t, c, agentCfg, cfg, func(t *testing.T, _, brk *Session, _ *relay.Relay) {
		rs = newReluctants(keepUp)
		defer close(rs.over)
		f(t, rs, brk)
	})
}

// TestFault11RaisedThenStalled: readers keep up until their streams have the largest of windows, and then read no more:
// eleven of them, beside one that goes on. Mechanism: over QUIC SessionWindow is that of sixteen streams, of which quic-go
// keeps up to a quarter back, as it grants anew only what adds up to that; over TCP each stream has its base, whatever the
// others hold: TestPeakOfASession has one that goes on beside so many that nothing else is left. Seen failing over QUIC with
// a SessionWindow of twelve streams: even the heartbeat finds no room.
func TestFault11RaisedThenStalled(t *testing.T) {
	t.Parallel()
	const stalls = 11
	goesOn := func(t *testing.T, s *Session, held []int64) {
		t.Helper()
		t.Logf("the stalled hold %d", held)
		// Its reader may have stopped when a quarter was about to be granted, and its writer within a write, which counts when it returns.
		if held[0] < int64(windowed.StreamWindow)*3/4-reluctantWrite {
			t.Errorf("the first holds %d: its window was not raised", held[0])
		}
		began := time.Now()
		pour(t, s, 8<<20)
		t.Logf("8 MiB beside them took %s", time.Since(began))
	}
	t.Run("quic", func(t *testing.T) {
		reluctantInFakeTime(t, windowed, 4<<20, func(t *testing.T, rs *reluctants, brk *Session) {
			each, _ := stallRaised(t, rs, brk, stalls, func() { time.Sleep(10 * time.Second) })
			goesOn(t, brk, each)
		})
	})
	t.Run("tcp", func(t *testing.T) {
		t.Parallel()
		rs := newReluctants(4 << 20)
		cfg := windowed
		cfg.Handler = rs.handle
		_, brk := dialPair(t, TransportTCP, cfg, windowed)
		defer close(rs.over)
		each, _ := stallRaised(t, rs, brk, stalls, func() { stuck(t, brk) })
		goesOn(t, brk, each)
	})
}

// TestPeakOfASession: more streams are raised and stall than there is room for. What is buffered of them, which is what
// was written and not read, is SessionWindow at the most, over TCP and baseWindow for each; and there another stream goes
// on. Seen failing over TCP with windows whose growth asks no budget, and (the other stands still) with grants of no more
// than what is left of that; over QUIC with a connection window of twice SessionWindow.
func TestPeakOfASession(t *testing.T) {
	t.Parallel()
	const streams = 24
	small := Config{StreamWindow: 2 << 20, SessionWindow: 8 << 20}
	t.Run("quic", func(t *testing.T) {
		reluctantInFakeTime(t, small, 4<<20, func(t *testing.T, rs *reluctants, brk *Session) {
			var all []*reluctant
			for range streams / 4 { // more would not find room to open
				all = append(all, rs.write(t, brk))
			}
			time.Sleep(10 * time.Second)
			each, sum := unread(all)
			// A write returns when its last packet is about to be sent.
			if most := int64(small.SessionWindow + streams*quicPacketSize); sum > most || sum < most/2 {
				t.Errorf("%d bytes are held, want at most %d: %d", sum, most, each)
			}
		})
	})
	t.Run("tcp", func(t *testing.T) {
		t.Parallel()
		rs := newReluctants(4 << 20)
		cfg := small
		cfg.Handler = rs.handle
		_, brk := dialPair(t, TransportTCP, cfg, small)
		defer close(rs.over)
		each, sum := stallRaised(t, rs, brk, streams, func() { stuck(t, brk) })
		t.Logf("held: %d", each)
		if most := int64(small.SessionWindow + streams*baseWindow); sum > most || sum < most*3/4 {
			t.Errorf("%d bytes are held, want at most %d: %d", sum, most, each)
		}
		pour(t, brk, 4<<20)
	})
}

// TestEmptyBufferIsGivenUp: a stream that once held much holds nothing when that was read, though it stays open. Seen
// failing without the giving back in inbox.free.
func TestEmptyBufferIsGivenUp(t *testing.T) { // not parallel: it looks at the heap
	p := newPair(t, TransportTCP, true, Config{})
	a, b := p.connect(t)
	const all, rest = 40 << 20, 5 << 20 // a grant may be as late as when a quarter is free
	wrote := make(chan error, 1)
	go func() {
		_, err := io.CopyN(struct{ io.Writer }{a}, neverEnding{}, all)
		wrote <- err
	}()
	if _, err := io.CopyN(io.Discard, b, all-rest); err != nil {
		t.Fatal(err)
	}
	if err := within(t, 10*time.Second, wrote, "all to be written"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		w := b.raw.(*yamuxStream).window
		s := b.s.l.mux.(*yamuxMux).conn.windows
		s.mu.Lock()
		defer s.mu.Unlock()
		return w.buffered == rest
	}, "the rest to arrive")
	full := holdings(t).heap
	if _, err := io.CopyN(io.Discard, b, rest); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		runtime.GC() // what is back in the pool goes with the second
	}
	if empty := holdings(t).heap; full-empty < rest*3/4 {
		t.Errorf("%d bytes of heap when %d were buffered, %d when none", full, rest, empty)
	}
	_ = a.Close()
	_ = b.Close()
}
