package tunnel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if told := os.Getenv(agentsEnv); told != "" {
		agents(told)
		return
	}
	goleak.VerifyTestMain(m)
}

// testPKI is a CA, a broker's certificate for 127.0.0.1 and an agent's.
type testPKI struct {
	ca            *x509.Certificate
	roots         *x509.CertPool
	broker, agent tls.Certificate
}

var pki = sync.OnceValue(func() *testPKI {
	ca, caKey := makeCert("ca", nil, nil)
	p := &testPKI{ca: ca, roots: x509.NewCertPool()}
	p.roots.AddCert(ca)
	p.broker = leaf("broker", ca, caKey)
	p.agent = leaf("agent", ca, caKey)
	return p
})

func makeCert(cn string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(err)
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if parent == nil {
		t.IsCA, t.KeyUsage, parent, parentKey = true, x509.KeyUsageCertSign, t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, parentKey)
	check(err)
	cert, err := x509.ParseCertificate(der)
	check(err)
	return cert, key
}

func leaf(cn string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) tls.Certificate {
	cert, key := makeCert(cn, ca, caKey)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func brokerTLS() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{pki().broker}, ClientCAs: pki().roots,
		ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

func agentTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{pki().agent}, RootCAs: pki().roots}
}

// testLogger writes to the test's log with MOORING_TEST_LOG set; else it is quiet.
func testLogger() *slog.Logger {
	if os.Getenv("MOORING_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// broker is an Acceptor on a loopback port, UDP and TCP.
type broker struct {
	addr     string
	sessions chan *Session
	stop     func() // returns when all has ended
}

func startBroker(t testing.TB, cfg AcceptorConfig) *broker {
	t.Helper()
	b := &broker{sessions: make(chan *Session, 64)}
	if cfg.TLS == nil {
		cfg.TLS = brokerTLS()
	}
	cfg.Logger = testLogger()
	on := cfg.OnSession
	cfg.OnSession = func(ctx context.Context, s *Session) {
		if on != nil {
			on(ctx, s)
		}
		b.sessions <- s
	}
	a := NewAcceptor(cfg)
	ln, pc := listenBoth(t)
	b.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.ServeQUIC(ctx, pc); err != nil {
			t.Errorf("ServeQUIC: %v", err)
		}
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { a.ServeConn(ctx, c) })
		}
	})
	var once sync.Once
	b.stop = func() {
		once.Do(func() {
			cancel()
			_ = ln.Close()
			wg.Wait()
			_ = pc.Close()
		})
	}
	t.Cleanup(b.stop)
	return b
}

// listenBoth finds a loopback port that is free for TCP and UDP.
func listenBoth(t testing.TB) (net.Listener, net.PacketConn) {
	t.Helper()
	var last error
	for range 20 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		if err == nil {
			return ln, pc
		}
		last = err
		_ = ln.Close()
	}
	t.Fatal(last)
	return nil, nil
}

func (b *broker) next(t testing.TB) *Session {
	t.Helper()
	select {
	case s := <-b.sessions:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("no session came up at the broker")
		return nil
	}
}

func dialer(addr string, tr Transport, cfg Config) *Dialer {
	cfg.Logger = testLogger()
	return &Dialer{Endpoint: addr, TLS: agentTLS(), Transport: tr, Config: cfg}
}

// dialPair makes a session and returns both its ends.
func dialPair(t testing.TB, tr Transport, agentCfg, brokerCfg Config) (agent, brk *Session) {
	t.Helper()
	b := startBroker(t, AcceptorConfig{Config: brokerCfg})
	return dialTo(t, b, b.addr, tr, agentCfg)
}

func dialTo(t testing.TB, b *broker, addr string, tr Transport, cfg Config) (agent, brk *Session) {
	t.Helper()
	agent, err := dialer(addr, tr, cfg).Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = agent.Close(wire.Shutdown, "test over")
		agent.wait()
	})
	return agent, b.next(t)
}

// eachTransport runs a test over both.
func eachTransport(t *testing.T, f func(t *testing.T, tr Transport)) {
	for _, tr := range []Transport{TransportQUIC, TransportTCP} {
		t.Run(string(tr), func(t *testing.T) { f(t, tr) })
	}
}

// within fails the test if ch is not closed or does not deliver in time.
func within[T any](t testing.TB, d time.Duration, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(d):
		t.Fatalf("%s: not within %s", what, d)
		panic("unreachable")
	}
}

func wantRefused(t testing.TB, err error, code wire.Code) {
	t.Helper()
	var r *RefusedError
	if !errors.As(err, &r) || r.Code != code {
		t.Errorf("got error %v, want a refusal with %q", err, code)
	}
}

func wantClosed(t testing.TB, err error, code wire.Code, remote bool) {
	t.Helper()
	var c *ClosedError
	if !errors.As(err, &c) || c.Code != code || c.Remote != remote {
		t.Errorf("got error %v, want a session closed with %q, remote %v", err, code, remote)
	}
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v is not net.ErrClosed", err)
	}
}
