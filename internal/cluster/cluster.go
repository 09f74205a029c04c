// Package cluster learns of each tenant's network from its API server, and tells of it: which addresses are of which
// node's pods, which are Services' and on which nodes what is behind them runs, and where the control plane is advertised.
//
// It believes the API server alone, never a node. What it has told stays in use while the API server is away. It moves
// no bytes and decides on none: who does is told by calls.
package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// ConditionTenantNetwork is True while every tenant's network is known, or was when its API server was last heard.
const ConditionTenantNetwork = "TenantNetwork"

const (
	// rangesEvery is how often the ranges of Services are asked for; they are not watched, for they hardly ever change.
	rangesEvery = 2 * time.Minute
	rangesMin   = time.Second
	// settle is how long changes are gathered before they are told.
	settle         = 100 * time.Millisecond
	apiCallTimeout = 30 * time.Second
)

// Board is told what is learned; *switchboard.Board.
type Board interface {
	SetNodes(tenant string, nodes map[string]switchboard.Node)
	SetServiceRanges(tenant string, ranges []netip.Prefix)
	SetServices(tenant string, services map[netip.Addr]switchboard.Backends)
}

// Config is what a Learner is made of. Board, Tell, NewClient and Logger are needed.
type Config struct {
	Board Board
	// Tell is called with what nodes are to know, whenever that has changed. It must not block.
	Tell func(tenant string, n wire.Network)
	// NewClient makes the client of a tenant's API server.
	NewClient func(tenant.Tenant) (kubernetes.Interface, error)
	Health    *health.Tracker // nil = tell nobody
	Logger    *slog.Logger
}

// Learner learns. Safe for concurrent use.
type Learner struct {
	cfg Config

	mu       sync.Mutex
	problems map[string]string // guarded by mu; of the runs that are going, by tenant; "" = none
}

// New makes a Learner; it starts nothing.
func New(cfg Config) *Learner { return &Learner{cfg: cfg, problems: map[string]string{}} }

// Run learns of one tenant's network until ctx ends. It may run for many tenants at once.
func (l *Learner) Run(ctx context.Context, t tenant.Tenant) error {
	client, err := l.cfg.NewClient(t)
	if err != nil {
		return err
	}
	log := l.cfg.Logger.With("tenant", t.Name)
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, logr.FromSlogHandler(log.Handler())))
	defer cancel()
	r := &run{learner: l, tenant: t, client: client, log: log, nodesKick: make(chan struct{}, 1), servicesKick: make(chan struct{}, 1)}
	if err := r.watch(); err != nil {
		return fmt.Errorf("tenant %s: watch its network: %w", t.Name, err)
	}
	l.set(t.Name, "")
	defer l.forget(t.Name)
	var wg sync.WaitGroup
	for _, i := range []cache.SharedIndexInformer{r.nodes, r.services, r.slices} {
		wg.Go(func() { i.RunWithContext(ctx) })
	}
	wg.Go(func() { follow(ctx, r.nodesKick, r.tellNodes, r.nodes.HasSynced) })
	wg.Go(func() { follow(ctx, r.servicesKick, r.tellServices, r.services.HasSynced, r.slices.HasSynced) })
	wg.Go(func() { r.ranges(ctx) })
	wg.Wait()
	return context.Cause(ctx)
}

// run is one Run.
type run struct {
	learner *Learner
	tenant  tenant.Tenant
	client  kubernetes.Interface
	log     *slog.Logger

	nodes, services, slices cache.SharedIndexInformer
	nodesKick, servicesKick chan struct{} // hold one: something has changed

	mu   sync.Mutex
	told wire.Network // guarded by mu
}

