// Package egressproxy is the sidecar of a tenant's API server: on one unix socket it takes what kube-apiserver's egress selector
// speaks there, konnectivity's gRPC and HTTP CONNECT, told apart by their first bytes, and asks the broker for each connection by
// a stream of the one session that it keeps. So there is no handshake a dial, and certificates change without a restart of the API server.
//
// It decides nothing: which nodes there are and what may be dialled is the broker's to say, by the certificate of the
// session. Whoever may open the socket is taken for the API server.
//
//	p := egressproxy.New(egressproxy.Config{Dir: "/etc/mooring/egress", Socket: "/run/mooring/egress-proxy.sock"})
//	err := p.Run(ctx)
package egressproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/mooring-edge/mooring/internal/version"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// The conditions, in the order in which each waits for the one before.
const (
	condSocket      = "Socket"
	condCertificate = "Certificate"
	condTunnel      = "Tunnel"
)

const (
	// lookInterval is how often the files are looked at; the kubelet takes up to a minute to bring a changed Secret anyway.
	lookInterval = 5 * time.Second
	// sessionWait is how long a dial waits while there is no session: long enough to ride out a broker's restart.
	sessionWait = 10 * time.Second
	// dialTimeout bounds a dial in all. konnectivity-client waits for 30 s, and over HTTP CONNECT the API server for ever.
	dialTimeout = 28 * time.Second
	// openTimeout is more than the broker takes to find out that a node does not answer (20 s).
	openTimeout = 25 * time.Second

	heartbeatInterval = 10 * time.Second
	heartbeatTimeout  = 30 * time.Second
	// backoffMax is short: sidecars are few, and near the broker.
	backoffMax = 5 * time.Second

	// maxPending and maxStreams leave it to the broker to say how many dials may wait and how many connections be open.
	maxPending = 256
	maxStreams = 100_000
	// maxConns bounds the connections on the socket; the gRPC client makes one for each dial.
	maxConns = 8192
)

// Config is what a Proxy is made of.
type Config struct {
	// Dir holds client.crt, client.key, ca.crt and broker (host:port). It may be a Secret's mount: files that change are
	// taken without a restart.
	Dir string
	// Socket is the path of the unix socket. It is made, mode 0600; one that nobody answers at is replaced.
	Socket string
	// Transport is auto if empty.
	Transport tunnel.Transport
	// HealthAddress is where /livez, /readyz and /metrics are served; empty: nowhere.
	HealthAddress string
	Logger        *slog.Logger

	// For tests; 0 or nil: as above.
	lookInterval, sessionWait time.Duration
	closeGrace, stallLimit    time.Duration
}

// Proxy is one sidecar.
type Proxy struct {
	cfg      Config
	log      *slog.Logger
	health   *health.Tracker
	registry *prometheus.Registry
	metrics  *metrics
	client   *tunnel.Client

	tunnelRuns atomic.Bool // the tunnel's loop gives the beat from then on

	mu       sync.Mutex // guards the following
	identity *identity  // the newest that could be read; nil: none yet
	down     string     // why there is no session; empty while there is one
}

