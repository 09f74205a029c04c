package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"golang.org/x/sys/unix"
)

// quick is a Config that finds faults out in fractions of a second.
func quick(c Config) Config {
	c.HeartbeatInterval, c.HeartbeatTimeout, c.ProbeTimeout = 50*time.Millisecond, 500*time.Millisecond, 200*time.Millisecond
	return c
}

// TestFault02UDPDiesMidSession: with heartbeats far apart, what is sent and not
// acknowledged must give the dead path away.
func TestFault02UDPDiesMidSession(t *testing.T) {
	t.Parallel() // it mostly waits
	cfg := Config{ProbeTimeout: 300 * time.Millisecond}
	agent, _, r := relayed(t, TransportQUIC, cfg, Config{Handler: echo})
	st, err := agent.Open(t.Context(), wire.KindAPI, "")
	if err != nil {
		t.Fatal(err)
	}
	both(r, relay.Path{Hole: true})
	if _, err := st.Write([]byte("are you there?")); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, agent.Done(), "the session to end")
	wantClosed(t, agent.Err(), wire.HeartbeatLost, false)
	wantClosed(t, readErr(st), wire.HeartbeatLost, false)
}

func TestOpenIntoBlackHoleEndsSession(t *testing.T) {
	t.Parallel() // it mostly waits
	eachTransport(t, func(t *testing.T, tr Transport) {
		cfg := Config{OpenTimeout: 200 * time.Millisecond, ProbeTimeout: 300 * time.Millisecond}
		_, brk, r := relayed(t, tr, cfg, cfg)
		both(r, relay.Path{Hole: true})
		_, err := brk.Open(t.Context(), wire.KindDial, "node:1")
		wantRefused(t, err, wire.DialTimeout)
		within(t, 5*time.Second, brk.Done(), "the session to end")
		wantClosed(t, brk.Err(), wire.HeartbeatLost, false)
	})
}

// TestRestartedBrokerIsNoticed: a broker that was killed and came back answers
// with stateless resets what belongs to sessions it does not know.
func TestRestartedBrokerIsNoticed(t *testing.T) {
	t.Parallel() // it mostly waits
	key := [32]byte{1, 2, 3}
	first := startBroker(t, AcceptorConfig{StatelessResetKey: &key})
	second := startBroker(t, AcceptorConfig{StatelessResetKey: &key})
	r := startRelay(t, first.addr)
	agent, _ := dialTo(t, first, r.Addr(), TransportQUIC, Config{OpenTimeout: 5 * time.Second})
	r.LeadTo(second.addr)
	_, err := agent.Open(t.Context(), wire.KindAPI, "")
	if err == nil {
		t.Fatal("opened a stream at a broker that does not know the session")
	}
	within(t, 5*time.Second, agent.Done(), "the session to end")
	wantClosed(t, agent.Err(), wire.Unavailable, true)
	if !strings.Contains(agent.Err().Error(), "restarted") {
		t.Errorf("error %q does not say what happened", agent.Err())
	}
}

func TestBrokerStops(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		b := startBroker(t, AcceptorConfig{Config: Config{Handler: echo}})
		agent, _ := dialTo(t, b, b.addr, tr, Config{})
		st, err := agent.Open(t.Context(), wire.KindAPI, "")
		if err != nil {
			t.Fatal(err)
		}
		b.stop()
		within(t, 5*time.Second, agent.Done(), "the agent to notice")
		wantClosed(t, agent.Err(), wire.Shutdown, true)
		wantClosed(t, readErr(st), wire.Shutdown, true)
	})
}

// TestConnectionCut: the connection goes without a word.
func TestConnectionCut(t *testing.T) {
	agent, brk := dialPair(t, TransportTCP, Config{}, Config{})
	m := agent.l.mux.(*yamuxMux)
	_ = m.raw.(*net.TCPConn).SetLinger(0)
	_ = m.raw.Close()
	within(t, 5*time.Second, agent.Done(), "the agent to notice")
	within(t, 5*time.Second, brk.Done(), "the broker to notice")
	wantClosed(t, brk.Err(), wire.Unavailable, true)
	if !errors.Is(brk.Err(), unix.ECONNRESET) {
		t.Errorf("error %v does not say what happened", brk.Err())
	}
}

