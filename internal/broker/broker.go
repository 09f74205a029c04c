// Package broker composes the broker from its parts. It is wiring: what the parts do is theirs.
package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/egress"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/front"
	"github.com/mooring-edge/mooring/internal/hostsfile"
	"github.com/mooring-edge/mooring/internal/listen"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/strangers"
	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/internal/tenant/kamaji"
	"github.com/mooring-edge/mooring/internal/tracing"
	"github.com/mooring-edge/mooring/internal/version"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// The broker's conditions.
const (
	condStore  = "Store"
	condFront  = "Front"
	condEgress = "Egress"
)

// Run runs a broker until ctx ends, which is no error. It returns when everything that it started has
// ended.
func Run(ctx context.Context, cfg *config.Broker, log *slog.Logger) error {
	defer boundGarbage()()
	log.Info("broker starting", "version", version.Get().String(), "dataDir", cfg.DataDir)
	st, err := store.Open(ctx, storeConfig(cfg, log))
	if err != nil {
		return err
	}
	err = runOver(ctx, cfg, log, st)
	if closeErr := st.Close(); closeErr != nil {
		log.Warn("store did not close cleanly", "err", closeErr)
	}
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		log.Info("broker stopped")
		return nil
	}
	return err
}

func storeConfig(cfg *config.Broker, log *slog.Logger) store.Config {
	c := store.Config{Dir: cfg.DataDir, Logger: log}
	if e := cfg.Store.Etcd; len(e.Endpoints) > 0 {
		c.Cluster = &store.Cluster{Endpoints: e.Endpoints, CAFile: e.CAFile, CertFile: e.CertFile, KeyFile: e.KeyFile, Prefix: e.Prefix}
	}
	return c
}

// runOver is Run over a store that is open; several brokers may share one.
func runOver(ctx context.Context, cfg *config.Broker, log *slog.Logger, st *store.Store) error {
	b := &broker{cfg: cfg, log: log, started: time.Now(), metrics: prometheus.NewRegistry()}
	b.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	b.health = health.New(health.Config{Ready: []string{condStore, condFront, condEgress}, Logger: log})
	b.metrics.MustRegister(b.health.Collector())

	auditLog, err := openAudit(cfg, log, b.metrics)
	if err != nil {
		return err
	}
	defer auditLog.Close()
	b.audit = auditLog
	stopTracing, err := b.startTracing()
	if err != nil {
		return err
	}
	defer stopTracing()
	return b.run(ctx, st)
}

type broker struct {
	cfg     *config.Broker
	log     *slog.Logger
	started time.Time
	metrics *prometheus.Registry
	health  *health.Tracker
	audit   *audit.Log
	tracer  *tracing.Tracer // nil if not wanted

	ca       *authority
	holders  *holders
	networks *networks
	gate     *gate
	clients  *enroll.Clients
	cert     *serverCert
	tenants  *tenant.Registry
	tokens   *enroll.Tokens
	nodes    *enroll.Nodes
	board    *switchboard.Board
	acceptor *tunnel.Acceptor
	egress   *egress.Server
	front    *front.Server
	sidecars *sidecars
	door     *strangers.Door                   // of the public port, TCP and UDP
	hosts    *hostsfile.Files                  // nil if not wanted
	peers    *elsewhere                        // nil: there is one broker
	kamaji   atomic.Pointer[kamaji.Controller] // nil if not wanted, or not yet

	admitted atomic.Uint64 // sessions that were let in so far

	serving  atomic.Bool // there are sessions to drain
	draining atomic.Bool // nobody new is let in

	events    sync.WaitGroup  // what goes on by itself: events at tenants, sessions being closed
	eventsCtx context.Context // bounds them; set before anything is served
}

// run runs until ctx ends and what it ends was drained.
func (b *broker) run(ctx context.Context, st *store.Store) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		if b.serving.Load() {
			b.drain(work)
		}
		stop()
	})()
	return b.runWhole(work, st)
}

