package tunnel

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"github.com/quic-go/quic-go"
)

// startRelay puts a relay before a broker.
func startRelay(t testing.TB, target string) *relay.Relay {
	t.Helper()
	r, err := relay.Start(relay.Config{Target: target, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// relayed makes a session through a relay.
func relayed(t *testing.T, tr Transport, agentCfg, brokerCfg Config) (agent, brk *Session, r *relay.Relay) {
	t.Helper()
	b := startBroker(t, AcceptorConfig{Config: brokerCfg})
	r = startRelay(t, b.addr)
	agent, brk = dialTo(t, b, r.Addr(), tr, agentCfg)
	return agent, brk, r
}

// both makes both ways of a relay alike.
func both(r *relay.Relay, p relay.Path) { r.Set(func(s *relay.Settings) { s.Both(p) }) }

// inFakeTime runs f in a bubble of fake time with a session over QUIC, all of it but for the sockets, through a
// relay. (There is none over TCP: yamux shares its timers between sessions, which a bubble does not allow.)
func inFakeTime(t *testing.T, c relay.Config, agentCfg, brokerCfg Config, f func(t *testing.T, agent, brk *Session, r *relay.Relay)) {
	pki() // outside: its certificates are of the real time
	now := time.Now()
	clock := func() time.Time { return now }
	synctest.Test(t, func(t *testing.T) {
		c.Mem = relay.NewMem()
		pc := c.Mem.ListenPacket()
		c.Target = pc.LocalAddr().String()
		r, err := relay.Start(c)
		check(err)
		server := brokerTLS()
		server.Time = clock
		sessions := make(chan *Session, 1)
		a := NewAcceptor(AcceptorConfig{TLS: server, Config: brokerCfg, OnSession: func(_ context.Context, s *Session) { sessions <- s }})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { check(a.ServeQUIC(ctx, pc)) })
		defer func() {
			cancel()
			wg.Wait()
			_ = pc.Close()
			r.Close()
		}()
		agent, err := dialMem(t.Context(), c.Mem, r.Addr(), agentCfg, clock)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = agent.Close(wire.Shutdown, "test over")
			agent.wait()
		}()
		f(t, agent, <-sessions, r)
	})
}

// dialMem is what a Dialer does over QUIC, in a network in memory.
func dialMem(ctx context.Context, m *relay.Mem, to string, cfg Config, clock func() time.Time) (*Session, error) {
	addr, err := net.ResolveUDPAddr("udp", to)
	check(err)
	e, err := dialer(to, TransportQUIC, cfg).prepare()
	check(err)
	e.tls.Time = clock
	pc := m.ListenPacket()
	tr := &quic.Transport{Conn: pc}
	release := func() {
		_ = tr.Close()
		_ = pc.Close()
	}
	conn, err := tr.Dial(ctx, addr, e.tls, quicConfig(e.cfg))
	if err != nil {
		release()
		return nil, err
	}
	return establish(ctx, newQUICLink(conn, true, release), e.cfg)
}

// keptUp is a Client over one transport through a relay, and what it has told.
type keptUp struct {
	*Client
	ups   chan *Session
	downs chan error
}

func keepUp(t *testing.T, addr string, tr Transport, cfg Config) *keptUp {
	t.Helper()
	k := &keptUp{ups: make(chan *Session, 16), downs: make(chan error, 64)}
	k.Client = NewClient(ClientConfig{
		Dialer:     func() *Dialer { return dialer(addr, tr, cfg) },
		OnUp:       func(s *Session) { k.ups <- s },
		OnDown:     func(err error) { k.downs <- err },
		BackoffMin: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
		Logger: testLogger(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = k.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return k
}

// talk sends words over a stream to an echo and wants them back.
func talk(t *testing.T, st *Stream, words ...string) {
	t.Helper()
	for _, w := range words {
		if _, err := st.Write([]byte(w)); err != nil {
			t.Fatalf("write %q: %v", w, err)
		}
		if got, err := readN(st, len(w)); err != nil || string(got) != w {
			t.Fatalf("read %q, %v; want %q", got, err, w)
		}
	}
}

func readN(c net.Conn, n int) ([]byte, error) {
	b := make([]byte, n)
	for at := 0; at < n; {
		m, err := c.Read(b[at:])
		if at += m; err != nil && at < n {
			return b[:at], err
		}
	}
	return b, nil
}

// ended fails the test if err is none of those by which a session's streams tell that it has ended.
func ended(t *testing.T, err error) {
	t.Helper()
	var closed *ClosedError
	if !errors.As(err, &closed) {
		t.Errorf("got %v, want why the session ended", err)
	}
}
