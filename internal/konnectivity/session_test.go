package konnectivity

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestBytesBothWays(t *testing.T) {
	s, p := serve(t)
	c := open(t, s, p, 7)
	defer c.Close()
	if n, err := c.Write(bytes.Repeat([]byte("x"), maxData+1)); n != maxData+1 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	for _, want := range []int{maxData, 1} {
		if d := p.hear(t).GetData(); d.GetConnectID() != 7 || len(d.GetData()) != want {
			t.Errorf("the agent got %d bytes for %d, want %d for 7", len(d.GetData()), d.GetConnectID(), want)
		}
	}
	p.say(t, data(7, []byte("hello ")))
	p.say(t, data(8, []byte("nobody's")))
	p.say(t, data(7, []byte("world")))
	p.say(t, closeResponse(7))
	// What came before the end is read before it.
	if got, err := io.ReadAll(c); string(got) != "hello world" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after the end: %v", err)
	}
	if st := s.Stats(); st.OpenStreams != 0 || st.Opened != 1 || st.BytesIn != 11 || st.BytesOut != maxData+1 {
		t.Errorf("stats %+v", st)
	}
}

func TestCloseAsksTheAgent(t *testing.T) {
	s, p := serve(t)
	c := open(t, s, p, 7)
	if _, err := c.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	c.Close()
	if d := p.hear(t); string(d.GetData().GetData()) != "last" {
		t.Errorf("the agent got %v before the end, want what was written", d)
	}
	if r := p.hear(t); r.Type != client.PacketType_CLOSE_REQ || r.GetCloseRequest().ConnectID != 7 {
		t.Errorf("the agent got %v, want CLOSE_REQ of 7", r)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	s, p := serve(t)
	c := open(t, s, p, 7)
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	_ = c.SetDeadline(time.Now().Add(-time.Second))
	if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	_ = c.SetDeadline(time.Time{})
	p.say(t, data(7, []byte("x")))
	if n, err := c.Read(make([]byte, 9)); n != 1 || err != nil {
		t.Errorf("read without a deadline: %d, %v", n, err)
	}
}

// TestWhatIsDialled: names are of no use to an agent, and of the node itself it is asked for the kubelet alone.
// Seen failing (the agent was asked for port 22) without the look at KubeletPort.
func TestWhatIsDialled(t *testing.T) {
	s, p := serve(t)
	for addr, want := range map[string]string{
		"edge-1:10250":           "192.0.2.7:10250",
		"EDGE-1:10250":           "192.0.2.7:10250",
		"192.0.2.7:10250":        "192.0.2.7:10250",
		"[::ffff:10.96.0.1]:443": "10.96.0.1:443",
		"[fd00::9]:80":           "[fd00::9]:80",
	} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := s.Open(ctx, addr)
			done <- err
		}()
		r := p.hear(t).GetDialRequest()
		if r.GetAddress() != want || r.GetProtocol() != "tcp" {
			t.Errorf("%s: the agent is to dial %v, want %s", addr, r, want)
		}
		p.say(t, dialed(r.GetRandom(), 0, "dial tcp: connect: connection refused"))
		wantCode(t, <-done, wire.DialRefused)
		cancel()
	}
	for addr, want := range map[string]wire.Code{
		"edge-1:22": wire.Denied, "192.0.2.7:22": wire.Denied, "127.0.0.1:10250": wire.Denied, "[::1]:10250": wire.Denied,
		"169.254.169.254:80": wire.Denied, "0.0.0.0:80": wire.Denied, "224.0.0.1:80": wire.Denied,
		"edge-2:10250": wire.BadRequest, "localhost:80": wire.BadRequest, "edge-1": wire.BadRequest, "edge-1:0": wire.BadRequest,
		"edge-1:http": wire.BadRequest, "edge-1:65536": wire.BadRequest, "[fe80::1%eth0]:80": wire.BadRequest,
	} {
		_, err := s.Open(t.Context(), addr)
		wantCode(t, err, want)
	}
	select {
	case pkt := <-p.toAgent:
		t.Errorf("the agent was asked %v", pkt)
	default:
	}
}

