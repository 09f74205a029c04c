package tunnel

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"golang.org/x/net/nettest"
)

// pair is one session of the conformance suite, seen from the side that opens streams.
type pair struct {
	opener, acceptor *Session
	handler          atomic.Pointer[Handler] // the accepting side's
}

func (p *pair) handle(h Handler) { p.handler.Store(&h) }

// newPair makes a session over tr in which the agent opens, or the broker does.
func newPair(t testing.TB, tr Transport, agentOpens bool, cfg Config) *pair {
	t.Helper()
	p := &pair{}
	p.handle(echo)
	openCfg, acceptCfg := cfg, cfg
	acceptCfg.Handler = func(ctx context.Context, s *Session, r *Request) { (*p.handler.Load())(ctx, s, r) }
	if agentOpens {
		p.opener, p.acceptor = dialPair(t, tr, openCfg, acceptCfg)
	} else {
		p.acceptor, p.opener = dialPair(t, tr, acceptCfg, openCfg)
	}
	return p
}

// conform runs a case over both transports and in both directions.
func conform(t *testing.T, cfg Config, f func(t *testing.T, p *pair)) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		t.Run("agent-opens", func(t *testing.T) { f(t, newPair(t, tr, true, cfg)) })
		t.Run("broker-opens", func(t *testing.T) { f(t, newPair(t, tr, false, cfg)) })
	})
}

// echo accepts and sends back all it reads.
func echo(_ context.Context, _ *Session, r *Request) {
	st, err := r.Accept()
	if err != nil {
		return
	}
	if _, err := io.Copy(struct{ io.Writer }{st}, struct{ io.Reader }{st}); err != nil {
		_ = st.Reset(wire.Internal)
		return
	}
	_ = st.Close()
}

// connect opens a stream and returns both its ends.
func (p *pair) connect(t testing.TB) (opened, accepted *Stream) {
	t.Helper()
	got := make(chan *Stream, 1)
	p.handle(func(_ context.Context, _ *Session, r *Request) {
		st, err := r.Accept()
		if err != nil {
			t.Errorf("Accept: %v", err)
		}
		got <- st
	})
	opened = p.open(t)
	return opened, within(t, 5*time.Second, got, "accepted stream")
}

func (p *pair) open(t testing.TB) *Stream {
	t.Helper()
	st, err := p.opener.Open(t.Context(), wire.KindDial, "node:10250")
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestEcho(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		st := p.open(t)
		data := make([]byte, 3<<20)
		rand.New(rand.NewSource(1)).Read(data)
		go func() {
			_, _ = st.Write(data)
			_ = st.CloseWrite()
		}()
		got, err := io.ReadAll(st)
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(got) != sha256.Sum256(data) {
			t.Errorf("%d bytes came back different from the %d sent", len(got), len(data))
		}
		_ = st.Close()
		stats := p.opener.Stats()
		if stats.BytesIn != 3<<20 || stats.BytesOut != 3<<20 || stats.Opened != 1 || stats.OpenStreams != 0 {
			t.Errorf("stats %+v", stats)
		}
	})
}

func TestHalfClose(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		a, b := p.connect(t)
		if _, err := a.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after CloseWrite: %v, want net.ErrClosed", err)
		}
		if got, err := io.ReadAll(b); err != nil || string(got) != "question" {
			t.Fatalf("read %q, %v", got, err)
		}
		if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("read after EOF: %d, %v; want EOF again", n, err)
		}
		if _, err := b.Write([]byte("answer")); err != nil {
			t.Fatalf("write after the other side's FIN: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
			t.Errorf("read %q, %v", got, err)
		}
		_ = a.Close()
	})
}

