package wan

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/e2e/internal/host"
	"github.com/mooring-edge/mooring/internal/front"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/strangers"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// BrokerConfig is a broker's.
type BrokerConfig struct {
	Timing Timing
	// Limits of the port; the zero value bounds nothing.
	Limits strangers.Limits
	// HelloTimeout is front.Config's.
	HelloTimeout time.Duration
	// ResetKey is the stateless reset key, which survives a restart.
	ResetKey [32]byte
	// Quiet leaves out the events of single sessions.
	Quiet bool

	CA authority // set by World
}

// authority is a CA on its way to a process.
type authority struct{ Cert, Key []byte }

func (w *World) authority() (authority, error) {
	key, err := w.CA.KeyPEM()
	return authority{w.CA.CertPEM(), key}, err
}

// Broker starts a broker at Endpoint and returns once it listens. Its events are
//
//	listens                    at the start
//	session, gone              of each session, with Remote, Transport and why it ended
//
// and its commands those of onSession, for the newest session, and
//
//	sessions                   Values: how many there are, by transport
//	metrics                    Values: of each counter and gauge of the port, as name/label values
func (w *World) Broker(c BrokerConfig) (*Proc, error) {
	var err error
	if c.CA, err = w.authority(); err != nil {
		return nil, err
	}
	return w.startUp(w.Platform, "broker", c)
}

// startUp starts a process and waits until it listens.
func (w *World) startUp(ns host.Netns, role string, c any) (*Proc, error) {
	p, err := w.start(ns, role, c)
	if err != nil {
		return nil, err
	}
	_, err = p.Await(20*time.Second, "it to listen", func(e Event) bool { return e.Name == "listens" })
	return p, err
}

func broker(ctx context.Context, r *role) error {
	b := &brokerRole{role: r, metrics: prometheus.NewRegistry(), live: map[tunnel.Transport]int{}}
	if err := r.configure(&b.cfg); err != nil {
		return err
	}
	ca, err := pki.LoadCA(b.cfg.CA.Cert, b.cfg.CA.Key)
	if err != nil {
		return err
	}
	cert, err := ca.IssueBroker("broker", nil, nil, time.Now(), time.Hour)
	if err != nil {
		return err
	}
	door := strangers.NewDoor(strangers.Config{Port: "front", Registerer: b.metrics, Logger: r.log, Limits: b.cfg.Limits})
	acceptor := tunnel.NewAcceptor(tunnel.AcceptorConfig{
		TLS: pki.ServerTLS(func() (*tls.Certificate, error) { return &cert, nil },
			pki.VerifyPeer(ca.Pool, x509.ExtKeyUsageClientAuth, time.Now, nil), pki.ServerOptions{}),
		Config:            b.cfg.Timing.config(r.log),
		OnSession:         b.onSession,
		Enter:             door.Enter,
		StatelessResetKey: &b.cfg.ResetKey,
	})
	ln, err := tunnel.ListenTCP(ctx, Endpoint)
	if err != nil {
		return err
	}
	pc, err := net.ListenPacket("udp", Endpoint)
	if err != nil {
		return err
	}
	srv := front.New(front.Config{
		Routes:       []front.Route{{Protocol: wire.ALPN, Serve: acceptor.ServeConn}},
		HelloTimeout: b.cfg.HelloTimeout, Enter: door.Enter, Registerer: b.metrics, Logger: r.log,
	})
	go r.obey(b.do)
	r.say(Event{Name: "listens"})
	var wg sync.WaitGroup
	var qerr error
	wg.Go(func() { qerr = acceptor.ServeQUIC(ctx, pc) })
	err = srv.Serve(ctx, ln)
	wg.Wait()
	return errors.Join(err, qerr)
}

type brokerRole struct {
	*role
	cfg     BrokerConfig
	metrics *prometheus.Registry
	newest  atomic.Pointer[tunnel.Session]

	mu   sync.Mutex // guards the following
	live map[tunnel.Transport]int
}

func (b *brokerRole) onSession(_ context.Context, s *tunnel.Session) {
	s.Admitted()
	b.newest.Store(s)
	b.count(s, 1)
	e := Event{Name: "session", Transport: string(s.Transport()), Remote: s.RemoteAddr().String()}
	if !b.cfg.Quiet {
		b.say(e)
	}
	<-s.Done()
	b.count(s, -1)
	e.Name, e.Err = "gone", s.Err().Error()
	if !b.cfg.Quiet {
		b.say(e)
	}
}

func (b *brokerRole) count(s *tunnel.Session, d int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.live[s.Transport()] += d
}

func (b *brokerRole) do(verb, arg string) (Event, error) {
	switch verb {
	case "sessions":
		b.mu.Lock()
		defer b.mu.Unlock()
		v := map[string]float64{}
		for t, n := range b.live {
			v[string(t)] = float64(n)
		}
		return Event{Values: v}, nil
	case "metrics":
		return b.measure()
	}
	s := b.newest.Load()
	if s == nil {
		return Event{}, errors.New("no session has come up yet")
	}
	return onSession(s, verb, arg)
}

// measure reads the counters and gauges.
func (b *brokerRole) measure() (Event, error) {
	families, err := b.metrics.Gather()
	if err != nil {
		return Event{}, err
	}
	v := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := []string{f.GetName()}
			for _, l := range m.GetLabel() {
				if l.GetName() != "port" {
					name = append(name, l.GetValue())
				}
			}
			v[strings.Join(name, "/")] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	if len(v) == 0 {
		return Event{}, fmt.Errorf("no metrics among %d families", len(families))
	}
	return Event{Values: v}, nil
}