func (b *broker) runWhole(ctx context.Context, st *store.Store) error {
	if err := b.assemble(ctx, st); err != nil {
		return err
	}
	ln, err := b.listen(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.tenants.Run(ctx) })
	g.Go(func() error { return b.health.Run(ctx) })
	g.Go(func() error { return b.watchStore(ctx, st) })
	g.Go(func() error { return b.ca.watch(ctx) })
	g.Go(func() error { return b.reportCA(ctx) })
	g.Go(func() error { return b.trim(ctx) })
	if err := b.tenants.WaitSynced(ctx); err != nil {
		ln.close()
		return errors.Join(err, g.Wait())
	}
	b.keepHosts(ctx, g, st)
	b.watchNodes(ctx, g, st)
	b.learnNetworks(ctx, g)
	b.serve(ctx, g, st, ln)
	err = g.Wait()
	ln.close()      // what served on them has closed most of them
	b.events.Wait() // nothing of what ended can begin another
	return err
}

// keepHosts keeps the tenants' hosts files, if they are wanted. It returns when they are up to date: what an
// operator adds later has its place in them when the command that adds it is done.
func (b *broker) keepHosts(ctx context.Context, g *errgroup.Group, st *store.Store) {
	if b.hosts == nil {
		return
	}
	cancel := b.tenants.Subscribe(func(t tenant.Tenant, deleted bool) { b.hosts.Tenant(t.Name, deleted) })
	upToDate := make(chan struct{})
	g.Go(func() error {
		defer cancel()
		return enroll.WatchNodes(ctx, st, func() { b.hosts.Begin(); close(upToDate) }, b.hosts.Node)
	})
	select {
	case <-upToDate:
	case <-ctx.Done():
	}
}

// assemble makes the parts; none of them does anything yet.
func (b *broker) assemble(ctx context.Context, st *store.Store) (err error) {
	if b.ca, err = openAuthority(ctx, st, b.cfg.TrustDomain, b.log); err != nil {
		return err
	}
	b.holders, b.gate = newHolders(b.ca.Keyring, b.log), newGate()
	reset, err := loadResetKey(ctx, st)
	if err != nil {
		return err
	}
	b.cert = newServerCert(b.ca.Keyring, b.cfg)
	b.ca.changed = b.caChanged
	if _, err := b.cert.get(); err != nil { // now, and not in every handshake of a broker that seems well
		return err
	}
	b.metrics.MustRegister(&expiryCollector{ring: b.ca.Keyring, cert: b.cert})
	if b.cfg.Egress.HostsDir != "" {
		if b.hosts, err = hostsfile.New(b.cfg.Egress.HostsDir, b.log); err != nil {
			return err
		}
	}
	b.tenants = tenant.NewRegistry(st, b.log)
	b.tenants.Domain = b.cfg.Front.Domain
	b.metrics.MustRegister(b.tenants)
	b.tokens = enroll.NewTokens(st, nil, b.log)
	b.tokens.Audit = b.audit
	b.nodes = enroll.NewNodes(st, b.log)
	b.clients = enroll.NewClients(b.tenants, nil)
	if err := b.newPeers(st); err != nil {
		return err
	}
	b.networks = newNetworks(b.log)
	board := switchboard.Config{Registerer: b.metrics, Logger: b.log}
	if b.peers != nil {
		board.Elsewhere = b.peers
	}
	b.board = switchboard.New(board)
	b.sidecars = newSidecars(b.metrics, b.log, b.stillSidecar)
	b.door = b.newDoor()
	t := b.cfg.Tunnel
	b.acceptor = tunnel.NewAcceptor(tunnel.AcceptorConfig{
		TLS: b.serverTLS(pki.ServerOptions{}, pki.RoleNode, pki.RoleAPIServer),
		Config: tunnel.Config{
			Hello:             func() wire.Hello { return wire.Hello{Version: version.Version} },
			Handler:           b.serveStream,
			OnStatus:          b.holders.onStatus,
			HeartbeatInterval: t.HeartbeatInterval.Duration,
			HeartbeatTimeout:  t.HeartbeatTimeout.Duration,
			MaxStreams:        t.MaxStreams,
			MaxPending:        t.MaxPending,
			Logger:            b.log,
			Metrics:           tunnel.NewMetrics(b.metrics),
		},
		Adjust:            b.adjustSession,
		OnSession:         b.serveSession,
		Enter:             b.enter,
		StatelessResetKey: &reset,
		Logger:            b.log,
	})
	return nil
}

