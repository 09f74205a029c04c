// Package agent composes what runs on an edge node: enrolment and kubelet bootstrap (pkg/join), the
// connection to the broker (pkg/tunnel), the local API endpoint, the dial policy, and the health and
// status that others see.
//
// The order of things is: identity, tunnel, bootstrap through the tunnel, kubelet. A node that has all
// its files starts its kubelet first, so that a box that boots while it is cut off does its work; and
// nothing here stops a kubelet because the broker is away or the agent ends.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/version"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/join"
	"github.com/mooring-edge/mooring/pkg/join/kubelet"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// The conditions, in the order in which each waits for the one before.
const (
	condEnrolled  = "Enrolled"
	condTunnel    = "Tunnel"
	condBootstrap = "Bootstrapped"
	condKubelet   = "Kubelet"
)

// These say more of a node that is ready or not.
const (
	condCertificate = "Certificate"
	condClock       = "Clock"
	condStorage     = "Storage"
	condNetwork     = "ClusterNetwork"
	condAdvertise   = "APIForPods"

	// reasonPending is the reason of condEnrolled while an operator has to approve the box.
	reasonPending = "Pending"
)

const (
	// tickInterval is how often the tunnel's loop shows that it goes round; beatLimit is when it counts as stuck.
	tickInterval = 10 * time.Second
	beatLimit    = 60 * time.Second
	// maintainInterval is how often the certificates are looked at.
	maintainInterval = 5 * time.Minute
	// probeMax is how many times tunnel.probeInterval the time between two probes of QUIC grows to.
	probeMax = 30
)

// Agent is one node's agent.
type Agent struct {
	cfg          *config.Agent
	logger       *slog.Logger
	configured   []netip.Addr   // node.addresses
	serviceCIDRs []netip.Prefix // dial.serviceCIDRs
	serial       string         // the machine's; may be empty
	joiner       *join.Joiner
	health       *health.Tracker
	registry     *prometheus.Registry
	metrics      *metrics
	client       *tunnel.Client
	lineage      *lineage
	console      *console
	proxy        func(*url.URL) (*url.URL, error)

	changing    sync.Mutex          // orders what changes the identity
	nudges      chan join.Nudge     // holds one
	bundles     chan bundleOf       // holds one
	told        chan wire.Network   // holds one: what the broker told last
	podCIDRs    chan []netip.Prefix // holds one: what the API server said last
	networkWoke chan struct{}       // holds one
	kubeletWoke chan struct{}       // holds one: look at the kubelet's certificate now

	write        func(path string, data []byte, perm fs.FileMode) error
	setTime      func(time.Time) error
	setFailed    bool // of watchClock alone
	storageEvery time.Duration

	tunnelRuns atomic.Bool                    // the tunnel's loop gives the beat from then on
	session    atomic.Pointer[tunnel.Session] // the live one, or nil
	identity   atomic.Pointer[join.Identity]  // once enrolled
	addresses  atomic.Pointer[[]netip.Addr]   // what the last hello attested
	kubeletAt  atomic.Pointer[netip.AddrPort] // where the kubelet listens, once that is rendered
	kubelet    atomic.Pointer[kubelet.State]  // as its runner saw it last
	reach      atomic.Pointer[reach]          // beside the kubelet; nil: nothing yet
}

// Options are what does not stand in the configuration file.
type Options struct {
	Logger *slog.Logger
	// Bundle reads the join bundle. Default: the configured joinFile, or else the service manager's credential mooring.join.
	Bundle func() (join.Bundle, error)
	// StopOnRefusal has a refusal by the broker end Join instead of being tried again.
	StopOnRefusal bool

	// For tests.
	now          func() time.Time
	write        func(path string, data []byte, perm fs.FileMode) error
	setTime      func(time.Time) error
	storageEvery time.Duration
	issuerSpread time.Duration
}