// watch makes the informers.
func (r *run) watch() error {
	r.nodes = coreinformers.NewNodeInformer(r.client, 0, cache.Indexers{})
	r.services = coreinformers.NewServiceInformer(r.client, metav1.NamespaceAll, 0, cache.Indexers{})
	r.slices = discoveryinformers.NewEndpointSliceInformer(r.client, metav1.NamespaceAll, 0, cache.Indexers{})
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		strip    cache.TransformFunc
		kick     chan struct{}
	}{{r.nodes, stripNode, r.nodesKick}, {r.services, stripService, r.servicesKick}, {r.slices, stripSlice, r.servicesKick}} {
		if err := w.informer.SetTransform(w.strip); err != nil {
			return err
		}
		if err := w.informer.SetWatchErrorHandlerWithContext(r.watchFailed); err != nil {
			return err
		}
		_, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { kick(w.kick) },
			UpdateFunc: func(old, now any) {
				if !same(old, now) {
					kick(w.kick)
				}
			},
			DeleteFunc: func(any) { kick(w.kick) },
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) watchFailed(ctx context.Context, _ *cache.Reflector, err error) {
	if ctx.Err() != nil {
		return
	}
	r.log.Debug("watch of the tenant's network failed, trying again", "err", err)
	if apierrors.IsForbidden(err) {
		r.learner.set(r.tenant.Name, "the broker's account may not see it")
	}
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// follow calls tell once all is there, and then after changes.
func follow(ctx context.Context, kicked <-chan struct{}, tell func(), synced ...cache.InformerSynced) {
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return
	}
	tell()
	for {
		select {
		case <-kicked:
		case <-ctx.Done():
			return
		}
		if !pause(ctx, settle) {
			return
		}
		tell()
	}
}

// pause waits; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (r *run) tellNodes() {
	nodes := nodesOf(r.nodes.GetStore().List())
	r.learner.cfg.Board.SetNodes(r.tenant.Name, nodes)
	r.log.Debug("the pod networks of the tenant's nodes are known", "nodes", len(nodes))
}

func (r *run) tellServices() {
	slices := r.slices.GetStore().List()
	r.learner.cfg.Board.SetServices(r.tenant.Name, backendsOf(r.services.GetStore().List(), slices))
	r.learner.set(r.tenant.Name, "")
	// An API server that stops takes itself off the list, and a list of none would leave pods nothing to come back to.
	if at := apiServersOf(slices); len(at) > 0 {
		r.tell(func(n *wire.Network) { n.APIServers = at })
	}
}

// tell changes what nodes are to know.
func (r *run) tell(change func(*wire.Network)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.told
	change(&now)
	if slices.Equal(now.ServiceCIDRs, r.told.ServiceCIDRs) && slices.Equal(now.APIServers, r.told.APIServers) {
		return
	}
	r.told = now
	r.learner.cfg.Tell(r.tenant.Name, now)
}

// ranges keeps asking for the ranges of Services, until ctx ends.
func (r *run) ranges(ctx context.Context) {
	for wait := rangesMin; ; {
		next := rangesEvery
		ranges, err := r.rangesNow(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.log.Debug("the ranges of the tenant's Services can't be learned, trying again", "err", err)
			next, wait = wait, min(2*wait, rangesEvery)
		case len(ranges) > 0:
			wait = rangesMin
			r.learner.cfg.Board.SetServiceRanges(r.tenant.Name, ranges)
			r.tell(func(n *wire.Network) { n.ServiceCIDRs = ranges[:min(len(ranges), wire.MaxServiceCIDRs)] })
		}
		if !pause(ctx, next) {
			return
		}
	}
}

func (r *run) rangesNow(ctx context.Context) ([]netip.Prefix, error) {
	if len(r.tenant.ServiceCIDRs) > 0 {
		return r.tenant.ServiceCIDRs, nil // the operator's word
	}
	ctx, cancel := context.WithTimeout(ctx, apiCallTimeout)
	defer cancel()
	return serviceRanges(ctx, r.client)
}

func (l *Learner) set(name, problem string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.problems[name] = problem
	l.say()
}

func (l *Learner) forget(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.problems, name)
	l.say()
}

// say sets the condition. l.mu is held.
func (l *Learner) say() {
	if l.cfg.Health == nil {
		return
	}
	var bad []string
	for _, name := range slices.Sorted(maps.Keys(l.problems)) {
		if p := l.problems[name]; p != "" {
			bad = append(bad, fmt.Sprintf("tenant %s: %s: run `broker tenant update %s --kubeconfig FILE` with an administrator's", name, p, name))
		}
	}
	if len(bad) > 0 {
		l.cfg.Health.Set(ConditionTenantNetwork, health.False, "NotPermitted",
			"pods and Services are not reached where the network is not known. "+strings.Join(bad, "; "))
		return
	}
	l.cfg.Health.Set(ConditionTenantNetwork, health.True, "Watched", fmt.Sprintf("the networks of %d tenant(s) are watched", len(l.problems)))
}
