package bulk

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// pair is TLS over loopback, with a Conn beneath either end.
func pair(t *testing.T) (client, server *tls.Conn) {
	t.Helper()
	a, b := tcpPair(t)
	return shake(t, New(a), New(b))
}

func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func shake(t *testing.T, a, b net.Conn) (client, server *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	client = tls.Client(a, &tls.Config{InsecureSkipVerify: true})
	server = tls.Server(b, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, DynamicRecordSizingDisabled: true})
	t.Cleanup(func() { client.NetConn().Close(); server.NetConn().Close() })
	failed := make(chan error, 1)
	go func() { failed <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-failed); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// TestBytesArrive: whatever sizes are written and read, corked or not, the bytes are those that were written.
func TestBytesArrive(t *testing.T) {
	client, server := pair(t)
	sent := random(3 << 20)
	go func() {
		for at, i := 0, 0; at < len(sent); i++ {
			n := min([]int{1, 5, 1400, 16 << 10, 64 << 10, 100, 300 << 10}[i%7], len(sent)-at)
			if i%2 == 0 {
				Of(server).Cork()
			}
			_, err := server.Write(sent[at : at+n])
			if i%2 == 0 {
				err = errors.Join(err, Of(server).Uncork())
			}
			if err != nil {
				t.Errorf("write: %v", err)
				return
			}
			at += n
		}
		_ = server.CloseWrite()
	}()
	var got []byte
	buf := make([]byte, 200<<10)
	for i := 0; ; i++ {
		n, err := client.Read(buf[:[]int{1, 3, 1000, 16 << 10, len(buf)}[i%5]])
		got = append(got, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("read: %v", err)
		}
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes arrived that are not the %d that were sent", len(got), len(sent))
	}
	if c := Of(client); c.in != nil || c.Waiting() {
		t.Error("a buffer is held with nothing in it")
	}
}

// counting counts writes.
type counting struct {
	net.Conn
	n atomic.Int32
}

func (c *counting) Write(p []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(p)
}

// TestOneWrite: what is written between Cork and Uncork goes out at once. Cork within Cork counts as one.
func TestOneWrite(t *testing.T) {
	_, server := pair(t)
	c := Of(server)
	count := &counting{Conn: c.Conn}
	c.Conn = count
	c.Cork()
	c.Cork()
	if _, err := server.Write(random(64 << 10)); err != nil {
		t.Fatal(err)
	}
	if err := c.Uncork(); err != nil || count.n.Load() != 0 {
		t.Errorf("%d writes while still corked, %v", count.n.Load(), err)
	}
	if err := c.Uncork(); err != nil || count.n.Load() != 1 {
		t.Errorf("%d writes of 64 KiB, want one; %v", count.n.Load(), err)
	}
	if c.out != nil {
		t.Error("a buffer is held with nothing in it")
	}
}