func TestCloseStopsOtherSidesWrites(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		a, b := p.connect(t)
		if _, err := a.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		_ = a.Close()
		if got, err := io.ReadAll(b); err != nil || string(got) != "last words" {
			t.Fatalf("read %q, %v; what was written before Close must arrive, with a clean end", got, err)
		}
		_ = b.SetWriteDeadline(time.Now().Add(5 * time.Second))
		var err error
		for err == nil {
			_, err = b.Write(make([]byte, 32<<10))
		}
		var reset *ResetError
		if !errors.As(err, &reset) || !reset.Remote {
			t.Errorf("write after the other side closed: %v, want a *ResetError of the other side", err)
		}
		for _, err := range []error{readErr(a), writeErr(a), a.CloseWrite()} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Close: %v, want net.ErrClosed", err)
			}
		}
		_ = b.Close()
	})
}

func readErr(c net.Conn) error  { _, err := c.Read(make([]byte, 1)); return err }
func writeErr(c net.Conn) error { _, err := c.Write([]byte{1}); return err }

func TestResetIsNotEOF(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		for i := range 50 { // the reset races with the data and the FIN
			a, b := p.connect(t)
			if _, err := a.Write(make([]byte, 1+i*1000)); err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				go func() { _, _ = io.Copy(struct{ io.Writer }{a}, neverEnding{}) }()
			}
			_ = a.Reset(wire.Unavailable)
			_, err := io.Copy(io.Discard, b)
			var reset *ResetError
			if !errors.As(err, &reset) || !reset.Remote || reset.Code != wire.Unavailable {
				t.Fatalf("round %d: read ended with %v, want a reset with %q", i, err, wire.Unavailable)
			}
			if err := writeErr(b); err == nil {
				_ = b.SetWriteDeadline(time.Now().Add(5 * time.Second))
				for err == nil {
					_, err = b.Write(make([]byte, 1000))
				}
				if !errors.As(err, &reset) {
					t.Fatalf("write after reset: %v", err)
				}
			}
			_ = b.Close()
			if err := readErr(a); !errors.Is(err, net.ErrClosed) {
				t.Fatalf("read after own reset: %v", err)
			}
		}
		waitFor(t, func() bool { return p.opener.Stats().OpenStreams+p.acceptor.Stats().OpenStreams == 0 }, "streams to be gone")
	})
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

// TestCloseBesideWrite: bytes that a Write was still holding are lost by Close,
// so the other side must not take what it got for all.
func TestCloseBesideWrite(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		a, b := p.connect(t)
		wrote := make(chan error, 1)
		go func() {
			_, err := a.Write(make([]byte, 64<<20)) // more than any window
			wrote <- err
		}()
		_, err := io.ReadFull(b, make([]byte, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Close()
		if err := within(t, 5*time.Second, wrote, "Write to be kicked out by Close"); err == nil {
			t.Error("Write of 64 MiB succeeded, nobody read it")
		}
		if _, err := io.Copy(io.Discard, b); err == nil {
			t.Error("the reader saw a clean end of a stream that was cut")
		}
		_ = b.Close()
	})
}

// TestCancelledOpens gives opens up at every moment, more of them than any backlog holds.
func TestDeadline(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		a, b := p.connect(t)
		_ = a.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if err := readErr(a); !errors.Is(err, os.ErrDeadlineExceeded) || !isTimeout(err) {
			t.Errorf("read: %v, want a timeout", err)
		}
		_ = a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		var err error
		for err == nil {
			_, err = a.Write(make([]byte, 100<<10)) // until the window is full
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || !isTimeout(err) {
			t.Errorf("write: %v, want a timeout", err)
		}
		_ = a.SetDeadline(time.Time{})
		if _, err := b.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := readErr(a); err != nil {
			t.Errorf("read after the deadline was lifted: %v", err)
		}
		_ = a.Close()
		_ = b.Close()
	})
}

