package front

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/strangers"
)

// withExtension puts one more extension into a ClientHello that is one record.
func withExtension(hello []byte, id uint16, data []byte) []byte {
	at := 5 + 4 + 2 + 32                           // record, handshake, version, random
	at += 1 + int(hello[at])                       // session id
	at += 2 + int(hello[at])<<8 + int(hello[at+1]) // cipher suites
	at += 1 + int(hello[at])                       // compression methods
	out := slices.Clone(hello[:at+2])
	out = binary.BigEndian.AppendUint16(out, id)
	out = binary.BigEndian.AppendUint16(out, uint16(len(data)))
	out = append(append(out, data...), hello[at+2:]...)
	grow := func(at, by int) { binary.BigEndian.PutUint16(out[at:], binary.BigEndian.Uint16(out[at:])+uint16(by)) }
	grow(3, 4+len(data)) // record
	grow(7, 4+len(data)) // handshake; its length's first byte is 0
	grow(at, 4+len(data))
	return out
}

// greaseECH is what a browser without an ECH configuration sends in its place (RFC 9849, 6.2): an outer hello with
// random bytes where the inner one would be.
func greaseECH() []byte {
	b := []byte{0, 0, 1, 0, 1, 7, 0, 32}
	b = append(b, make([]byte, 32)...)
	b = append(b, 0, 144)
	return append(b, make([]byte, 144)...)
}

// TestFault33ClientHello: hellos of all shapes find their route, or a close without a byte; by whole and by single bytes.
//
// Fails, with maxHello = 4096, for the hellos that are larger; with peekHello reading once instead of to the end of
// the hello, for those that are split; with the lower-casing of the name taken out, for the mixed-case one.
func TestFault33ClientHello(t *testing.T) {
	const grease = 0xfe0d
	large := slices.Repeat([]string{strings.Repeat("x", 200)}, 30)
	plain := clientHelloBytes(t, config("a/1"))
	nameless := clientHelloBytes(t, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"a/1"}})
	mixed := clientHelloBytes(t, &tls.Config{ServerName: "Edge.EXAMPLE", NextProtos: []string{"a/1"}})
	oversize := withExtension(plain, 0x3a3a, make([]byte, 12<<10))
	for name, tc := range map[string]struct {
		hello []byte
		want  string
	}{
		"plain":             {plain, "A saw edge.example"},
		"mixed-case SNI":    {mixed, "A saw edge.example"},
		"no SNI":            {nameless, "A saw "},
		"> 4 KiB":           {clientHelloBytes(t, config(append(large, "a/1")...)), "A saw edge.example"},
		"12 KiB of padding": {oversize, "A saw edge.example"},
		"GREASE extension":  {withExtension(plain, 0x3a3a, nil), "A saw edge.example"},
		"ECH grease":        {withExtension(plain, grease, greaseECH()), "A saw edge.example"},
		"ECH that is none":  {withExtension(plain, grease, []byte{9, 9, 9}), ""},
		"no ALPN":           {clientHelloBytes(t, config()), ""},
		"foreign ALPN":      {clientHelloBytes(t, config("h2", "http/1.1")), ""},
		"two server names":  {withExtension(plain, 0, []byte{0, 4, 0, 0, 1, 'x'}), ""},
		"SSL 2":             {append([]byte{0x80, 0x2e, 1, 0, 2}, make([]byte, 43)...), ""},
		"plain HTTP":        {[]byte("GET / HTTP/1.1\r\n\r\n"), ""},
		"> 16 KiB":          {tooLarge(), ""},
	} {
		for _, step := range []int{1, 1 << 20} {
			t.Run(fmt.Sprintf("%s by %d", name, step), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newFakeListener()
					stop := serveOn(t, l, Config{Routes: []Route{{"a/1", func(_ context.Context, c net.Conn) {
						defer c.Close()
						if hello, _, err := peekHello(c); err == nil {
							io.WriteString(c, "A saw "+hello.serverName)
						}
					}}}})
					defer stop()
					c := l.dial("192.0.2.1:1")
					defer c.Close()
					go func() {
						for b := range slices.Chunk(tc.hello, step) {
							if _, err := c.Write(b); err != nil {
								return
							}
						}
					}()
					if got, err := io.ReadAll(c); err != nil || string(got) != tc.want {
						t.Errorf("got %q, %v; want %q and the end", got, err, tc.want)
					}
				})
			})
		}
	}
}