func TestDialErrors(t *testing.T) {
	for text, want := range map[string]wire.Code{
		"dial tcp 10.0.0.1:80: connect: connection refused": wire.DialRefused,
		"dial tcp 10.0.0.1:80: i/o timeout":                 wire.DialTimeout,
		"dial tcp 10.0.0.1:80: connect: no route to host":   wire.Unavailable,
		strings.Repeat("long ", 1000):                       wire.Unavailable,
	} {
		err := dialError(text)
		wantCode(t, err, want)
		if len(err.Error()) > 300 {
			t.Errorf("an agent's error is passed on with %d bytes", len(err.Error()))
		}
	}
}

// TestFaultDialGivenUp: whoever asked has gone when the agent answers. The connection is closed, and the answer's place was kept until
// then: agents can't be told to stop dialling. Seen failing without the CLOSE_REQ in answered, and with the dial deleted in giveUp.
func TestFaultDialGivenUp(t *testing.T) {
	s, p := serve(t, func(c *Config) { c.MaxPending = 1 })
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Open(ctx, "10.244.0.9:80")
		done <- err
	}()
	random := p.hear(t).GetDialRequest().GetRandom()
	gone := errors.New("gone")
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
	_, err := s.Open(t.Context(), "10.244.0.9:80")
	wantCode(t, err, wire.Overloaded)
	p.say(t, dialed(random, 5, ""))
	if r := p.hear(t); r.GetCloseRequest().GetConnectID() != 5 {
		t.Errorf("the agent got %v, want CLOSE_REQ of 5", r)
	}
	open(t, s, p, 6).Close()
}

// TestSlowReader: a connection that nobody reads does not stop the agent's others for longer than its patience, and is closed then.
// Seen failing (the others' bytes never came) with push waiting without a limit, and (the memory grew) with no bound.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := serve(t)
		stuck, other := open(t, s, p, 1), open(t, s, p, 2)
		defer other.Close()
		began := time.Now()
		chunk := bytes.Repeat([]byte("x"), 4<<10)
		for range maxInbox/len(chunk) + 2 {
			p.say(t, data(1, chunk))
		}
		p.say(t, data(2, []byte("here")))
		if n, err := other.Read(make([]byte, 9)); n != 4 || err != nil {
			t.Fatalf("the other connection: %d, %v", n, err)
		}
		if waited := time.Since(began); waited > patience+time.Second {
			t.Errorf("the other connection was held up for %s, want %s at most", waited, patience)
		}
		if _, err := stuck.Read(make([]byte, 9)); !errors.Is(err, errSlow) {
			t.Errorf("the connection that was not read: %v", err)
		}
		if r := p.hear(t); r.GetCloseRequest().GetConnectID() != 1 {
			t.Errorf("the agent got %v, want CLOSE_REQ of 1", r)
		}
		if q := s.queued.Load(); q != 0 {
			t.Errorf("%d bytes count as waiting", q)
		}
	})
}

// TestSteadyReader: a reader that is slower than its agent, and no slower than minRate, is never closed for it.
// Seen failing with no credit given back in take.
func TestSteadyReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := serve(t)
		c := open(t, s, p, 1)
		defer c.Close()
		const total = 8 << 20
		go func() {
			chunk := bytes.Repeat([]byte("x"), 4<<10)
			for range total / len(chunk) {
				select {
				case p.toBroker <- data(1, chunk):
				case <-p.cut:
				}
			}
		}()
		buf := make([]byte, 32<<10)
		for got := 0; got < total; {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("after %d bytes: %v", got, err)
			}
			got += n
			time.Sleep(time.Duration(n) * time.Second / minRate * 9 / 10)
		}
	})
}

