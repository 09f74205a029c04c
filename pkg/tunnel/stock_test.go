package tunnel

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// stockConfig is yamux's own, without a word.
func stockConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput, c.EnableKeepAlive = io.Discard, false
	return c
}

// stockAgent is the agent's end of a session by yamux alone, and the broker's.
func stockAgent(t *testing.T, cfg Config) (*yamux.Session, *Session) {
	t.Helper()
	b := startBroker(t, AcceptorConfig{Config: cfg})
	conf := agentTLS().Clone()
	conf.NextProtos = []string{wire.ALPN}
	conn, err := tls.Dial("tcp", b.addr, conf)
	check(err)
	ys, err := yamux.Client(conn, stockConfig())
	check(err)
	t.Cleanup(func() { ys.Close() })
	ctl, err := ys.OpenStream()
	check(err)
	_, err = ctl.Write(append(preamble(wire.KindControl, ""), helloFrame()...))
	check(err)
	return ys, b.next(t)
}

// TestStockYamux: an end that has yamux alone understands this one, and is understood: how streams begin, carry more than a window, end by halves,
// and are forgotten.
func TestStockYamux(t *testing.T) {
	ys, s := stockAgent(t, Config{Handler: echo})
	data := bytes.Repeat([]byte("0123456789abcdef"), 5*baseWindow/2/16)

	for range 3 { // it opens
		st, err := ys.OpenStream()
		check(err)
		_ = st.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = st.Write(preamble(wire.KindAPI, ""))
		check(err)
		if a, err := wire.ReadAnswer(st); err != nil || a.Code != wire.OK {
			t.Fatalf("answer %v, %v", a, err)
		}
		go func() {
			_, err := st.Write(data)
			check(err)
			check(st.Close()) // which is half of it
		}()
		if got, err := io.ReadAll(st); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes came back, %v; want %d", len(got), err, len(data))
		}
	}

	go func() { // it is opened to
		for {
			st, err := ys.AcceptStream()
			if err != nil {
				return
			}
			_, err = wire.ReadPreamble(st)
			check(err)
			_, err = st.Write(wire.AppendAnswer(nil, wire.Answer{}))
			check(err)
			go func() {
				_, _ = io.Copy(st, st)
				_ = st.Close()
			}()
		}
	}()
	for range 300 { // more than the backlog
		st, err := s.Open(t.Context(), wire.KindDial, "edge-1:10250")
		check(err)
		go func() {
			_, err := st.Write(data[:100])
			check(err)
			check(st.CloseWrite())
		}()
		if got, err := io.ReadAll(st); err != nil || !bytes.Equal(got, data[:100]) {
			t.Fatalf("%q came back, %v", got, err)
		}
		check(st.Close())
	}
	waitFor(t, func() bool { return ys.NumStreams() == 1 }, "yamux to have the control stream alone")
	m := s.l.mux.(*yamuxMux)
	waitFor(t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.live) == 1
	}, "this end to have the control stream alone")
	if err := s.Err(); err != nil {
		t.Errorf("the session ended: %v", err)
	}

	check(ys.GoAway())
	waitFor(t, func() bool { return m.conn.frames.away.Load() }, "the word to arrive")
	if _, err := s.Open(t.Context(), wire.KindDial, "edge-1:10250"); err == nil {
		t.Error("a stream was opened to an end that takes none")
	}
}

// TestStockBacklog: streams beyond the backlog are refused as yamux itself does, and those before are not harmed.
func TestStockBacklog(t *testing.T) {
	l, ys := stockBroker(t)
	const more = 10
	var all []*yamux.Stream
	for range yamuxBacklog + more {
		st, err := ys.OpenStream() // none is acknowledged
		check(err)
		all = append(all, st)
	}
	for i, st := range all[yamuxBacklog:] {
		_ = st.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := st.Read(make([]byte, 1)); !errors.Is(err, yamux.ErrConnectionReset) {
			t.Errorf("stream %d: %v, want a reset", yamuxBacklog+i, err)
		}
	}
	for range yamuxBacklog {
		st, err := l.accept(t.Context())
		check(err)
		_, err = st.Write([]byte("x"))
		check(err)
	}
	for i, st := range all[:yamuxBacklog] {
		_ = st.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := st.Read(make([]byte, 1)); err != nil {
			t.Errorf("stream %d: %v", i, err)
		}
	}
}

// TestForeignNumber: the other side can't take this side's numbers. Seen failing without the look at them in frameReader: the session goes on.
func TestForeignNumber(t *testing.T) {
	agent, brk := dialPair(t, TransportTCP, Config{}, Config{})
	ours := uint32(brk.l.mux.(*yamuxMux).next.Load())
	check(agent.l.mux.(*yamuxMux).conn.write(appendFrame(nil, yamuxFlagSYN, ours, 0), nil))
	within(t, 5*time.Second, brk.Done(), "the session to end")
	wantClosed(t, brk.Err(), wire.BadRequest, false)
}

// stockBroker is a link of ours, and the other end of it by yamux alone.
func stockBroker(t *testing.T) (*link, *yamux.Session) {
	t.Helper()
	conf := brokerTLS().Clone()
	conf.NextProtos = []string{wire.ALPN}
	nl, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	check(err)
	defer nl.Close()
	came := make(chan *yamux.Session, 1)
	go func() {
		c, err := nl.Accept()
		check(err)
		big := stockConfig()
		big.AcceptBacklog = 2 * yamuxBacklog // of it is what it opens, too
		ys, err := yamux.Server(c, big)
		check(err)
		came <- ys
	}()
	l := rawLink(t, nl.Addr().String(), TransportTCP)
	ys := <-came
	t.Cleanup(func() { ys.Close() })
	return l, ys
}

// TestTurnDownIsBounded: who opens streams without end and does not read what comes back takes no memory without end. FINs that wait as well are not
// held against it.
func TestTurnDownIsBounded(t *testing.T) {
	c := &frameConn{spawn: func(func()) bool { return true }} // and nobody writes
	c.granting = true
	for c.endLater(1) {
	}
	for n := 0; ; n++ {
		if err := c.turnDown(uint32(n)); err != nil {
			if !errors.Is(err, errFlood) || n*yamuxHeader < maxAhead/2 {
				t.Errorf("after %d: %v", n, err)
			}
			return
		}
		if n*yamuxHeader > 2*maxAhead {
			t.Fatal("no bound")
		}
	}
}