// tooLarge is a ClientHello without an end.
func tooLarge() []byte {
	b := []byte{22, 3, 1, 0x40, 0, 1, 0, 0x80, 0}
	b = append(b, make([]byte, 0x4000-4)...)
	return append(b, append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...)...)
}

// TestFault34Slowloris: 10,000 connections of one attacker's two addresses that each send a byte a second. He gets his
// share of places and no more, and each for no longer than the deadline; who comes from elsewhere is served at
// once all the while.
//
// Fails with MaxPerSource and RatePerSource 0: nobody else is let in. With no read deadline in look: places never come back. With
// the deadline set anew for each read: the same.
func TestFault34Slowloris(t *testing.T) {
	const each, perSource = 5000, 512
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		door := strangers.NewDoor(strangers.Config{Port: "front", Registerer: reg, Limits: strangers.Limits{
			Max: 4096, MaxPerSource: perSource, Rate: 1000, RatePerSource: 500, // the defaults
		}})
		l := newFakeListener()
		stop := serveOn(t, l, Config{Enter: door.Enter, Registerer: reg, Routes: []Route{{"a/1", func(_ context.Context, c net.Conn) {
			c.(interface{ Admitted() }).Admitted()
			io.WriteString(c, "served")
			c.Close()
		}}}})
		hello := clientHelloBytes(t, config("a/1"))
		var attack sync.WaitGroup
		cut := make(chan time.Duration, 2*each)
		for i := range each {
			for _, from := range []string{"192.0.2.66:%d", fmt.Sprintf("[2001:db8::%x]:%%d", i)} { // of one /64
				c := l.dial(fmt.Sprintf(from, 1024+i))
				attack.Go(func() { cut <- trickle(c, hello) })
			}
		}
		good := func() {
			t.Helper()
			began := time.Now()
			c := l.dial("198.51.100.7:1")
			defer c.Close()
			go c.Write(hello)
			if got, err := io.ReadAll(c); string(got) != "served" || time.Since(began) > 0 {
				t.Fatalf("another site got %q, %v after %s; want to be served at once", got, err, time.Since(began))
			}
		}
		synctest.Wait()
		for range 9 {
			good()
			if n := gauge(t, reg, "mooring_unauthenticated_connections"); n != 2*perSource {
				t.Fatalf("%v strangers are inside, want %d", n, 2*perSource)
			}
			time.Sleep(time.Second)
		}
		attack.Wait()
		close(cut)
		var atOnce, late int
		for after := range cut {
			switch {
			case after == 0:
				atOnce++
			case after <= 10*time.Second:
				late++
			default:
				t.Errorf("a trickling connection lasted %s", after)
			}
		}
		if atOnce != 2*(each-perSource) || late != 2*perSource {
			t.Errorf("%d connections were closed at once and %d at the deadline; want %d and %d", atOnce, late, 2*(each-perSource), 2*perSource)
		}
		good()
		if n := gauge(t, reg, "mooring_unauthenticated_connections"); n != 0 {
			t.Errorf("%v places are still taken after the attack", n)
		}
		stop()
	})
}

// trickle sends a byte a second, and returns after how long it was cut off.
func trickle(c net.Conn, b []byte) time.Duration {
	began := time.Now()
	defer c.Close()
	for i := range b {
		if _, err := c.Write(b[i : i+1]); err != nil {
			break
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
			break
		}
	}
	return time.Since(began)
}

func gauge(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// fakeListener gives out pipes that say what address they come from.
type fakeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newFakeListener() *fakeListener {
	return &fakeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

// dial connects from an address.
func (l *fakeListener) dial(from string) net.Conn {
	near, far := net.Pipe()
	addr, err := net.ResolveTCPAddr("tcp", from)
	if err != nil {
		panic(err)
	}
	l.conns <- fakeConn{far, addr}
	return near
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *fakeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

type fakeConn struct {
	net.Conn
	from net.Addr
}

func (c fakeConn) RemoteAddr() net.Addr { return c.from }

// serveOn runs a Server until stop.
func serveOn(t *testing.T, l net.Listener, cfg Config) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(cfg).Serve(ctx, l) }()
	return func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	}
}
