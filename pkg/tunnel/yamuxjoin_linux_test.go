package tunnel

import (
	"bytes"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestJoin: while one is about to write, short frames of all streams join it and are one record, no more than that; long ones do not.
func TestJoin(t *testing.T) {
	setJoining(t, joinAlways)
	p := newPair(t, TransportTCP, false, Config{})
	const streams = 8
	var from, to []*Stream
	for range streams {
		a, b := p.connect(t)
		defer a.Close()
		defer b.Close()
		for _, way := range [][2]*Stream{{a, b}, {b, a}} { // all windows, grants and answers are out of the way
			if _, err := way[0].Write([]byte("!")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(way[1], make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		from, to = append(from, a), append(to, b)
	}
	c, other := from[0].raw.(*yamuxStream).m.conn, to[0].raw.(*yamuxStream).m.conn
	waits := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.waiting()
	}
	write := func(st *Stream, p string) {
		t.Helper()
		before := waits()
		if _, err := st.Write([]byte(p)); err != nil {
			t.Error(err)
		}
		if got, want := waits()-before, yamuxHeader+len(p); got != want {
			t.Errorf("%d bytes more wait, want %d", got, want)
		}
	}
	gets := func(st *Stream, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(st, got); err != nil || string(got) != want {
			t.Errorf("%.20q of %d bytes was read, %v; want %.20q of %d", got, len(got), err, want, len(want))
		}
	}

	c.wmu.Lock() // as with one that waits for the connection
	before := cameIn(t, other)
	write(from[0], "one") // and does not wait for that
	for _, st := range from[1:] {
		write(st, "two")
	}
	if !from[1].TryWrite([]byte("three")) {
		t.Error("what who reads the session passes on did not join")
	}
	c.wmu.Unlock()
	gets(to[0], "one")
	gets(to[1], "twothree")
	for _, st := range to[2:] {
		gets(st, "two")
	}
	const record = 22 // what TLS 1.3 adds
	if got, want := cameIn(t, other)-before, uint64(streams*(yamuxHeader+3)+yamuxHeader+5+record); got != want {
		t.Errorf("%d bytes came, want %d: all frames in one record", got, want)
	}

	// No more than a record joins; then a writer waits, and who may not wait is told.
	c.wmu.Lock()
	piece := strings.Repeat("x", joinSize)
	write(from[0], piece)
	n := 0
	for ; from[2].TryWrite([]byte(piece)); n++ {
	}
	if n == 0 || waits() > recordSize || waits()+yamuxHeader+joinSize <= recordSize {
		t.Errorf("%d bytes wait after %d of %d", waits(), n+1, joinSize)
	}
	over := make(chan error, 2)
	for _, way := range []struct {
		st *Stream
		p  string
	}{{from[1], piece}, {from[3], piece + "and one that is too long to be joined"}} {
		go func() {
			_, err := way.st.Write([]byte(way.p))
			over <- err
		}()
	}
	waitFor(t, func() bool {
		stuck := 0
		for _, st := range []*Stream{from[1], from[3]} {
			if y := st.raw.(*yamuxStream); !y.wmu.TryLock() {
				stuck++
			} else {
				y.wmu.Unlock()
			}
		}
		return stuck == 2 || len(over) > 0
	}, "the writers to be in their writes")
	if len(over) > 0 {
		t.Error("a writer did not wait for a connection that takes no more")
	}
	c.wmu.Unlock()
	for range 2 {
		if err := within(t, 5*time.Second, over, "the write"); err != nil {
			t.Error(err)
		}
	}
	gets(to[0], piece)
	gets(to[1], piece)
	gets(to[2], strings.Repeat(piece, n))
	gets(to[3], piece+"and one that is too long to be joined")

	// On a connection that takes bytes a write leaves nothing behind.
	write5 := make(chan error, 1)
	go func() {
		_, err := from[5].Write([]byte("five"))
		write5 <- err
	}()
	if err := within(t, 5*time.Second, write5, "the write"); err != nil {
		t.Error(err)
	}
	gets(to[5], "five")
	c.mu.Lock()
	if c.waiting() > 0 {
		t.Errorf("%d bytes wait", c.waiting())
	}
	c.mu.Unlock()

	// Nobody waits for what a connection that is gone does not take, but the next one hears of it.
	c.wmu.Lock()
	write(from[4], "lost")
	_ = c.bulk.Conn.Close()
	c.wmu.Unlock()
	waitFor(t, func() bool {
		_, err := from[4].Write([]byte("more"))
		return err != nil
	}, "a write on a connection that is gone to fail")
}

// TestNoJoin: where goroutines run beside each other every frame is written when its writer returns.
func TestNoJoin(t *testing.T) {
	setJoining(t, joinNever)
	p := newPair(t, TransportTCP, false, Config{})
	a, b := p.connect(t)
	defer a.Close()
	defer b.Close()
	c := a.raw.(*yamuxStream).m.conn
	want := bytes.Repeat([]byte("abc"), 100)
	for i := 0; i < len(want); i += 3 {
		if _, err := a.Write(want[i : i+3]); err != nil {
			t.Fatal(err)
		}
	}
	c.mu.Lock()
	if n := c.waiting(); n > 2*yamuxHeader { // but a grant
		t.Errorf("%d bytes wait", n)
	}
	c.mu.Unlock()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

// cameIn is how many bytes a connection has received, those of TLS with them.
func cameIn(t *testing.T, c *frameConn) (n uint64) {
	t.Helper()
	raw, err := c.bulk.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Bytes_received
		}
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return n
}