// serverTLS is the broker's side of TLS, with clients of these roles.
func (b *broker) serverTLS(o pki.ServerOptions, roles ...pki.Role) *tls.Config {
	return pki.ServerTLS(b.cert.get, pki.VerifyPeer(b.ca.pool, x509.ExtKeyUsageClientAuth, time.Now, b.has(roles...)), o)
}

// egressTLS is that of the egress port, where each dial of an API server is a handshake: see docs/decisions/0024.
func (b *broker) egressTLS() *tls.Config {
	verify := pki.VerifyRepeated(b.ca.pool, x509.ExtKeyUsageClientAuth, time.Now, b.has(pki.RoleAPIServer))
	return pki.ServerTLS(b.cert.withoutRoots, verify, pki.ServerOptions{AllowTLS12: true, ClassicKeyExchange: true, NextProtos: []string{"http/1.1"}})
}

// has makes a check that an identity is one of ours and has one of these roles.
func (b *broker) has(roles ...pki.Role) func(pki.Identity) error {
	return func(id pki.Identity) error {
		if id.TrustDomain != b.cfg.TrustDomain || !slices.Contains(roles, id.Role) {
			return fmt.Errorf("identity %s has none of the roles %v of %s", id, roles, b.cfg.TrustDomain)
		}
		return nil
	}
}

// serve starts everything that listens. Each part ends with ctx.
func (b *broker) serve(ctx context.Context, g *errgroup.Group, st *store.Store, ln *listeners) {
	clients := b.clients
	minter := enroll.NewMinter(st, clients, nil)
	enrolMetrics := enroll.NewMetrics(b.metrics)
	enrolSrv := httpServer(ctx, enroll.NewServer(enroll.ServerConfig{
		Issuer: b.ca.Keyring, Roots: b.ca.pool,
		Tokens: b.tokens, Nodes: b.nodes, Tenants: b.tenants, Clients: clients, Minter: minter,
		CertificateTTL: b.cfg.Identity.NodeCertificateTTL.Duration, ExpiredGrace: b.cfg.Identity.ExpiredGrace.Duration,
		KubeletConfig: b.cfg.Kubelet.Config,
		Logger:        b.log, Metrics: enrolMetrics, Audit: b.audit,
	}), b.log)
	enrolSrv.TLSConfig = b.serverTLS(pki.ServerOptions{Clients: pki.ClientUnverified, NextProtos: []string{enrollapi.ALPN}}, pki.RoleNode)
	// One connection, one request: it counts as a stranger's until it is closed, that is answered.
	enrolSrv.SetKeepAlivesEnabled(false)
	enrolConns := listen.NewHanded(ln.tcp.Addr())

	agents := b.newKonnectivity(ln.tcp.Addr())
	b.front = b.newFront(enrolConns, agents)
	b.egress = egress.New(egress.Config{
		TLS:       b.egressTLS(),
		Authorize: b.authorizeEgress, Dialer: b.board, Registerer: b.metrics, Logger: b.log, Audit: b.audit,
		MaxPending: b.cfg.Egress.MaxPending, Enter: b.newEgressDoor().Enter, Tracer: b.tracer,
	})
	approver := enroll.NewApprover(enroll.ApproverConfig{
		Nodes: b.nodes, Attester: b.attester(), Bootstrap: minter, Audit: b.audit, Logger: b.log, Metrics: enrolMetrics,
	})
	approvals := enroll.NewManager(b.tenants, "approval of certificate requests", approver.Run, b.log)
	access := enroll.NewAccess(enroll.AccessConfig{Logger: b.log, Konnectivity: b.cfg.Konnectivity.Enabled})
	keeper := enroll.NewKeeper(enroll.KeeperConfig{
		Tenants: b.tenants, Sweeper: minter, Access: access, Health: b.health, Logger: b.log, Metrics: enrolMetrics,
	})
	accounts := enroll.NewManager(b.tenants, "care for the broker's account", keeper.Run, b.log)
	adm := b.admin(st, access, minter)
	adminSrv := httpServer(ctx, adm.Handler(), b.log)
	adminSrv.ConnContext = admin.ConnContext

	b.servePeers(ctx, g, ln.peers)
	b.serveKonnectivity(ctx, g, agents)
	g.Go(func() error { return serveHTTPS(ctx, enrolSrv, enrolConns) })
	g.Go(func() error {
		defer b.cutRemoved()()
		return b.front.Serve(ctx, ln.tcp)
	})
	g.Go(func() error { return b.acceptor.ServeQUIC(ctx, ln.udp) })
	g.Go(func() error {
		defer b.watchTenants()()
		return b.egress.Serve(ctx, ln.egress)
	})
	g.Go(func() error { return b.tokens.Run(ctx, st, enrolMetrics) })
	g.Go(func() error { return approvals.Run(ctx) })
	g.Go(func() error { return accounts.Run(ctx) })
	g.Go(func() error { return b.runKamaji(ctx, adm) })
	g.Go(func() error { return b.runFiles(ctx, adm) })
	g.Go(func() error { return serveHTTP(ctx, adminSrv, ln.admin) })
	if ln.health != nil {
		g.Go(func() error { return serveHTTP(ctx, httpServer(ctx, b.health.Handler(b.metrics), b.log), ln.health) })
	}
	b.health.Set(condFront, health.True, "Listening", "edge nodes are served on "+ln.tcp.Addr().String()+" (TCP and UDP)")
	b.health.Set(condEgress, health.True, "Listening", "API servers are served on "+ln.egress.Addr().String())
	b.serving.Store(true)
}

