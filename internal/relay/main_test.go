package relay

import (
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t testing.TB, c Config) *Relay {
	t.Helper()
	r, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// patience is a deadline that only a failure reaches.
func patience() time.Time { return time.Now().Add(10 * time.Second) }

// tcpServer hands over the connections that it accepts.
func tcpServer(t *testing.T) (addr string, conns <-chan *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan *net.TCPConn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			ch <- c.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String(), ch
}

// tcpThrough makes a connection through the relay and returns its two ends.
func tcpThrough(t *testing.T, r *Relay, conns <-chan *net.TCPConn) (client, server *net.TCPConn) {
	t.Helper()
	c, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	client, server = c.(*net.TCPConn), <-conns
	for _, c := range []*net.TCPConn{client, server} {
		_ = c.SetDeadline(patience())
		t.Cleanup(func() { _ = c.Close() })
	}
	return client, server
}

// passes sends a word over a connection that works.
func passes(t *testing.T, from, to net.Conn) {
	t.Helper()
	if _, err := from.Write([]byte("word")); err != nil {
		t.Fatalf("write: %v", err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(to, b); err != nil || string(b) != "word" {
		t.Fatalf("read %q, %v", b, err)
	}
}

// silent fails if anything arrives, be it the end.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	defer func() { _ = c.SetReadDeadline(patience()) }()
	n, err := c.Read(make([]byte, 1))
	if ne, ok := err.(net.Error); n != 0 || !ok || !ne.Timeout() {
		t.Errorf("read %d bytes, %v; want nothing to arrive", n, err)
	}
}
