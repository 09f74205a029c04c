package splice

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// delivering is a connection whose reader gives away what comes, when the test says so.
type delivering struct {
	net.Conn
	f chan func(p []byte) int // each that Deliver was given

	mu sync.Mutex // held while it is called
}

func (d *delivering) Deliver(f func(p []byte) int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f == nil {
		d.f <- nil
		return
	}
	d.f <- func(p []byte) int {
		d.mu.Lock()
		defer d.mu.Unlock()
		return f(p)
	}
}

func (d *delivering) CloseWrite() error { return d.Conn.(*net.TCPConn).CloseWrite() }
func (d *delivering) NetConn() net.Conn { return d.Conn }

// taker is a connection that takes messages at once.
type taker struct {
	net.Conn
	takes bool
	got   []string
}

func (c *taker) TryWrite(p []byte) bool {
	if c.takes {
		c.got = append(c.got, string(p))
	}
	return c.takes
}

// unixPair returns the two ends of a Unix socket's connection.
func unixPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "s") // shorter than the test's own
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("unix", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

// TestDeliver: what is delivered goes to the other side's socket as far as that takes it, is counted, and is no more than a message; nothing is
// once the direction has ended.
func TestDeliver(t *testing.T) {
	for name, pair := range map[string]func(*testing.T) (net.Conn, net.Conn){
		"tcp":  func(t *testing.T) (net.Conn, net.Conn) { return tcpPair(t) },
		"unix": unixPair,
	} {
		t.Run(name, func(t *testing.T) {
			outer, inner := tcpPair(t)
			src := &delivering{Conn: inner, f: make(chan func([]byte) int, 2)}
			dst, reader := pair(t)
			done := run(src, dst)
			f := <-src.f
			if n := f([]byte("message")); n != 7 {
				t.Fatalf("%d bytes of a message were taken", n)
			}
			got := make([]byte, 7)
			if _, err := io.ReadFull(reader, got); err != nil || string(got) != "message" {
				t.Fatalf("%q came: %v", got, err)
			}
			if n := f(make([]byte, messageSize+1)); n != 0 {
				t.Errorf("%d bytes were taken of more than a message", n)
			}
			sent := int64(7)
			for end := time.Now().Add(20 * time.Second); ; {
				n := f(make([]byte, messageSize))
				sent += int64(n)
				if n < messageSize {
					break
				}
				if time.Now().After(end) {
					t.Fatal("a socket that nobody reads takes all")
				}
			}
			counted := make(chan int64, 1)
			go func() {
				n, _ := io.Copy(io.Discard, reader)
				counted <- n + 7
			}()
			_ = outer.Close()
			if last := <-src.f; last != nil {
				t.Error("delivery was not stopped at the end")
			}
			_ = reader.(interface{ CloseWrite() error }).CloseWrite()
			if r := wait(t, done); r.aToB != sent || r.err != nil {
				t.Errorf("%d bytes were sent, and the splice says %d, %v", sent, r.aToB, r.err)
			}
			if n := <-counted; n != sent {
				t.Errorf("%d bytes came of %d", n, sent)
			}
		})
	}
}

// TestDeliverNeverWaits: a write that is under way, and a tail, take no deliveries.
func TestDeliverNeverWaits(t *testing.T) {
	_, inner := tcpPair(t)
	d := &delivering{Conn: inner, f: make(chan func([]byte) int, 2)}
	src, dst := newSide(d), newSide(&taker{takes: true})
	stop := deliver(src, dst)
	f := <-d.f
	if n := f([]byte("x")); n != 1 {
		t.Errorf("%d bytes were taken", n)
	}
	dst.wmu.Lock()
	if n := f([]byte("x")); n != 0 {
		t.Error("a message overtook a write")
	}
	dst.wmu.Unlock()
	dst.Conn.(*taker).takes = false
	if n := f([]byte("x")); n != 0 {
		t.Errorf("%d bytes were taken of what the other side does not take", n)
	}
	dst.Conn.(*taker).takes = true
	src.tail.Store(true)
	if n := f([]byte("x")); n != 0 {
		t.Error("a tail was delivered, whose pauses nobody counts then")
	}
	if n := stop(); n != 1 {
		t.Errorf("%d bytes are counted", n)
	}
}

// TestResetOfADelivery: that a connection was reset is told to one write, and is remembered if that is a delivery's.
func TestResetOfADelivery(t *testing.T) {
	_, inner := tcpPair(t)
	d := &delivering{Conn: inner, f: make(chan func([]byte) int, 2)}
	here, there := tcpPair(t)
	dst := newSide(here)
	deliver(newSide(d), dst)
	f := <-d.f
	_ = there.SetLinger(0)
	_ = there.Close()
	for end := time.Now().Add(10 * time.Second); f([]byte("x")) > 0 && time.Now().Before(end); {
	}
	if !dst.wasReset() {
		t.Error("the reset was forgotten")
	}
	if _, err := dst.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the next write says %v", err)
	}
}
