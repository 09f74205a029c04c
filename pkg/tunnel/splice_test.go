package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestWaitRead(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		a, b := p.connect(t)
		waited := make(chan error)
		wait := func() { go func() { waited <- b.WaitRead() }() }
		wait()
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := within(t, 5*time.Second, waited, "data"); err != nil {
			t.Error(err)
		}
		if err := readErr(b); err != nil {
			t.Error(err)
		}
		_ = b.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if err := b.WaitRead(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("at the deadline: %v", err)
		}
		_ = b.SetReadDeadline(time.Time{})
		wait()
		_ = a.CloseWrite()
		if err := within(t, 5*time.Second, waited, "the end"); err != nil {
			t.Error(err)
		}
		if err := readErr(b); err != io.EOF {
			t.Errorf("read: %v, want EOF", err)
		}
		_ = a.Close()
		_ = b.Close()
	})
}

// tcpConns returns the two ends of a TCP connection.
func tcpConns(t *testing.T) (outer, inner *net.TCPConn) {
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

// TestSplicedEndToEnd runs what the product does: TCP, spliced to a stream, spliced to TCP.
func TestSplicedEndToEnd(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		connect := func() (client, server *net.TCPConn) {
			client, near := tcpConns(t)
			server, far := tcpConns(t)
			p.handle(func(_ context.Context, _ *Session, r *Request) {
				st, err := r.Accept()
				if err != nil { // the opener, or the session, has gone meanwhile
					_ = far.SetLinger(0)
					_ = far.Close()
					return
				}
				_, _, _ = splice.Splice(st, far)
			})
			st := p.open(t)
			go func() { _, _, _ = splice.Splice(near, st) }()
			return client, server
		}

		client, server := connect()
		data := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
		go func() {
			_, _ = client.Write(data)
			_ = client.CloseWrite()
		}()
		if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the server got %d bytes, %v", len(got), err)
		}
		go func() {
			_, _ = server.Write(data)
			_ = server.Close()
		}()
		if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, data) {
			t.Errorf("after its half-close, the client got %d bytes, %v", len(got), err)
		}

		for _, cut := range []string{"client", "server", "idle"} {
			client, server := connect()
			from, to := client, server
			if cut == "server" {
				from, to = server, client
			}
			if cut != "idle" {
				_, _ = from.Write(data[:100_000])
			}
			_ = from.SetLinger(0)
			_ = from.Close()
			if _, err := io.Copy(io.Discard, to); err == nil {
				t.Errorf("%s: a reset was a clean end at the other side of the tunnel", cut)
			}
		}

		_, last := connect()
		_ = p.opener.Close(wire.Shutdown, "")
		if _, err := io.Copy(io.Discard, last); err == nil {
			t.Error("the end of the session was a clean end of its connections")
		}
	})
}