// TestAllInboxes: what waits of all connections together is bounded, and the one of which the most waits is closed.
// Seen failing without shed.
func TestAllInboxes(t *testing.T) {
	s, p := serve(t)
	var conns []net.Conn
	for id := range int64(maxInboxes/(maxInbox/2) + 2) {
		conns = append(conns, open(t, s, p, id+1))
	}
	chunk := bytes.Repeat([]byte("x"), 32<<10)
	for range maxInbox / 2 / len(chunk) {
		for id := range conns {
			p.say(t, data(int64(id+1), chunk))
		}
	}
	p.say(t, data(999, nil)) // what was said before has been taken
	if q := s.queued.Load(); q > maxInboxes || q < maxInboxes/2 {
		t.Errorf("%d bytes wait, want %d at most", q, maxInboxes)
	}
	closed := 0
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, errFull) {
			closed++
		}
		c.Close()
	}
	if closed == 0 || closed > 4 {
		t.Errorf("%d of %d connections were closed", closed, len(conns))
	}
	if q := s.queued.Load(); q != 0 {
		t.Errorf("%d bytes count as waiting when all are closed", q)
	}
}

// TestDraining: nothing more is asked for, and what is open goes on. Seen failing with DRAIN not noted.
func TestDraining(t *testing.T) {
	s, p := serve(t)
	c := open(t, s, p, 1)
	defer c.Close()
	p.say(t, &client.Packet{Type: client.PacketType_DRAIN, Payload: &client.Packet_Drain{Drain: &client.Drain{}}})
	p.say(t, data(1, []byte("on")))
	if n, err := c.Read(make([]byte, 9)); n != 2 || err != nil {
		t.Errorf("what was open: %d, %v", n, err)
	}
	if !s.Draining() {
		t.Error("it is not said to drain")
	}
	_, err := s.Open(t.Context(), "10.244.0.9:80")
	wantCode(t, err, wire.Draining)
}

// TestFaultStuckAgent: an agent that takes nothing, as one whose node does not read a connection, is given up in the time of one that is
// dead. Seen failing without the timer in sendAll.
func TestFaultStuckAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := serve(t)
		p.full.Store(true)
		began := time.Now()
		_, err := s.Open(t.Context(), "10.244.0.9:80")
		var closed *tunnel.ClosedError
		if !errors.As(err, &closed) || closed.Code != wire.HeartbeatLost || time.Since(began) > 61*time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

// TestNudge: agents look whether they are to drain only when they have received something. Seen failing without the nudge.
func TestNudge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, p := serve(t)
		began := time.Now()
		if pkt := <-p.toAgent; pkt.Type != client.PacketType_DIAL_CLS || time.Since(began) != 25*time.Second {
			t.Errorf("after %s: %v", time.Since(began), pkt)
		}
	})
}

// TestNodeGone: an agent's session does not outlive its Node. Seen failing without recheck.
func TestNodeGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := &directory{}
		s, _ := serve(t, func(c *Config) { c.Nodes = nodes })
		nodes.mu.Lock()
		nodes.gone = true
		nodes.mu.Unlock()
		<-s.ctx.Done()
		var closed *tunnel.ClosedError
		if !errors.As(s.Err(), &closed) || closed.Code != wire.Revoked {
			t.Errorf("%v", s.Err())
		}
	})
}

// TestProtocolErrors: what no agent says ends the session, and with it what is open.
func TestProtocolErrors(t *testing.T) {
	for name, pkt := range map[string]*client.Packet{
		"a number twice":  dialed(99, 1, ""),
		"no number":       dialed(99, 0, ""),
		"an agent's dial": {Type: client.PacketType_DIAL_REQ},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := serve(t)
			c := open(t, s, p, 1)
			p.say(t, pkt)
			var closed *tunnel.ClosedError
			if _, err := c.Read(make([]byte, 1)); !errors.As(err, &closed) || closed.Code != wire.BadRequest {
				t.Errorf("read: %v", err)
			}
			if _, err := s.Open(t.Context(), "10.244.0.9:80"); !errors.As(err, &closed) {
				t.Errorf("open: %v", err)
			}
		})
	}
}

func TestBounds(t *testing.T) {
	s, p := serve(t, func(c *Config) { c.MaxStreams = 1 })
	c := open(t, s, p, 1)
	_, err := s.Open(t.Context(), "10.244.0.9:80")
	wantCode(t, err, wire.Overloaded)
	c.Close()
	p.hear(t)
	open(t, s, p, 2).Close()
}
