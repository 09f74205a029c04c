package tunnel

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// flow is a stream of a model: a sender that sends all it may, and a reader.
type flow struct {
	w          *yamuxWindow
	id         uint32
	granted    int // not sent yet
	unread     int // sent, and on its way or buffered
	over, fast bool
}

// TestYamuxWindowsModel: senders and readers at random, with a clock of their own. Whatever they do, what is granted and
// not read stays within the budget and baseWindow for each stream, no stream has more than the largest window, and a
// stream whose reader has taken all may go on. Seen failing with tune's doubling not bounded by what is left, with a size
// that does not count what is held, and with a grant that waits until more than a target is free.
func TestYamuxWindowsModel(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("MOORING_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MOORING_TEST_SEED=%d", seed)
	raised, most := 0, 0
	for round := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, round))
		maximum := baseWindow << rng.IntN(7)
		budget := rng.IntN(10 * maximum)
		m := &windowsModel{t: t, rng: rng, s: newYamuxWindows(maximum, budget), budget: budget, now: time.Unix(1, 0)}
		for range 3000 {
			m.step()
			m.check()
		}
		for len(m.flows) > 0 {
			m.close(0)
		}
		m.check()
		if m.s.spare != budget {
			t.Fatalf("round %d: %d of a budget of %d are left when all streams are closed", round, m.s.spare, budget)
		}
		raised, most = raised+m.raised, max(most, m.most)
	}
	if raised == 0 || most <= 4*baseWindow {
		t.Errorf("windows were raised %d times, up to %d: the test tests nothing", raised, most)
	}
}

type windowsModel struct {
	t            *testing.T
	rng          *rand.Rand
	s            *yamuxWindows
	budget       int
	now          time.Time
	flows        []*flow
	next         uint32
	raised, most int
}

// step does one thing at random.
func (m *windowsModel) step() {
	m.now = m.now.Add(time.Duration(m.rng.ExpFloat64() * float64(20*time.Millisecond)))
	if len(m.flows) == 0 || m.rng.IntN(50) == 0 {
		m.next += 2
		check(m.s.opened(m.next))
		m.flows = append(m.flows, &flow{w: m.s.of(m.next), id: m.next, granted: baseWindow, fast: m.rng.IntN(3) > 0})
	}
	i := m.rng.IntN(len(m.flows))
	f := m.flows[i]
	switch k := m.rng.IntN(100); {
	case k < 2:
		m.close(i)
	case k < 4 && !f.over:
		f.over = true
		m.s.ended(f.id, false)
		f.granted = 0
	case k < 5:
		f.fast = !f.fast
	case k < 7:
		m.now = m.now.Add(time.Duration(m.rng.IntN(int(slackTime))))
	case k < 55:
		n := m.rng.IntN(f.granted + 1)
		if m.rng.IntN(2) == 0 {
			n = f.granted
		}
		if err := m.s.arrived(f.id, uint32(n)); err != nil {
			m.t.Fatalf("%d of %d granted bytes: %v", n, f.granted, err)
		}
		f.granted -= n
		f.unread += n
	case f.fast:
		m.read(f, f.unread)
	default:
		m.read(f, m.rng.IntN(f.unread+1))
	}
}

// read takes n bytes in reads of what a reader's buffer holds.
func (m *windowsModel) read(f *flow, n int) {
	for n > 0 {
		one := min(n, 1+m.rng.IntN(64<<10))
		before := f.w.target
		grant := m.s.read(f.w, one, m.now)
		if f.w.target > before {
			m.raised++
		}
		f.granted += int(grant)
		f.unread -= one
		n -= one
	}
	if f.unread == 0 && f.granted == 0 && !f.over {
		m.t.Fatalf("all was read that was granted, and no more is: %+v", *f.w)
	}
}

func (m *windowsModel) close(i int) {
	m.s.closed(m.flows[i].id)
	m.flows[i] = m.flows[len(m.flows)-1]
	m.flows = m.flows[:len(m.flows)-1]
}

// check compares what the streams hold with what they may.
func (m *windowsModel) check() {
	sum := 0
	for _, f := range m.flows {
		held := f.granted + f.unread
		m.most = max(m.most, held)
		if held > max(baseWindow, m.s.max) || held != f.w.held || f.unread != f.w.buffered {
			m.t.Fatalf("%+v beside %+v", *f, *f.w)
		}
		sum += max(held-baseWindow, 0)
	}
	if sum > m.budget-m.s.spare || m.s.spare < 0 {
		m.t.Fatalf("the streams hold %d beyond their base, the budget is %d, of which are %d left", sum, m.budget, m.s.spare)
	}
	// And what was not sent was not granted.
	if len(m.flows) > 0 {
		f := m.flows[m.rng.IntN(len(m.flows))]
		if err := m.s.arrived(f.id, uint32(f.granted+1)); !errors.Is(err, errYamuxWindow) {
			m.t.Fatalf("a byte beyond the window: %v", err)
		}
	}
}