// strangerTLS are agents that must not get in.
func strangerTLS() map[string]*tls.Config {
	other, otherKey := makeCert("other ca", nil, nil)
	noALPN, wrongALPN := agentTLS(), agentTLS()
	wrongALPN.NextProtos = []string{"h2"}
	old := agentTLS()
	old.NextProtos, old.MaxVersion = []string{wire.ALPN}, tls.VersionTLS12
	return map[string]*tls.Config{
		"no certificate":        {RootCAs: pki().roots, NextProtos: []string{wire.ALPN}},
		"another CA's":          {RootCAs: pki().roots, NextProtos: []string{wire.ALPN}, Certificates: []tls.Certificate{leaf("agent", other, otherKey)}},
		"no ALPN":               noALPN,
		"another protocol":      wrongALPN,
		"an old version of TLS": old,
	}
}

func TestStrangersStayOut(t *testing.T) {
	b := startBroker(t, AcceptorConfig{})
	for name, cfg := range strangerTLS() {
		eachTransport(t, func(t *testing.T, tr Transport) {
			t.Run(name, func(t *testing.T) {
				d := dialer(b.addr, tr, Config{HandshakeTimeout: 2 * time.Second})
				e, err := d.prepare()
				if err != nil {
					t.Fatal(err)
				}
				e.tls = cfg.Clone()
				e.tls.ServerName = "127.0.0.1"
				var l *link
				if tr == TransportQUIC {
					l, err = e.dialQUIC(t.Context())
				} else {
					l, err = e.dialTCP(t.Context())
				}
				if err == nil { // with TLS 1.3 a client learns late that it was turned away
					var s *Session
					if s, err = establish(t.Context(), l, e.cfg); err == nil {
						_ = s.Close(wire.Shutdown, "")
						t.Error("a session came up")
					}
				}
			})
		})
	}
	select {
	case <-b.sessions:
		t.Error("the broker made a session of a stranger")
	default:
	}
}

func TestUnverifyingConfigurationsAreRefused(t *testing.T) {
	open := &tls.Config{Certificates: []tls.Certificate{pki().broker}, ClientAuth: tls.RequestClientCert}
	for _, cfg := range []*tls.Config{nil, open} {
		a := NewAcceptor(AcceptorConfig{TLS: cfg})
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.ServeQUIC(t.Context(), pc); err == nil {
			t.Error("ServeQUIC took a configuration that verifies nobody")
		}
		_ = pc.Close()
		c1, c2 := net.Pipe()
		a.ServeConn(t.Context(), c1)
		if err := writeErr(c2); err == nil {
			t.Error("ServeConn left the connection open")
		}
	}
	d := &Dialer{Endpoint: "127.0.0.1:1", TLS: &tls.Config{InsecureSkipVerify: true}}
	if _, err := d.Dial(t.Context()); err == nil || !strings.Contains(err.Error(), "any broker") {
		t.Errorf("Dial without verification: %v", err)
	}
}

// TestFault32NoResumption: a client that keeps tickets gets none, over QUIC either, so each session shows its
// certificate, and one that follows another's is its own.
func TestFault32NoResumption(t *testing.T) {
	ca, caKey := makeCert("ca of two tenants", nil, nil)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	base := brokerTLS()
	base.ClientCAs = roots
	cfg := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return base, nil }}
	b := startBroker(t, AcceptorConfig{TLS: cfg})
	tenants := []tls.Certificate{leaf("acme", ca, caKey), leaf("globex", ca, caKey)}
	eachTransport(t, func(t *testing.T, tr Transport) {
		cache := tls.NewLRUClientSessionCache(8)
		for i := range 4 {
			d := dialer(b.addr, tr, Config{})
			e, err := d.prepare()
			if err != nil {
				t.Fatal(err)
			}
			e.tls.Certificates = tenants[i%2 : i%2+1]
			e.tls.ClientSessionCache = cache
			e.transport = tr
			s, err := e.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			brk := b.next(t)
			if s.ConnectionState().DidResume || brk.ConnectionState().DidResume || len(brk.ConnectionState().PeerCertificates) == 0 {
				t.Error("the session was a resumption of the one before")
			} else if got, want := brk.ConnectionState().PeerCertificates[0].Subject.CommonName, []string{"acme", "globex"}[i%2]; got != want {
				t.Errorf("the session of %s is %s's to the broker", want, got)
			}
			_ = s.Close(wire.Shutdown, "")
		}
		if _, ok := cache.Get("127.0.0.1"); ok {
			t.Error("the broker handed out a session ticket")
		}
	})
}

func TestServeConnEndsWithContext(t *testing.T) {
	a := NewAcceptor(AcceptorConfig{TLS: brokerTLS()})
	c1, c2 := net.Pipe() // the client never says a word
	defer c2.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.ServeConn(ctx, c1) }()
	cancel()
	within(t, 5*time.Second, done, "ServeConn to return")
}