// TestStreamCapOfTheOtherSide: the opener allows itself more than the acceptor does.
func TestSessionClose(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		a, b := p.connect(t)
		if err := p.opener.Close(wire.Superseded, "a newer one came"); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, p.acceptor.Done(), "the other side to notice")
		wantClosed(t, p.opener.Err(), wire.Superseded, false)
		wantClosed(t, p.acceptor.Err(), wire.Superseded, true)
		if err := p.acceptor.Err(); !strings.Contains(err.Error(), "a newer one came") {
			t.Errorf("error %q does not say why", err)
		}
		wantClosed(t, readErr(a), wire.Superseded, false)
		wantClosed(t, writeErr(a), wire.Superseded, false)
		wantClosed(t, readErr(b), wire.Superseded, true)
		_, err := p.acceptor.Open(t.Context(), wire.KindDial, "node:1")
		wantClosed(t, err, wire.Superseded, true)
		_ = p.opener.Close(wire.Internal, "twice")
		wantClosed(t, p.opener.Err(), wire.Superseded, false)
	})
}

func TestDrain(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		a, b := p.connect(t)
		if err := p.acceptor.Drain(time.Minute); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, p.opener.Draining(), "drain")
		if d, asked := p.opener.leaving.asks(); d != time.Minute || !asked {
			t.Errorf("delay %s, want a minute", d)
		}
		c, d := p.connect(t) // up to the end of the delay streams are opened
		if err := p.opener.Drain(0); err != nil {
			t.Fatal(err)
		}
		if err := p.acceptor.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*Session{p.opener, p.acceptor} {
			_, err := s.Open(t.Context(), wire.KindDial, "node:1")
			wantRefused(t, err, wire.Draining)
		}
		if _, err := a.Write([]byte("x")); err != nil {
			t.Errorf("write on an open stream: %v", err)
		}
		if err := readErr(b); err != nil {
			t.Errorf("read on an open stream: %v", err)
		}
		for _, st := range []*Stream{a, c, b, d} {
			for _, s := range []*Session{p.opener, p.acceptor} {
				select {
				case <-s.Quiet():
					t.Error("quiet while a stream is open")
				default:
				}
			}
			_ = st.Close()
		}
		within(t, 5*time.Second, p.opener.Quiet(), "the opener to be quiet")
		within(t, 5*time.Second, p.acceptor.Quiet(), "the acceptor to be quiet")
	})
}

func TestHelloAndState(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		agentHello := wire.Hello{Version: "v1", Node: "edge-1", Generation: 7, KubeletPort: 10250}
		agent, brk := dialPair(t, tr,
			Config{Hello: func() wire.Hello { return agentHello }},
			Config{Hello: func() wire.Hello { return wire.Hello{Version: "v2"} }})
		if got := brk.PeerHello(); fmt.Sprint(got) != fmt.Sprint(agentHello) {
			t.Errorf("broker heard %+v", got)
		}
		if got := agent.PeerHello().Version; got != "v2" {
			t.Errorf("agent heard %q", got)
		}
		for _, s := range []*Session{agent, brk} {
			if s.Transport() != tr {
				t.Errorf("transport %q, want %q", s.Transport(), tr)
			}
			waitFor(t, func() bool { return s.Stats().RTT > 0 }, "a round trip to be measured")
		}
		cs := brk.ConnectionState()
		if len(cs.VerifiedChains) == 0 || cs.PeerCertificates[0].Subject.CommonName != "agent" || cs.NegotiatedProtocol != wire.ALPN {
			t.Errorf("broker's state: %d chains, %q", len(cs.VerifiedChains), cs.NegotiatedProtocol)
		}
		if cs := agent.ConnectionState(); len(cs.VerifiedChains) == 0 || cs.PeerCertificates[0].Subject.CommonName != "broker" || cs.DidResume {
			t.Error("agent's state has no verified broker")
		}
	})
}

func TestNettest(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
			a, b := p.connect(t)
			return a, b, func() { _ = a.Close(); _ = b.Close() }, nil
		})
		waitFor(t, func() bool { return p.opener.Stats().OpenStreams+p.acceptor.Stats().OpenStreams == 0 }, "streams to be gone")
	})
}

// waitFor polls for what has no event to wait for.
func waitFor(t testing.TB, cond func() bool, what string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
