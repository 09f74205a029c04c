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

// TestGatherPatience: who goes on saying much at no great pace is waited for longer, in a larger piece; all of it arrives, and then the socket wakes for
// a byte again.
func TestGatherPatience(t *testing.T) {
	here, there := tcpEnds(t)
	dst := &writer{}
	src := newSide(here)
	done := make(chan error, 1)
	go func() {
		_, rerr, werr := copyAll(src, newSide(dst))
		done <- errors.Join(rerr, werr)
	}()
	piece := bytes.Repeat([]byte("0123456789"), 2<<10)
	var want []byte
	most := 0 // bytes that were waited for; patientSize would not be without a large piece
	for end := time.Now().Add(20 * time.Second); most < patientSize && time.Now().Before(end); {
		want = append(want, piece...)
		there.Write(piece)
		for on(t, there, outgoing)+on(t, here, incoming) > 0 && time.Now().Before(end) { // the next one comes when this one was waited with
			most = max(most, on(t, here, lowMark))
			runtime.Gosched()
		}
	}
	if most != patientSize {
		t.Errorf("at most %d bytes were waited for, want %d", most, patientSize)
	}
	want = append(want, "little"...) // ends the burst
	io.WriteString(there, "little")
	for end := time.Now().Add(10 * time.Second); on(t, there, outgoing)+on(t, here, incoming) > 0 || on(t, here, lowMark) != 1; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("the socket still wakes for %d bytes", on(t, here, lowMark))
		}
	}
	there.CloseWrite()
	if err := <-done; err != nil || !bytes.Equal(dst.got.Bytes(), want) {
		t.Errorf("%d bytes of %d came: %v", dst.got.Len(), len(want), err)
	}
}

// What the kernel says of a socket, in bytes.
var (
	incoming = func(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.SIOCINQ) }  // there to be read
	outgoing = func(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.SIOCOUTQ) } // not yet at the other end
	lowMark  = func(fd int) (int, error) { return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT) }
)

// on asks one of these.
func on(t *testing.T, c *net.TCPConn, what func(fd int) (int, error)) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = what(int(fd)) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
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
		n := on(t, c, incoming)
		if n >= want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes are there, want %d", n, want)
		}
	}
}
