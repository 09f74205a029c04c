package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/strangers"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// TestPendingDialsAreBoundedByTenant: a tenant whose dials all wait gets an answer to the next at once, and another
// tenant is not concerned.
func TestPendingDialsAreBoundedByTenant(t *testing.T) {
	const most = 3
	dialling, release := make(chan string, 10), make(chan struct{})
	f := startWith(t, func(ctx context.Context, tenant, _ string) (net.Conn, error) {
		if tenant == "acme" {
			dialling <- tenant
			<-release
		}
		return nil, errors.New("nobody there")
	}, func(c *Config) { c.MaxPending, c.DialTimeout = most, time.Minute })
	var waiting sync.WaitGroup
	for range most {
		waiting.Go(func() { f.connect(t, "acme", "edge-1:10250") })
	}
	for range most {
		<-dialling
	}
	_, _, resp := f.connect(t, "acme", "edge-1:10250")
	if resp.StatusCode != wire.Overloaded.HTTPStatus() || !strings.Contains(resp.Status, "3 dials of this tenant wait") {
		t.Errorf("one dial more: %s; want it refused as overloaded", resp.Status)
	}
	if _, _, resp := f.connect(t, "globex", "edge-1:10250"); !strings.Contains(resp.Status, "nobody there") {
		t.Errorf("another tenant's dial: %s", resp.Status)
	}
	close(release)
	waiting.Wait()
	if _, _, resp := f.connect(t, "acme", "edge-1:10250"); !strings.Contains(resp.Status, "nobody there") {
		t.Errorf("a dial after the others were answered: %s", resp.Status)
	}
}

// TestStrangersAreBounded: connections that show no certificate take the strangers' places and no others.
func TestStrangersAreBounded(t *testing.T) {
	door := strangers.NewDoor(strangers.Config{Limits: strangers.Limits{Max: 2}})
	near, far := pair(t)
	f := startWith(t, func(context.Context, string, string) (net.Conn, error) { return near, nil }, func(c *Config) { c.Enter = door.Enter })
	conn, r, resp := f.connect(t, "acme", "edge-1:10250") // is no stranger any more
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	silent := make([]net.Conn, 3)
	for i := range silent {
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		silent[i] = c
	}
	if n, err := silent[2].Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the third stranger's read = %d, %v; want it closed", n, err)
	}
	io.WriteString(far, "still here")
	far.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "still here" {
		t.Errorf("the API server's connection read %q, %v", got, err)
	}
	conn.Close()
	silent[0].Close()
	for { // until the broker has seen that
		leave, err := door.Enter(nil)
		if err == nil {
			leave()
			break
		}
		time.Sleep(time.Millisecond)
	}
	f.connect(t, "acme", "edge-1:10250")
}

// A transfer that is cut must not look complete: the reset reaches the socket below TLS and the place at the door.
func TestCutAtTheNodeIsAResetForTheAPIServer(t *testing.T) {
	near, far := pair(t)
	f := start(t, func(context.Context, string, string) (net.Conn, error) { return near, nil })
	_, r, _ := f.connect(t, "acme", "edge-1:10250")
	io.WriteString(far, "half of it")
	if _, err := io.ReadFull(r, make([]byte, len("half of it"))); err != nil {
		t.Fatal(err)
	}
	far.(*net.TCPConn).SetLinger(0)
	far.Close()
	if n, err := r.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d, %v; want a reset", n, err)
	}
}

// TestHandshakesAreByTurns: those who come from one source wait for each other, and not those of another source for
// them. Seen failing with a thousand turns for each source.
func TestHandshakesAreByTurns(t *testing.T) {
	most := handshakesEach()
	var inside, seen atomic.Int64
	first, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f := startWith(t, func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody there") }, func(c *Config) {
		get := c.TLS.GetCertificate
		c.TLS.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if strings.HasPrefix(hello.Conn.RemoteAddr().String(), "127.0.0.2:") {
				if n := inside.Add(1); n > seen.Load() {
					seen.Store(n)
				}
				once.Do(func() { close(first) })
				<-release
				inside.Add(-1)
			}
			return get(hello)
		}
	})
	var waiting sync.WaitGroup
	for range most + 10 {
		waiting.Go(func() { f.connectFrom(t, "127.0.0.2", "acme", "edge-1:10250") })
	}
	<-first
	for range 50 { // while others would have come in
		if _, _, resp := f.connectFrom(t, "127.0.0.3", "globex", "edge-1:10250"); !strings.Contains(resp.Status, "nobody there") {
			t.Errorf("another source's dial: %s", resp.Status)
		}
	}
	close(release)
	waiting.Wait()
	if n := seen.Load(); n > int64(most) {
		t.Errorf("%d of one source's handshakes at a time, want %d at most", n, most)
	}
}
