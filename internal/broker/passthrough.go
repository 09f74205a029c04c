package broker

import (
	"net/netip"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/front"
	"github.com/mooring-edge/mooring/internal/listen"
	"github.com/mooring-edge/mooring/internal/strangers"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// newFront makes the public port on TCP: nodes and enrolment by protocol, tenants' API servers by name.
func (b *broker) newFront(enrolment *listen.Handed, agents *konnectivityAgents) *front.Server {
	cfg := b.cfg.Front
	var balancers []netip.Prefix
	for _, s := range cfg.ProxyProtocol.Trusted {
		if n, err := netip.ParsePrefix(s); err == nil { // it was validated
			balancers = append(balancers, n)
		}
	}
	inside := strangers.NewDoor(strangers.Config{Port: "passthrough", Registerer: b.metrics, Logger: b.log, Limits: strangers.Limits{
		Max: cfg.Passthrough.MaxConnections, MaxPerSource: cfg.Passthrough.MaxPerSource,
	}})
	return front.New(front.Config{
		Routes: []front.Route{
			{Protocol: wire.ALPN, Serve: b.acceptor.ServeConn},
			{Protocol: enrollapi.ALPN, Serve: enrolment.Hand},
		},
		Named: agents.routes(),
		Passthrough: front.Passthrough{
			Upstreams: b.tenants, Enter: inside.Enter, MaxPerTenant: cfg.Passthrough.MaxPerTenant, DialTimeout: apiDialTimeout,
		},
		Balancers: balancers, MaxHeaders: cfg.Limits.MaxUnauthenticated,
		HelloTimeout: cfg.Limits.HelloTimeout.Duration, Enter: b.enter,
		Registerer: b.metrics, Logger: b.log,
	})
}

// cutRemoved cuts what is passed on to a tenant that is removed. What else changes of a tenant cuts nothing.
func (b *broker) cutRemoved() (cancel func()) { return b.whenRemoved(b.front.Forget) }

// whenRemoved calls removed for each tenant that is removed, also where another of its name has come so soon that its going
// was not seen.
func (b *broker) whenRemoved(removed func(name string)) (cancel func()) {
	created := map[string]time.Time{}
	return b.tenants.Subscribe(func(t tenant.Tenant, deleted bool) {
		was, known := created[t.Name]
		if deleted || known && !was.Equal(t.CreatedAt) {
			removed(t.Name)
		}
		if created[t.Name] = t.CreatedAt; deleted {
			delete(created, t.Name)
		}
	})
}