// New puts an agent together. It starts nothing and touches no file.
func New(cfg *config.Agent, o Options) (*Agent, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Bundle == nil {
		o.Bundle = func() (join.Bundle, error) {
			b, _, err := findBundle(cfg, os.Getenv("CREDENTIALS_DIRECTORY"))
			return b, err
		}
	}
	name, err := nodeName(cfg.Node.Name)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, logger: o.Logger, registry: prometheus.NewRegistry(), console: &console{}, proxy: proxyFor(cfg.Tunnel),
		nudges: make(chan join.Nudge, 1), bundles: make(chan bundleOf, 1), kubeletWoke: make(chan struct{}, 1),
		told: make(chan wire.Network, 1), podCIDRs: make(chan []netip.Prefix, 1), networkWoke: make(chan struct{}, 1),
		write: o.write, setTime: o.setTime, storageEvery: o.storageEvery,
	}
	if a.write == nil {
		a.write = durable.WriteFile
	}
	if a.setTime == nil {
		a.setTime = setSystemClock
	}
	if a.storageEvery <= 0 {
		a.storageEvery = storageInterval
	}
	for _, s := range cfg.Node.Addresses {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("node.addresses: %w", err)
		}
		a.configured = append(a.configured, addr)
	}
	if a.serviceCIDRs, err = parsePrefixes("dial.serviceCIDRs", cfg.Dial.ServiceCIDRs); err != nil {
		return nil, err
	}
	a.health = health.New(health.Config{
		Ready: []string{condEnrolled, condTunnel, condBootstrap, condKubelet}, BeatLimit: beatLimit, Logger: o.Logger,
	})
	a.registry.MustRegister(a.health.Collector(), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.metrics = newMetrics(a.registry)
	a.lineage = newLineage(cfg.StateDir, a.writeFile, o.Logger)
	a.serial = cfg.Node.Serial
	if a.serial == "" {
		a.serial = machineSerial("/")
	}
	a.joiner = join.New(join.Config{
		StateDir: cfg.StateDir, Bundle: o.Bundle, Endpoint: cfg.Tunnel.Endpoint, Proxy: a.proxy, Hostname: name, Serial: a.serial, Version: version.Version,
		APIAddress: cfg.APIAddress,
		Kubelet: join.Kubelet{
			RootDir: cfg.Kubelet.RootDir, Port: cfg.Kubelet.Port, Addresses: a.configured,
			ExtraArgs: cfg.Kubelet.ExtraArgs, Overlay: cfg.Kubelet.Config,
		},
		StopOnRefusal: o.StopOnRefusal,
		Report:        a.progress, Beat: a.beatBeforeTunnel,
		WriteFile: a.writeFile, Now: o.now, IssuerSpread: o.issuerSpread,
		Metrics: join.NewMetrics(a.registry), Logger: o.Logger,
	})
	a.client = a.newClient()
	return a, nil
}

// nodeName is the name asked for: the configured one, or the host's.
func nodeName(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("the host has no name: %w; set node.name", err)
	}
	return strings.ToLower(name), nil
}

// BundleOf converts a decoded bundle.
func BundleOf(b *config.JoinBundle) join.Bundle {
	return join.Bundle{Endpoint: b.Endpoint, Tenant: b.Tenant, Token: b.Token, CACertHashes: b.CACertHashes}
}

// newClient makes the tunnel's client, which keeps one session to the broker once it runs.
func (a *Agent) newClient() *tunnel.Client {
	dials := &kubeletDialer{policy: a.policy, logger: a.logger, metrics: a.metrics}
	shared := tunnel.NewMetrics(a.registry)
	return tunnel.NewClient(tunnel.ClientConfig{
		Dialer: func() *tunnel.Dialer {
			return &tunnel.Dialer{
				Endpoint: a.endpoint(), TLS: a.joiner.TLS(), Transport: tunnel.Transport(a.cfg.Tunnel.Transport), Proxy: a.proxy,
				Config: tunnel.Config{
					Hello: a.hello, Handler: dials.handle, OnBundle: a.onBundle, OnNetwork: a.onNetwork,
					HeartbeatInterval: a.cfg.Tunnel.HeartbeatInterval.Duration, HeartbeatTimeout: a.cfg.Tunnel.HeartbeatTimeout.Duration,
					Logger: a.logger, Metrics: shared,
				},
			}
		},
		OnUp: a.tunnelUp, OnDown: a.tunnelDown, Pace: a.pace,
		Tick: a.health.Beat, TickInterval: tickInterval,
		Network:  func() string { return networkName(context.Background(), a.wayOut()) },
		ProbeMin: a.cfg.Tunnel.ProbeInterval.Duration, ProbeMax: probeMax * a.cfg.Tunnel.ProbeInterval.Duration,
		Remembered: a.networks(), OnRemember: a.rememberNetworks,
		Logger: a.logger,
	})
}

// endpoint is the broker's address: the configured one, or the one enrolled at.
func (a *Agent) endpoint() string {
	if a.cfg.Tunnel.Endpoint != "" {
		return a.cfg.Tunnel.Endpoint
	}
	if id := a.identity.Load(); id != nil {
		return id.Endpoint
	}
	return ""
}

// wayOut is the first host:port on the way to the broker.
func (a *Agent) wayOut() string { return wayOut(a.proxy, a.endpoint()) }

// hello is what the node says of itself at the start of each session. The addresses are looked at anew:
// the box may have been carried to another network.
func (a *Agent) hello() wire.Hello {
	addrs := nodeAddresses(context.Background(), a.configured, a.wayOut())
	a.addresses.Store(&addrs)
	h := wire.Hello{Version: version.Version, Addresses: addrs, KubeletPort: uint16(a.cfg.Kubelet.Port)}
	a.lineage.next(&h)
	if id := a.identity.Load(); id != nil {
		h.Node = id.Node
	}
	return h
}

