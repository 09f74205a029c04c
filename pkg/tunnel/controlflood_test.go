package tunnel

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// TestFault35ControlFlood: pings without end, from a peer that reads none of the answers, cost neither memory nor the
// session; the answers that there is no room for are dropped. (Oversize frames end the session: TestBadSessions.)
//
// Fails with a goroutine for each pong in obey.
func TestFault35ControlFlood(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		b := startBroker(t, AcceptorConfig{})
		l := rawLink(t, b.addr, tr)
		st := rawOpen(t, l, append(preamble(wire.KindControl, ""), helloFrame()...))
		s := b.next(t)
		goroutines, memory := runtime.NumGoroutine(), heap()
		ping := bytes.Repeat(wire.AppendPing(nil, wire.FramePing, wire.Ping{}), 1000)
		for range 400 { // 7 MB, and more answers than either window holds
			if _, err := st.Write(ping); err != nil {
				t.Fatalf("the flood was stopped: %v", err)
			}
		}
		if err := s.Err(); err != nil {
			t.Errorf("the session ended: %v", err)
		}
		if n := runtime.NumGoroutine() - goroutines; n > 20 {
			t.Errorf("%d goroutines were added", n)
		}
		if n := int64(heap()) - int64(memory); n > 16<<20 {
			t.Errorf("%d KiB of memory were added", n>>10)
		}
	})
}

// TestFault35YamuxPings: yamux would answer each ping from a goroutine, which waits as long as the peer reads nothing.
//
// Fails without the guard in frameConn.Read: the session goes on.
func TestFault35YamuxPings(t *testing.T) {
	b := startBroker(t, AcceptorConfig{})
	l := rawLink(t, b.addr, TransportTCP)
	rawOpen(t, l, append(preamble(wire.KindControl, ""), helloFrame()...))
	s := b.next(t)
	go l.mux.(*yamuxMux).ys.Ping()
	within(t, 5*time.Second, s.Done(), "the session to end")
	wantClosed(t, s.Err(), wire.BadRequest, false)
}

func FuzzYamuxGuard(f *testing.F) {
	data := []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 'a', 'b', 'c'}
	window := []byte{0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 13}
	ping := []byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7}
	syn := []byte{0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0}
	fin := []byte{0, 1, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0}
	f.Add(bytes.Join([][]byte{data, window, data}, nil), 5)
	f.Add(bytes.Join([][]byte{syn, data, syn}, nil), 2)
	f.Add(bytes.Join([][]byte{syn, data, fin, data}, nil), 7)
	f.Add(bytes.Join([][]byte{data, window, ping}, nil), 1)
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 2, 0, 0}, 3)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		step = 1 + (step&0xff)%64
		// Frame by frame over the whole.
		whole := yamuxGuard{windows: newYamuxWindows(baseWindow, 0)}
		var want error
		for rest := b; len(rest) >= yamuxHeader && want == nil; {
			f := yamuxFrame(rest)
			n := uint64(yamuxHeader)
			if f.kind() == yamuxTypeData {
				n += uint64(f.length())
			}
			want = whole.frame(f)
			if (f.kind() == yamuxTypePing) != (want == errYamuxPing) {
				t.Fatalf("%x: %v", f[:yamuxHeader], want)
			}
			rest = rest[min(n, uint64(len(rest))):]
		}
		g := yamuxGuard{windows: newYamuxWindows(baseWindow, 0)}
		var got error
		for at := 0; at < len(b) && got == nil; at += step {
			got = g.check(b[at:min(at+step, len(b))])
		}
		if got != want {
			t.Fatalf("%x by %d: %v, want %v", b, step, got, want)
		}
		for id, w := range g.windows.all {
			if w.held > baseWindow || w.buffered > w.held {
				t.Fatalf("stream %d: %+v", id, *w)
			}
		}
	})
}