// TestWaitingBehindShort: of TLS within TLS each full record is followed by a short one, and these do not part what came together.
func TestWaitingBehindShort(t *testing.T) {
	client, server := pair(t)
	c := Of(server)
	c.Cork()
	for range 3 {
		for _, n := range []int{16 << 10, 22} {
			if _, err := server.Write(random(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Uncork(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16<<10)
	for i := range 6 {
		n, err := client.Read(buf)
		if err != nil || n != []int{16 << 10, 22}[i%2] {
			t.Fatalf("record %d: %d bytes, %v", i+1, n, err)
		}
		if got, want := Of(client).Waiting(), i < 4; got != want {
			t.Errorf("after record %d: waiting %t, want %t", i+1, got, want)
		}
	}
}

// TestWaiting: four records that came together are seen to be there, and the last is seen to be so; a short one is not counted on.
func TestWaiting(t *testing.T) {
	client, server := pair(t)
	c := Of(server)
	c.Cork()
	if _, err := server.Write(random(48 << 10)); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Write([]byte("short")); err != nil {
		t.Fatal(err)
	}
	raw := make(chan struct{})
	go func() { defer close(raw); _ = c.Uncork() }()
	<-raw // all of it is in the socket: loopback's buffers have room for it
	buf := make([]byte, 16<<10)
	for i := range 3 {
		if _, err := io.ReadFull(client, buf); err != nil {
			t.Fatal(err)
		}
		if got, want := Of(client).Waiting(), i < 2; got != want {
			t.Errorf("after record %d: waiting %t, want %t", i+1, got, want)
		}
	}
	if n, err := client.Read(buf); err != nil || string(buf[:n]) != "short" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// wrapped is a connection on one whose bytes it does not change.
type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }

// TestDirectAfterHandshake: a Conn on a wrapper takes the socket after the handshake, also with bytes on their way that came with its end.
func TestDirectAfterHandshake(t *testing.T) {
	a, b := tcpPair(t)
	client, server := shake(t, New(a), New(wrapped{b}))
	sent := random(200 << 10)
	go func() { _, _ = client.Write(sent) }()
	c := Of(server)
	if c.source != nil {
		t.Fatal("direct from the start")
	}
	got := make([]byte, 1000)
	if _, err := io.ReadFull(server, got); err != nil {
		t.Fatal(err)
	}
	c.Direct()
	if c.source == nil {
		t.Fatal("not direct")
	}
	rest, err := io.ReadAll(io.LimitReader(server, int64(len(sent)-len(got))))
	if err != nil || !bytes.Equal(append(got, rest...), sent) {
		t.Errorf("%d bytes, %v: not what was sent", len(got)+len(rest), err)
	}
}

// TestNoSocket: where there is none, or other TLS above it, reads are the connection's own.
func TestNoSocket(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	c := New(a)
	c.Direct()
	go func() { _, _ = b.Write([]byte("hello")) }()
	got := make([]byte, 10)
	if n, err := c.Read(got); err != nil || string(got[:n]) != "hello" || c.Waiting() {
		t.Errorf("%q, %v, waiting %t", got[:n], err, c.Waiting())
	}
	client, _ := pair(t)
	over := New(client)
	over.Direct()
	if over.source != nil {
		t.Error("reads from beneath TLS")
	}
}

// TestErrors are told as the socket has them.
func TestErrors(t *testing.T) {
	client, server := pair(t)
	_ = client.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := Of(client).Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after its deadline: %v", err)
	}
	_ = client.SetReadDeadline(time.Time{})
	_ = Of(server).Conn.(*net.TCPConn).SetLinger(0)
	_ = Of(server).Conn.Close()
	var op *net.OpError
	if _, err := Of(client).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) {
		t.Errorf("after a reset: %v", err)
	}
	_ = client.NetConn().Close()
	if _, err := Of(client).Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestNothingFollowsAFailedWrite: records that TLS believes to be written and that were not leave a gap, which nothing may follow. Seen failing
// without Conn.failed.
func TestNothingFollowsAFailedWrite(t *testing.T) {
	_, server := pair(t)
	c := Of(server)
	c.Cork()
	if _, err := server.Write(random(48 << 10)); err != nil {
		t.Fatal(err)
	}
	_ = server.SetWriteDeadline(time.Now().Add(-time.Second))
	if err := c.Uncork(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	_ = c.Conn.SetWriteDeadline(time.Time{})
	if _, err := c.Write([]byte("more")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a write after one that failed: %v", err)
	}
}

// FuzzFollow: whatever comes, no more is given out at once than up to the end of a record, and nothing is lost.
func FuzzFollow(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0, 2, 'a', 'b', 23, 3, 3, 0, 0, 21, 3, 3, 255, 255}, uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		var c Conn
		for at := 0; at < len(b); {
			n := c.follow(b[at:min(len(b), at+int(step)+1)])
			if n <= 0 || c.have > recordHeader || c.left < 0 {
				t.Fatalf("%d of %d given out; have %d, left %d", n, len(b)-at, c.have, c.left)
			}
			at += n
		}
	})
}
