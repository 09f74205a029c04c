package tunnel

import (
	"bytes"
	"context"
	"io"
	"math/rand"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// rests says whether whoever reads a stream waits for more, and was not woken.
func rests(st *Stream) bool {
	in := st.raw.(*yamuxStream).in
	in.turn.Lock()
	defer in.turn.Unlock()
	return in.resting && len(in.wake) == 0
}

// resting waits until whoever reads a stream waits for more.
func resting(t *testing.T, st *Stream) {
	t.Helper()
	waitFor(t, func() bool {
		if !rests(st) {
			return false
		}
		time.Sleep(20 * time.Millisecond) // it may have been woken for what came before
		return rests(st)
	}, "the reader to rest")
}

// TestDeliver: what arrives while a reader waits is given to Deliver's function, and does not end the wait; what it does not take, and what comes
// behind that, is read; with nil it gets no more.
func TestDeliver(t *testing.T) {
	p := newPair(t, TransportTCP, false, Config{})
	a, b := p.connect(t)
	defer a.Close()
	defer b.Close()
	write := func(s string) {
		t.Helper()
		if _, err := a.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Write([]byte("!")); err != nil { // so that either side knows of the stream
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}

	got, take := make(chan string, 10), new(atomic.Int64)
	take.Store(4096)
	long := strings.Repeat("more than is read with the header ", 100)
	b.Deliver(func(p []byte) int {
		n := min(len(p), int(take.Load()))
		got <- string(p[:n])
		return n
	})
	waited := make(chan error, 1)
	go func() { waited <- b.WaitRead() }()
	resting(t, b)
	for _, s := range []string{"one", "two", long} {
		write(s)
		if g := within(t, 5*time.Second, got, s); g != s {
			t.Errorf("%q was delivered, want %q", g, s)
		}
	}
	select {
	case err := <-waited:
		t.Fatalf("the wait ended with what was delivered: %v", err)
	default:
	}
	waitFor(t, func() bool { return b.Bytes() == uint64(len("!onetwo"+long)) }, "what was delivered to be counted")

	take.Store(2)
	write("three")
	if g := within(t, 5*time.Second, got, "a part"); g != "th" {
		t.Errorf("%q was delivered", g)
	}
	if err := within(t, 5*time.Second, waited, "the rest"); err != nil {
		t.Fatal(err)
	}
	take.Store(0)
	write("four")
	rest := make([]byte, len("reefour"))
	if _, err := io.ReadFull(b, rest); err != nil || string(rest) != "reefour" {
		t.Errorf("%q was read, %v", rest, err)
	}

	take.Store(4096)
	for len(got) > 0 { // of what it took nothing
		<-got
	}
	read := make(chan string, 1)
	go func() {
		buf := make([]byte, 100)
		n, _ := b.Read(buf)
		read <- string(buf[:n])
	}()
	write("a Read holds a buffer, and is not left waiting")
	if s := within(t, 5*time.Second, read, "the read"); len(s) != 46 || len(got) > 0 {
		t.Errorf("%q was read, and %d were delivered", s, len(got))
	}
	b.Deliver(nil)
	go func() { waited <- b.WaitRead() }()
	write("five")
	if err := within(t, 5*time.Second, waited, "what is not delivered"); err != nil {
		t.Fatal(err)
	}
	if len(got) > 0 {
		t.Errorf("%q was delivered to nobody", <-got)
	}
}

// TestDeliveredInOrder: bytes keep their order whichever way they go, and none is lost or doubled. Run with the race detector.
func TestDeliveredInOrder(t *testing.T) {
	p := newPair(t, TransportTCP, true, Config{})
	a, b := p.connect(t)
	if _, err := b.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 4<<20)
	rng := rand.New(rand.NewSource(1))
	rng.Read(data)
	go func() {
		for p := data; len(p) > 0; {
			n := min(1+rng.Intn(1<<rng.Intn(18)), len(p))
			if _, err := a.Write(p[:n]); err != nil {
				return
			}
			p = p[n:]
		}
		_ = a.CloseWrite()
	}()
	var got []byte // whoever appends is alone: that is what is tested
	delivered, takes := 0, rand.New(rand.NewSource(2))
	b.Deliver(func(p []byte) int {
		n := len(p)
		if takes.Intn(3) == 0 {
			n = takes.Intn(n + 1)
		}
		got = append(got, p[:n]...)
		delivered += n
		return n
	})
	buf, reads := make([]byte, 32<<10), rand.New(rand.NewSource(3))
	for {
		if err := b.WaitRead(); err != nil {
			t.Fatal(err)
		}
		n, err := b.Read(buf[:1+reads.Intn(len(buf))])
		got = append(got, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b.Deliver(nil)
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes came for %d, or others", len(got), len(data))
	}
	if delivered == 0 {
		t.Error("nothing was delivered")
	}
	_ = a.Close()
	_ = b.Close()
}

// TestTryWrite: it writes where that waits for nothing, and else nothing: no window is left, the connection takes no bytes, the stream was closed.
// Fails without asking whether the socket takes bytes.
func TestTryWrite(t *testing.T) {
	accepted := make(chan *Stream, 2)
	_, brk, r := relayed(t, TransportTCP, Config{Handler: func(_ context.Context, _ *Session, r *Request) {
		if st, err := r.Accept(); err == nil {
			accepted <- st
		}
	}}, Config{})
	open := func() (near, far *Stream) {
		t.Helper()
		near, err := brk.Open(t.Context(), wire.KindDial, "x:1")
		if err != nil {
			t.Fatal(err)
		}
		return near, within(t, 5*time.Second, accepted, "the stream")
	}
	message := make([]byte, 4<<10)

	near, far := open()
	n := 0
	for near.TryWrite(message) {
		n += len(message)
	}
	// The socket may have been full for a moment before the window was used up.
	waitFor(t, func() bool {
		for near.TryWrite(message) {
			n += len(message)
		}
		return n > baseWindow-2*len(message)
	}, "the whole window to be written")
	if got, err := io.ReadAll(io.LimitReader(iotest.OneByteReader(far), 10)); err != nil || len(got) != 10 {
		t.Errorf("%d bytes came: %v", len(got), err)
	}
	_ = near.Close()
	if near.TryWrite([]byte("x")) {
		t.Error("a stream that was closed took bytes")
	}
	_ = far.Close()

	both(r, relay.Path{Stall: true})
	wrote := make(chan int, 1)
	go func() {
		n := 0
		for failed := 0; failed < 50; failed++ { // one in a row may be for somebody who writes
			st, err := brk.l.open(t.Context()) // of whose beginning nobody learns
			if err != nil {
				break
			}
			for st.(*yamuxStream).tryWrite(message) {
				n += len(message)
				failed = 0
			}
			time.Sleep(time.Millisecond)
		}
		wrote <- n
	}()
	n = within(t, 20*time.Second, wrote, "a connection that is not read to take no more")
	if brk.l.mux.(*yamuxMux).over() {
		t.Error("it waited, until the session was given up")
	}
	t.Logf("%d KiB went to a connection that is not read", n>>10)
}

// TestDeliveredMessagesAreWritten: short messages to and fro through two splices go by no splice's goroutine.
func TestDeliveredMessagesAreWritten(t *testing.T) {
	p := newPair(t, TransportTCP, false, Config{})
	client, near := tcpConns(t)
	server, far := tcpConns(t)
	p.handle(func(_ context.Context, _ *Session, r *Request) {
		if st, err := r.Accept(); err == nil {
			_, _, _ = splice.Splice(st, far)
		}
	})
	st := p.open(t)
	type count struct{ there, back int64 }
	done := make(chan count, 1)
	go func() {
		there, back, _ := splice.Splice(near, st)
		done <- count{there, back}
	}()
	resting(t, st)
	pass := func(from, to net.Conn, s string) {
		t.Helper()
		if _, err := from.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(s))
		if _, err := io.ReadFull(to, got); err != nil || string(got) != s {
			t.Fatalf("%q came: %v", got, err)
		}
	}
	for range 100 {
		pass(client, server, "to the node")
		pass(server, client, "and back")
		if !rests(st) {
			t.Fatal("a reader was woken for what was delivered")
		}
	}
	_ = client.Close()
	_ = server.Close()
	if c := within(t, 10*time.Second, done, "the end"); c.there != 1100 || c.back != 800 {
		t.Errorf("the splice counts %+v", c)
	}
}