func (a *Agent) tunnelUp(s *tunnel.Session) {
	a.session.Store(s)
	a.metrics.up.Set(1)
	a.lookAgain()
	a.health.Set(condTunnel, health.True, "Up", fmt.Sprintf("connected to %s by %s", a.endpoint(), s.Transport()))
}

// lasting is how long a session must have been up to count as accepted by a broker that does not say so.
const lasting = 10 * time.Second

func (a *Agent) tunnelDown(err error) {
	_, away := turnedAway(err)
	if s := a.session.Swap(nil); s != nil && !away && time.Since(s.Stats().Since) >= lasting {
		a.lineage.accepted()
	}
	if closed := new(tunnel.ClosedError); errors.As(err, &closed) && closed.Remote && closed.Code == wire.Superseded {
		a.lineage.superseded()
	}
	a.metrics.up.Set(0)
	a.lookAgain() // the broker may have moved to where the control plane is advertised
	reason, message := a.whyDown(err)
	a.health.Set(condTunnel, health.False, reason, message)
	// A node that was removed may have been given a new token meanwhile, which the attempt to renew finds.
	if tunnel.CertificateRefused(err) || reason == "Revoked" {
		a.nudge(join.NudgeRefused)
	}
}

// beatBeforeTunnel stands for the tunnel's beat while there is no tunnel yet: enrolling is then all that
// the program does.
func (a *Agent) beatBeforeTunnel() {
	if !a.tunnelRuns.Load() {
		a.health.Beat()
	}
}

// progress turns a report of pkg/join into a condition.
func (a *Agent) progress(p join.Progress) {
	cond := map[join.Step]string{join.StepEnrol: condEnrolled, join.StepRenew: condCertificate, join.StepBootstrap: condBootstrap}[p.Step]
	if p.Err == nil {
		// A certificate that is being renewed is good until it is not.
		if r := a.health.Get(cond).Reason; r != "Failing" && r != reasonPending && p.Step != join.StepRenew {
			a.health.Set(cond, health.False, "InProgress", p.Doing)
		}
		return // why the last attempt failed says more than that there is another
	}
	message := p.Err.Error()
	if _, pending := join.Pending(p.Err); pending {
		a.pending(cond)
		return
	}
	if id := a.identity.Load(); p.Step == join.StepRenew && id != nil {
		what := "the node's certificate, good until %s, can't be renewed so far: %s"
		if id.Expired(a.joiner.Clock().Now()) {
			what = "the node's certificate expired on %s and can't be renewed so far: %s"
		}
		message = fmt.Sprintf(what, id.NotAfter().UTC().Format(time.RFC3339), message)
	}
	if p.RetryIn > 0 {
		message += fmt.Sprintf(" (trying again in %s)", p.RetryIn.Round(100*time.Millisecond))
	}
	// The log has each attempt; the condition changes with the reason only, so it is said here.
	a.logger.Warn("joining: "+string(p.Step)+" failed", "err", p.Err, "retry_in", p.RetryIn.Round(time.Millisecond).String())
	a.health.Set(cond, health.False, "Failing", message)
}

// pending says that the box waits for an operator, and by what the operator knows it.
func (a *Agent) pending(cond string) {
	key, _ := a.joiner.Fingerprint()
	message := "waiting for an operator to approve this box (`broker node pending`, `broker node approve`): key " + key
	if a.serial != "" {
		message += ", serial number " + a.serial
	}
	a.health.Set(cond, health.False, reasonPending, message)
	a.console.say(message)
}

// enrolled makes an identity known to all parts.
func (a *Agent) enrolled(id *join.Identity) {
	a.identity.Store(id)
	a.certificateState(id)
	a.health.Set(condEnrolled, health.True, "Enrolled", fmt.Sprintf("node %s of tenant %s", id.Node, id.Tenant))
}

// group runs functions until the first of them fails or ctx ends, and waits for all.
type group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func newGroup(ctx context.Context) *group {
	ctx, cancel := context.WithCancelCause(ctx)
	return &group{ctx: ctx, cancel: cancel}
}

func (g *group) start(f func(context.Context) error) {
	g.wg.Go(func() {
		if err := f(g.ctx); err != nil && !errors.Is(err, context.Canceled) {
			g.cancel(err)
		}
	})
}

// wait returns what ended the group; nil if it was the surrounding context.
func (g *group) wait(outer context.Context) error {
	<-g.ctx.Done()
	g.wg.Wait()
	if outer.Err() != nil {
		return nil
	}
	if err := context.Cause(g.ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
