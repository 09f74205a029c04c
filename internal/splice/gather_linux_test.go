package splice

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
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

// TestGatherPatience: who goes on saying much at no great pace is waited for longer, in a larger piece; all of it arrives, and then the socket wakes for a byte again.
func TestGatherPatience(t *testing.T) {
	const pieces, size = 3 * patientAfter, 20 << 10
	here, there := tcpEnds(t)
	dst := &writer{}
	src := newSide(here)
	done := make(chan error, 1)
	go func() {
		_, rerr, werr := copyAll(src, newSide(dst))
		done <- errors.Join(rerr, werr)
	}()
	want := bytes.Repeat([]byte("0123456789"), pieces*size/10)
	most := 0
	for at := 0; at < len(want); at += size {
		there.Write(want[at:][:size])
		waitTaken(t, there)
		for end := time.Now().Add(10 * time.Second); queued(here) > 0; { // the next one comes when this one was waited with
			if most = max(most, rcvLowat(t, here)); time.Now().After(end) {
				t.Fatal("nothing is read")
			}
			runtime.Gosched()
		}
	}
	there.Write([]byte("little")) // ends the burst
	waitTaken(t, there)
	for end := time.Now().Add(10 * time.Second); queued(here) > 0 || rcvLowat(t, here) != 1; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("the socket still wakes for %d bytes", rcvLowat(t, here))
		}
	}
	there.CloseWrite()
	if err := <-done; err != nil || !bytes.Equal(dst.got.Bytes(), append(want, "little"...)) {
		t.Errorf("%d bytes of %d came: %v", dst.got.Len(), len(want)+6, err)
	}
	if most != patientSize {
		t.Errorf("at most %d bytes were waited for, want %d", most, patientSize)
	}
}

// waitTaken waits until the other end has what was written.
func waitTaken(t *testing.T, c *net.TCPConn) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		n := 0
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		if n == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes are still on their way", n)
		}
	}
}

// rcvLowat is from how many bytes on c wakes.
func rcvLowat(t *testing.T, c *net.TCPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return n
}

// queued is how many bytes are there to be read.
func queued(c *net.TCPConn) (n int) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	}
	return n
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
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		n := queued(c)
		if n >= want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes are there, want %d", n, want)
		}
	}
}
