package splice

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tcpEnds is a connection on the loopback.
func tcpEnds(t *testing.T) (here, there *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// TestGather: what is there together is read together, what is little is not waited for long, and ends are as without it.
func TestGather(t *testing.T) {
	here, there := tcpEnds(t)
	g := newGatherer(here)
	buf := make([]byte, bufferSize)
	piece := bytes.Repeat([]byte("x"), 16<<10)

	if n, err := g.read(buf); n != 0 || err != nil {
		t.Errorf("with nothing there: %d, %v", n, err)
	}
	there.Write([]byte("little"))
	n, err := g.read(buf)
	for n == 0 && err == nil { // not there yet
		n, err = g.read(buf)
	}
	if string(buf[:n]) != "little" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	for range 3 {
		there.Write(piece)
	}
	waitQueued(t, here, 3*len(piece))
	if n, err := g.read(buf); n != 3*len(piece) || err != nil {
		t.Errorf("three pieces: read %d, %v", n, err)
	}

	g.end() // and the socket wakes for a byte again, without a limit of time
	go func() { there.Write([]byte("y")) }()
	if n, err := here.Read(buf); n != 1 || err != nil {
		t.Errorf("after it: %d, %v", n, err)
	}

	there.Write([]byte("last"))
	there.CloseWrite()
	waitQueued(t, here, 4)
	if n, err := g.read(buf); string(buf[:n]) != "last" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if n, err := g.read(buf); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}

	here, there = tcpEnds(t)
	g = newGatherer(here)
	there.SetLinger(0)
	there.Close()
	n, err = g.read(buf)
	for n == 0 && err == nil {
		n, err = g.read(buf)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reset: %d, %v", n, err)
	}
	here.Close()
	if _, err := g.read(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestUnmarkedSocketWakes: who waits for much, by a deadline that somebody has moved, is woken for little once that is what is asked for.
func TestUnmarkedSocketWakes(t *testing.T) {
	here, there := tcpEnds(t)
	g := newGatherer(here)
	g.mark(gatherSize)
	here.SetReadDeadline(time.Now().Add(time.Minute))
	got := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(here, make([]byte, 1))
		got <- err
	}()
	there.Write([]byte("x"))
	g.mark(1)
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody was woken")
	}
}

func waitQueued(t *testing.T, c *net.TCPConn, want int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		n := 0
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		if n >= want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes are there, want %d", n, want)
		}
	}
}
