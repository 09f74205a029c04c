package tunnel

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
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
// Fails without the look at it in frameReader: the session goes on.
func TestFault35YamuxPings(t *testing.T) {
	b := startBroker(t, AcceptorConfig{})
	l := rawLink(t, b.addr, TransportTCP)
	rawOpen(t, l, append(preamble(wire.KindControl, ""), helloFrame()...))
	s := b.next(t)
	go l.mux.(*yamuxMux).ys.Ping()
	within(t, 5*time.Second, s.Done(), "the session to end")
	wantClosed(t, s.Err(), wire.BadRequest, false)
}

// FuzzYamuxFrames: however what arrives is cut, and whatever it is, the bytes of streams come to their inboxes, and yamux sees what is no stream's, up
// to the first frame that must not be.
func FuzzYamuxFrames(f *testing.F) {
	data := []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 'a', 'b', 'c'}
	window := []byte{0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 13}
	ping := []byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7}
	syn := []byte{0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0}
	fin := []byte{0, 1, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0}
	last := []byte{0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 1, 'z'}
	f.Add(bytes.Join([][]byte{data, window, data}, nil), 5)
	f.Add(bytes.Join([][]byte{syn, data, syn}, nil), 2)
	f.Add(bytes.Join([][]byte{syn, data, fin, data}, nil), 7)
	f.Add(bytes.Join([][]byte{syn, data, last}, nil), 6)
	f.Add(bytes.Join([][]byte{data, window, ping}, nil), 1)
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 2, 0, 0}, 3)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		step = 1 + (step&0xff)%64
		// Frame by frame over the whole.
		whole := newYamuxWindows(baseWindow, 0)
		var want error = io.EOF
		var shown []byte
		var opened []uint32
		bodies := map[uint32][]byte{}
		for rest := b; ; {
			if len(rest) < yamuxHeader {
				if len(rest) > 0 {
					want = io.ErrUnexpectedEOF
				}
				break
			}
			f := yamuxFrame(bytes.Clone(rest[:yamuxHeader]))
			rest = rest[yamuxHeader:]
			if f.version() == 0 && f.kind() == yamuxTypePing {
				want = errYamuxPing
				break
			}
			if f.version() != 0 || f.kind() > yamuxTypeWindow {
				shown = append(shown, f...)
				continue
			}
			if f.has(yamuxFlagSYN) && f.stream()%2 == 0 {
				want = errYamuxNumber
				break
			}
			if err := checkFrame(whole, f); err != nil {
				want = err
				break
			}
			if f.has(yamuxFlagSYN) {
				opened = append(opened, f.stream())
			}
			if f.kind() == yamuxTypeData {
				body := rest[:min(uint64(len(rest)), uint64(f.length()))]
				if whole.inbox(f.stream()) != nil {
					bodies[f.stream()] = append(bodies[f.stream()], body...)
				}
				if rest = rest[len(body):]; uint64(len(body)) < uint64(f.length()) {
					want = io.ErrUnexpectedEOF
					break
				}
			}
			if f.has(yamuxFlagFIN | yamuxFlagRST) {
				whole.ended(f.stream(), f.has(yamuxFlagRST))
			}
		}
		windows := newYamuxWindows(baseWindow, 0)
		r := newFrameReader(&cutReader{b, step}, func() bool { return step%2 == 0 }, windows)
		var told []uint32
		r.opened = func(id uint32) error {
			told = append(told, id)
			return nil
		}
		got, err := io.ReadAll(r)
		if err == nil {
			err = io.EOF
		}
		// Of a stream that begins with data it is told when all of them have come.
		if n := len(opened) - len(told); n != 0 && n != 1 || n == 1 && want != io.ErrUnexpectedEOF || !slices.Equal(opened[:len(told)], told) {
			t.Fatalf("%x by %d: told of streams %d, want %d", b, step, told, opened)
		}
		if !errors.Is(err, want) || !bytes.Equal(got, shown) {
			t.Fatalf("%x by %d: yamux sees %x and %v, want %x and %v", b, step, got, err, shown, want)
		}
		for id, w := range windows.all {
			if w.held > baseWindow || w.buffered > w.held || w.held != whole.all[id].held {
				t.Fatalf("stream %d: %+v", id, *w)
			}
			if in := make([]byte, len(b)); !bytes.Equal(in[:w.in.take(in)], bodies[id]) {
				t.Fatalf("stream %d: %x came, want %x", id, in, bodies[id])
			}
			if w.in.head != nil || w.in.ready() {
				t.Fatalf("stream %d holds a buffer when all was read", id)
			}
		}
	})
}

// cutReader reads no more than a few bytes at a time.
type cutReader struct {
	b    []byte
	step int
}

// Read implements io.Reader.
func (r *cutReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.step)], r.b)
	r.b = r.b[n:]
	return n, nil
}
