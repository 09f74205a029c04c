package splice

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/internal/bulk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcpPair returns the two ends of a TCP connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); _ = d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

type result struct {
	aToB, bToA int64
	err        error
}

// spliced returns the outer ends of two connections that are joined.
func spliced(t testing.TB) (left, right *net.TCPConn, done <-chan result) {
	t.Helper()
	left, a := tcpPair(t)
	b, right := tcpPair(t)
	return left, right, run(a, b)
}

func run(a, b net.Conn) <-chan result {
	done := make(chan result, 1)
	go func() {
		var r result
		r.aToB, r.bToA, r.err = Splice(a, b)
		done <- r
	}()
	return done
}

func wait(t testing.TB, done <-chan result) result {
	t.Helper()
	select {
	case r := <-done:
		return r
	case <-time.After(15 * time.Second):
		t.Fatal("Splice did not return")
		return result{}
	}
}

func TestBothWays(t *testing.T) {
	left, right, done := spliced(t)
	data := make([]byte, 5<<20)
	rand.New(rand.NewSource(1)).Read(data)
	var wg sync.WaitGroup
	for _, c := range []*net.TCPConn{left, right} {
		wg.Go(func() {
			_, _ = c.Write(data)
			_ = c.CloseWrite()
		})
		wg.Go(func() {
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if r := wait(t, done); r.err != nil || r.aToB != 5<<20 || r.bToA != 5<<20 {
		t.Errorf("got %+v", r)
	}
}

func TestHalfClose(t *testing.T) {
	left, right, done := spliced(t)
	_, _ = left.Write([]byte("question"))
	_ = left.CloseWrite()
	if got, err := io.ReadAll(right); err != nil || string(got) != "question" {
		t.Fatalf("got %q, %v", got, err)
	}
	_, _ = right.Write([]byte("answer"))
	_ = right.Close()
	if got, err := io.ReadAll(left); err != nil || string(got) != "answer" {
		t.Errorf("got %q, %v: the other direction ended with the first", got, err)
	}
	if r := wait(t, done); r.err != nil || r.aToB != 8 || r.bToA != 6 {
		t.Errorf("got %+v", r)
	}
}

// TestResetIsNotEOF resets one side in each state that a connection can be in.
func TestResetIsNotEOF(t *testing.T) {
	heard := make(chan error)
	for name, traffic := range map[string]func(left, right *net.TCPConn) error{
		"idle":        func(_, _ *net.TCPConn) error { return nil },
		"after data":  func(left, _ *net.TCPConn) error { _, err := left.Write(make([]byte, 1000)); return err },
		"half closed": func(_, right *net.TCPConn) error { return right.CloseWrite() },
		"beside writes": func(left, right *net.TCPConn) error {
			go func() { // as the kernel tells of a reset once, only the writer may hear of it
				_, err := io.Copy(struct{ io.Writer }{right}, zeros{})
				if !errors.Is(err, syscall.ECONNRESET) {
					err = nil
				}
				heard <- err
			}()
			_, err := io.ReadFull(left, make([]byte, 100<<10))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				left, right, done := spliced(t)
				if err := traffic(left, right); err != nil {
					t.Fatal(err)
				}
				_ = left.SetLinger(0)
				_ = left.Close()
				_, err := io.Copy(io.Discard, right)
				if name == "beside writes" {
					err = errors.Join(err, <-heard)
				}
				if err == nil {
					t.Fatal("a reset on one side was a clean end on the other")
				}
				_ = right.Close()
				if r := wait(t, done); r.err == nil {
					t.Fatal("Splice told of no error")
				}
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// fake is a connection that lacks or has what the test says.
type fake struct {
	net.Conn
	aborted chan struct{}
	once    sync.Once
	readErr error
}

func (f *fake) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if err == io.EOF && f.readErr != nil {
		err = f.readErr
	}
	return n, err
}

func (f *fake) Abort() error {
	f.once.Do(func() { close(f.aborted) })
	return f.Conn.Close()
}

func TestAbortIsPassedOn(t *testing.T) {
	far, near := net.Pipe()
	f := &fake{Conn: near, aborted: make(chan struct{}), readErr: errors.New("session lost")}
	right, b := tcpPair(t)
	done := run(f, b)
	_ = far.Close()
	if _, err := right.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read: %v, want a reset", err)
	}
	if r := wait(t, done); !errors.Is(r.err, f.readErr) {
		t.Errorf("got %v, want the read's error", r.err)
	}
	<-f.aborted
}

// TestWithoutHalfClose: an end in one direction must end the other where it can not be passed on.
func TestWithoutHalfClose(t *testing.T) {
	far, near := net.Pipe()
	left, a := tcpPair(t)
	done := run(a, near)
	_ = left.CloseWrite()
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v, want EOF", err)
	}
	wait(t, done)
}

// deaf takes no writes, as a stream does whose other side closed it, but is read to its end.
type deaf struct {
	net.Conn
}

func (d deaf) Write([]byte) (int, error) { return 0, errors.New("nobody reads") }
func (d deaf) CloseWrite() error         { return nil }
func (d deaf) Abort() error              { return d.Close() }

// TestAnswerAfterRefusedWrite: a server that answers early and takes no more of the request.
func TestAnswerAfterRefusedWrite(t *testing.T) {
	server, b := tcpPair(t)
	left, a := tcpPair(t)
	done := run(a, deaf{b})
	_, _ = left.Write([]byte("a long request"))
	_, _ = server.Write([]byte("enough"))
	_ = server.CloseWrite()
	got := make([]byte, 6)
	if _, err := io.ReadFull(left, got); err != nil || string(got) != "enough" {
		t.Errorf("got %q, %v", got, err)
	}
	if r := wait(t, done); r.err == nil || r.bToA != 6 {
		t.Errorf("got %+v", r)
	}
}

// TestUnixSocketIsWaitedFor without a buffer, as a TCP connection is: for bytes, and for the end.
func TestUnixSocketIsWaitedFor(t *testing.T) {
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	socket := newSource(near, &bulk.Pieces{})
	if socket == nil {
		t.Skip("there is no waiting without a buffer on this system")
	}
	want := func(what, bytes string, err error) {
		t.Helper()
		buf, n, got := socket.Read()
		if !errors.Is(got, err) || (buf != nil) != (err == nil) {
			t.Errorf("%s: %v", what, got)
		}
		if buf != nil {
			if string(buf.Payload()[:n]) != bytes {
				t.Errorf("%s: %q", what, buf.Payload()[:n])
			}
			buf.Free()
		}
	}
	_ = near.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	want("with nothing to read", "", os.ErrDeadlineExceeded)
	_ = near.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, _ = far.Write([]byte("x"))
	want("with a byte", "x", nil)
	far.Close()
	want("at the end", "", io.EOF)
	near.Close()
	want("closed", "", net.ErrClosed)
}

// emptyPool has a sync.Pool let go all that it has: it keeps it for one collection more.
func emptyPool() {
	runtime.GC()
	runtime.GC()
}

// TestIdleHoldsNoBuffer counts the buffers that are neither in the pool nor garbage: after little, and after much, which took large ones.
func TestIdleHoldsNoBuffer(t *testing.T) {
	var all []*net.TCPConn
	var ends []<-chan result
	for i := range 20 {
		left, right, done := spliced(t)
		sent := 1
		if i%2 == 1 {
			sent = 1 << 20
		}
		go func() { _, _ = left.Write(make([]byte, sent)) }()
		if _, err := io.ReadFull(right, make([]byte, sent)); err != nil {
			t.Fatal(err)
		}
		all = append(all, left, right)
		ends = append(ends, done)
	}
	if newSource(all[0], &bulk.Pieces{}) != nil {
		for end := time.Now().Add(10 * time.Second); bulk.There() > 0; emptyPool() {
			if time.Now().After(end) {
				t.Errorf("%d buffers are held for 20 idle connections", bulk.There())
				break
			}
		}
	}
	for _, c := range all {
		_ = c.Close()
	}
	for _, done := range ends {
		wait(t, done)
	}
}

func TestDeadlineOfTheCallerIsAnError(t *testing.T) {
	left, a := tcpPair(t)
	b, right := tcpPair(t)
	_ = a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	r := wait(t, run(a, b))
	if !errors.Is(r.err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", r.err)
	}
	for _, c := range []net.Conn{left, right} {
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read: %v, want a reset", err)
		}
	}
}

func BenchmarkSplice(b *testing.B) {
	left, right, done := spliced(b)
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	go func() {
		for range b.N {
			_, _ = left.Write(buf)
		}
		_ = left.Close()
	}()
	_, _ = io.Copy(io.Discard, right)
	_ = right.Close()
	wait(b, done)
}