// admin is what operators ask, over the admin socket.
func (b *broker) admin(st *store.Store, access *enroll.Access, minter *enroll.SecretMinter) *admin.Broker {
	return &admin.Broker{
		Provision: access.Provision,
		Tenants:   b.tenants, Tokens: b.tokens, Nodes: b.nodes, Claims: enroll.NewClaims(st, nil, b.log), Board: b.board,
		Konnectivity: b.cfg.Konnectivity.Enabled,
		Bootstraps:   minter, CA: b.ca, Health: b.health,
		Holders: b.holders.list, EgressCerts: egressCerts{st}, Sidecars: b.sidecars,
		Purge: func(ctx context.Context, tenant string) error {
			return errors.Join(enroll.Purge(ctx, st, tenant, b.log), egressCerts{st}.purge(ctx, tenant))
		},
		PublicEndpoint: b.cfg.Front.PublicEndpoint, EgressEndpoint: b.cfg.Egress.PublicEndpoint,
		ProxyToUpstreams: b.cfg.Front.ProxyProtocol.ToUpstreams,
		Started:          b.started, Logger: b.log, Audit: b.audit,
	}
}

// openAudit opens the audit log that the configuration names.
func openAudit(cfg *config.Broker, log *slog.Logger, reg prometheus.Registerer) (*audit.Log, error) {
	switch cfg.Audit.Path {
	case "-":
		return audit.New(os.Stdout, log, reg), nil
	case "":
		// The store makes the data directory too, but later.
		if err := durable.MkdirAll(cfg.DataDir, 0o700); err != nil {
			return nil, err
		}
		return audit.Open(filepath.Join(cfg.DataDir, "audit.log"), log, reg)
	}
	return audit.Open(cfg.Audit.Path, log, reg)
}

// watchStore is the broker's heart: it goes round as long as the store answers, and the watchdog
// beats with it.
func (b *broker) watchStore(ctx context.Context, st *store.Store) error {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		probe, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := st.Get(probe, caKey)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			b.health.Set(condStore, health.False, "NotAnswering", "the store does not answer: "+err.Error())
		default:
			b.health.Set(condStore, health.True, "Answering", "the store answers")
			b.health.Beat()
		}
		select {
		case <-tick.C:
		case <-st.Done():
			return errors.New("the embedded store stopped by itself: see the log above")
		case <-ctx.Done():
			return nil
		}
	}
}
