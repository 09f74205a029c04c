package broker

import (
	"context"
	"log/slog"
	"reflect"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mooring-edge/mooring/internal/cluster"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// networks tells each live session of its tenant's network, when it begins and when that changes. Safe for concurrent use.
type networks struct {
	log *slog.Logger

	mu    sync.Mutex                               // guards the following fields
	live  map[string]map[*tunnel.Session]*listener // by tenant
	known map[string]*wire.Network                 // by tenant; never changed, but replaced
}

// listener is one session.
type listener struct {
	s      *tunnel.Session
	id     pki.Identity
	pushes sync.WaitGroup

	mu   sync.Mutex    // held while it is told, so that the last word is the newest; guards the following field
	sent *wire.Network // what it was told last
}

func newNetworks(log *slog.Logger) *networks {
	return &networks{log: log, live: map[string]map[*tunnel.Session]*listener{}, known: map[string]*wire.Network{}}
}

// enter takes up a session that was let in. leave is to be called when it has ended.
func (n *networks) enter(s *tunnel.Session, id pki.Identity) (leave func()) {
	l := &listener{s: s, id: id}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.live[id.Tenant] == nil {
		n.live[id.Tenant] = map[*tunnel.Session]*listener{}
	}
	n.live[id.Tenant][s] = l
	n.tell(l)
	return func() {
		n.mu.Lock()
		delete(n.live[id.Tenant], s)
		if len(n.live[id.Tenant]) == 0 {
			delete(n.live, id.Tenant)
		}
		n.mu.Unlock()
		l.pushes.Wait()
	}
}

// set says what a tenant's network is now, and tells its nodes.
func (n *networks) set(tenant string, now wire.Network) {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.known[tenant]
	if was != nil { // a run that begins anew learns one thing after the other
		if len(now.ServiceCIDRs) == 0 {
			now.ServiceCIDRs = was.ServiceCIDRs
		}
		if len(now.APIServers) == 0 {
			now.APIServers = was.APIServers
		}
		if reflect.DeepEqual(*was, now) {
			return
		}
	}
	n.known[tenant] = &now
	for _, l := range n.live[tenant] {
		n.tell(l)
	}
}

func (n *networks) forget(tenant string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.known, tenant)
}

func (n *networks) of(tenant string) *wire.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known[tenant]
}

// tell tells a session in a goroutine of its own. n.mu is held.
func (n *networks) tell(l *listener) {
	if n.known[l.id.Tenant] == nil {
		return
	}
	l.pushes.Go(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		now := n.of(l.id.Tenant)
		if now == nil || l.sent == now {
			return
		}
		if err := l.s.SendNetwork(*now); err != nil {
			n.log.Debug("network not sent", "tenant", l.id.Tenant, "node", l.id.Name, "err", err)
			return
		}
		l.sent = now
	})
}

// learnNetworks keeps the tenants' networks known, until ctx ends.
func (b *broker) learnNetworks(ctx context.Context, g *errgroup.Group) {
	learner := cluster.New(cluster.Config{Board: b.board, Tell: b.networks.set, NewClient: enroll.NewClient, Health: b.health, Logger: b.log})
	learning := enroll.NewManager(b.tenants, "learning of the tenant's network", learner.Run, b.log)
	learning.Gone = func(t tenant.Tenant) { // no sooner, for what goes on learning would bring it back
		b.board.ForgetCluster(t.Name)
		b.networks.forget(t.Name)
	}
	g.Go(func() error { return learning.Run(ctx) })
}
