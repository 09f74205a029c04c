package wan

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// AgentConfig is an agent's, or that of several agents in one process.
type AgentConfig struct {
	Timing Timing
	// Transport is tunnel.TransportAuto if empty; Transports, if set, are those of the agents in turn.
	Transport  tunnel.Transport
	Transports []tunnel.Transport
	// Clients is how many agents the process is; 0: one.
	Clients int
	// BackoffMin, BackoffMax and ProbeMin are tunnel.ClientConfig's.
	BackoffMin, BackoffMax, ProbeMin time.Duration

	CA authority // set by World
}

// Agent starts an agent in a site. Its events, with the number of the Client, are
//
//	dial       an attempt begins
//	up         a session, with its Transport
//	down       what OnDown gets
//
// and its commands those of onSession, for the first agent's session, which they wait for.
func (w *World) Agent(site host.Netns, c AgentConfig) (*Proc, error) {
	var err error
	if c.CA, err = w.authority(); err != nil {
		return nil, err
	}
	return w.start(site, "agent", c)
}

func agent(ctx context.Context, r *role) error {
	var cfg AgentConfig
	if err := r.configure(&cfg); err != nil {
		return err
	}
	cfg.Clients = max(cfg.Clients, 1)
	if len(cfg.Transports) == 0 {
		cfg.Transports = []tunnel.Transport{cfg.Transport}
	}
	tc, err := nodeTLS(cfg.CA)
	if err != nil {
		return err
	}
	clients := make([]*tunnel.Client, cfg.Clients)
	for i := range clients {
		clients[i] = newClient(r, cfg, i, tc)
	}
	go r.obey(func(verb, arg string) (Event, error) {
		s, err := clients[0].Session(ctx)
		if err != nil {
			return Event{}, err
		}
		return onSession(s, verb, arg)
	})
	var (
		wg   sync.WaitGroup
		errs = make([]error, len(clients))
	)
	for i, c := range clients {
		wg.Go(func() { errs[i] = c.Run(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func newClient(r *role, cfg AgentConfig, i int, tc *tls.Config) *tunnel.Client {
	d := &tunnel.Dialer{
		Endpoint: Endpoint, TLS: tc,
		Transport: cfg.Transports[i%len(cfg.Transports)],
		Config:    cfg.Timing.config(r.log),
	}
	var saidHello atomic.Int64
	d.Config.Hello = func() wire.Hello {
		saidHello.Add(1)
		return wire.Hello{}
	}
	return tunnel.NewClient(tunnel.ClientConfig{
		Dialer: func() *tunnel.Dialer {
			r.say(Event{Name: "dial", Client: i})
			return d
		},
		OnUp: func(s *tunnel.Session) {
			r.say(Event{Name: "up", Client: i, Transport: string(s.Transport())})
		},
		OnDown: func(err error) {
			// The hellos made so far show whether anything of ours was said to whoever answered.
			r.say(Event{Name: "down", Client: i, Err: err.Error(), Values: map[string]float64{"hellos": float64(saidHello.Load())}})
		},
		BackoffMin: cfg.BackoffMin, BackoffMax: cfg.BackoffMax, ProbeMin: cfg.ProbeMin,
		Logger: r.log.With("client", i),
	})
}

// nodeTLS makes a node's identity, and has it trust brokers of the CA.
func nodeTLS(a authority) (*tls.Config, error) {
	ca, err := pki.LoadCA(a.Cert, a.Key)
	if err != nil {
		return nil, err
	}
	keyPEM, key, err := pki.MakeKeyPEM()
	if err != nil {
		return nil, err
	}
	request, err := pki.MakeCSR(key, "edge")
	if err != nil {
		return nil, err
	}
	csr, err := pki.ParseCSR(request, len(request))
	if err != nil {
		return nil, err
	}
	chain, err := ca.IssueNode(csr, pki.Identity{TrustDomain: TrustDomain, Role: pki.RoleNode, Tenant: "acme", Name: "edge"}, time.Now(), time.Hour)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(chain, keyPEM)
	if err != nil {
		return nil, err
	}
	return pki.ClientTLS(func() (*tls.Certificate, error) { return &cert, nil },
		pki.VerifyPeer(ca.Pool, x509.ExtKeyUsageServerAuth, time.Now, isBroker)), nil
}

func isBroker(id pki.Identity) error {
	if id.Role != pki.RoleBroker {
		return fmt.Errorf("identity %s is not of a broker", id)
	}
	return nil
}