// pump has the reader take n bytes, each chunk as long after the one before as every says, and the sender send at once.
func pump(s *yamuxWindows, w *yamuxWindow, id uint32, n int, every time.Duration, now *time.Time) {
	const chunk = 32 << 10
	for at := 0; at < n; at += chunk {
		*now = now.Add(every)
		check(s.arrived(id, chunk))
		s.read(w, chunk, *now)
	}
}

func TestYamuxWindowGrowsAndShrinks(t *testing.T) {
	const maximum = 8 << 20
	s, now := newYamuxWindows(maximum, 64<<20), time.Unix(1, 0)
	check(s.opened(1))
	w := s.of(1)
	pump(s, w, 1, 4<<20, 500*time.Millisecond, &now) // 64 KiB a second
	if w.target != baseWindow {
		t.Errorf("a slow reader has a window of %d", w.target)
	}
	pump(s, w, 1, 32<<20, 2*time.Millisecond, &now) // 16 MiB a second
	if w.target != maximum || w.size != maximum || s.spare != 64<<20-(maximum-baseWindow) {
		t.Errorf("a fast reader has a window of %d, and the budget %d left", w.target, s.spare)
	}
	pump(s, w, 1, 32<<20, 500*time.Millisecond, &now)
	if w.target > 1<<20 || w.held > w.target || s.spare != 64<<20-(w.target-baseWindow) {
		t.Errorf("a reader that has become slow has a window of %d, of which it holds %d; the budget has %d left", w.target, w.held, s.spare)
	}
	s.closed(1)
	if s.spare != 64<<20 {
		t.Errorf("%d are left when the stream is closed", s.spare)
	}
	if grant := s.read(w, 0, now); grant > 0 || s.spare != 64<<20 {
		t.Error("a stream that is closed was granted something")
	}
}

// TestYamuxWindowsAreShared: who comes later finds something to grow by.
func TestYamuxWindowsAreShared(t *testing.T) {
	s, now := newYamuxWindows(8<<20, 16<<20), time.Unix(1, 0)
	var targets []int
	for id := uint32(1); id < 12; id += 2 {
		check(s.opened(id))
		w := s.of(id)
		pump(s, w, id, 32<<20, 2*time.Millisecond, &now)
		targets = append(targets, w.target)
	}
	t.Logf("windows of those who came one after the other: %d", targets)
	if targets[0] != 8<<20 || targets[3] < 1<<20 || targets[5] < 2*baseWindow {
		t.Errorf("windows %d", targets)
	}
}

// TestFixedWindow: the control stream's window is what it was, however fast it is read.
func TestFixedWindow(t *testing.T) {
	s, now := newYamuxWindows(8<<20, 64<<20), time.Unix(1, 0)
	check(s.opened(1))
	w := s.of(1)
	s.fix(w)
	pump(s, w, 1, 32<<20, time.Millisecond, &now)
	if w.target != baseWindow || s.spare != 64<<20 {
		t.Errorf("window %d, %d left", w.target, s.spare)
	}
}

// TestFault37BeyondTheWindow: who sends more than he was granted has his session ended before it is kept; so has who
// opens a stream by the number of an open one. Seen failing without the guard's arrived, and its opened: yamux knows of a
// larger window (the session goes on), and of the number only once it has come to it.
func TestFault37BeyondTheWindow(t *testing.T) {
	t.Parallel()
	hostile := func(t *testing.T, f func(*frameConn)) {
		t.Helper()
		b := startBroker(t, AcceptorConfig{Config: Config{Handler: func(ctx context.Context, _ *Session, r *Request) {
			if st, err := r.Accept(); err == nil {
				<-ctx.Done()
				_ = st.Close()
			}
		}}})
		l := rawLink(t, b.addr, TransportTCP)
		rawOpen(t, l, append(preamble(wire.KindControl, ""), helloFrame()...))
		s := b.next(t)
		if a, err := wire.ReadAnswer(rawOpen(t, l, preamble(wire.KindAPI, ""))); err != nil || a.Code != wire.OK {
			t.Fatal(a, err)
		}
		f(l.mux.(*yamuxMux).conn)
		within(t, 5*time.Second, s.Done(), "the session to end")
		wantClosed(t, s.Err(), wire.BadRequest, false)
	}
	hostile(t, func(c *frameConn) {
		head := appendFrame(nil, 0, 3, 32<<10)
		head[1] = yamuxTypeData
		for range baseWindow/(32<<10) + 1 {
			if c.write(head, make([]byte, 32<<10)) != nil {
				return
			}
		}
	})
	hostile(t, func(c *frameConn) {
		head := appendFrame(nil, 0, 3, 0)
		head[3] = yamuxFlagSYN
		_ = c.write(head, nil)
	})
}