// New makes a Proxy. It starts nothing and touches no file.
func New(cfg Config) *Proxy {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for d, def := range map[*time.Duration]time.Duration{
		&cfg.lookInterval: lookInterval, &cfg.sessionWait: sessionWait, &cfg.closeGrace: closeGrace, &cfg.stallLimit: stallLimit,
	} {
		if *d == 0 {
			*d = def
		}
	}
	p := &Proxy{cfg: cfg, log: cfg.Logger, registry: prometheus.NewRegistry(), down: "it has not been tried yet"}
	p.health = health.New(health.Config{Ready: []string{condSocket, condCertificate, condTunnel}, Logger: p.log})
	p.registry.MustRegister(p.health.Collector(), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.metrics = newMetrics(p.registry)
	p.client = p.newClient(tunnel.NewMetrics(p.registry))
	return p
}

// newClient makes the tunnel's client, which keeps one session to the broker once it runs.
func (p *Proxy) newClient(shared *tunnel.Metrics) *tunnel.Client {
	tlsConfig := p.tls()
	return tunnel.NewClient(tunnel.ClientConfig{
		Dialer: func() *tunnel.Dialer {
			return &tunnel.Dialer{
				Endpoint: p.known().broker, TLS: tlsConfig, Transport: p.cfg.Transport,
				Config: tunnel.Config{
					Hello:             func() wire.Hello { return wire.Hello{Version: version.Version} },
					HeartbeatInterval: heartbeatInterval, HeartbeatTimeout: heartbeatTimeout,
					OpenTimeout: openTimeout, MaxPending: maxPending, MaxStreams: maxStreams,
					Logger: p.log, Metrics: shared,
				},
			}
		},
		OnUp: p.tunnelUp, OnDown: p.tunnelDown, Tick: p.health.Beat,
		BackoffMax: backoffMax, Logger: p.log,
	})
}

func (p *Proxy) tunnelUp(s *tunnel.Session) {
	p.mu.Lock()
	p.down = ""
	p.mu.Unlock()
	p.health.Set(condTunnel, health.True, "Up", fmt.Sprintf("connected to the broker at %s by %s", s.RemoteAddr(), s.Transport()))
}

func (p *Proxy) tunnelDown(err error) {
	why := "it ended"
	if err != nil {
		why = err.Error()
	}
	p.mu.Lock()
	p.down = why
	p.mu.Unlock()
	reason := "Down"
	var closed *tunnel.ClosedError
	if errors.As(err, &closed) && closed.Remote && closed.Code == wire.Revoked || tunnel.CertificateRefused(err) {
		reason = "Refused"
	}
	p.health.Set(condTunnel, health.False, reason, "no session to the broker at "+p.known().broker+", trying again: "+why)
}

// Run serves the socket until ctx ends. Then it cuts what is open, and returns nil when nothing of it runs any more.
func (p *Proxy) Run(ctx context.Context) error {
	l, err := listenUnix(p.cfg.Socket)
	if err != nil {
		return err
	}
	defer l.Close()
	var healthListener net.Listener
	if p.cfg.HealthAddress != "" {
		if healthListener, err = net.Listen("tcp", p.cfg.HealthAddress); err != nil {
			return fmt.Errorf("health address: %w", err)
		}
		defer healthListener.Close()
	}
	p.log.Info("egress proxy starting", "version", version.Get().String(), "socket", p.cfg.Socket, "dir", p.cfg.Dir)
	g, ctx := errgroup.WithContext(ctx)
	first := make(chan struct{})
	g.Go(func() error { return p.health.Run(ctx) })
	g.Go(func() error { return p.watchFiles(ctx, first) })
	g.Go(func() error { return p.runTunnel(ctx, first) })
	g.Go(func() error { return p.serve(ctx, l) })
	if healthListener != nil {
		g.Go(func() error { return p.serveHealth(ctx, healthListener) })
	}
	p.health.Set(condSocket, health.True, "Listening", "the API server is served on "+p.cfg.Socket)
	err = g.Wait()
	p.log.Info("egress proxy stopped")
	return err
}

// runTunnel keeps a session up, from when it is known to whom.
func (p *Proxy) runTunnel(ctx context.Context, first <-chan struct{}) error {
	select {
	case <-first:
	case <-ctx.Done():
		return nil
	}
	p.tunnelRuns.Store(true)
	return p.client.Run(ctx)
}

func (p *Proxy) serveHealth(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: p.health.Handler(p.registry), ReadTimeout: firstBytes, WriteTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("health address %s: %w", l.Addr(), err)
	}
	return nil
}

// known is the newest identity; an empty one if there is none.
func (p *Proxy) known() identity {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.identity == nil {
		return identity{}
	}
	return *p.identity
}

// whyDown is why there is no session; empty: there is one.
func (p *Proxy) whyDown() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down
}
