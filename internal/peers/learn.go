package peers

import (
	"encoding/json"
	"net/netip"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/store"
)

func (d *Directory) applyBroker(ev store.Event) {
	id := strings.TrimPrefix(ev.Key, brokerPrefix)
	var rec brokerRecord
	if !ev.Deleted {
		if err := json.Unmarshal(ev.Value, &rec); err != nil {
			d.cfg.Logger.Warn("another broker's record in the store can't be read", "broker", id, "err", err)
			return
		}
	}
	if id == d.id {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if ev.Deleted {
		delete(d.brokers, id)
		d.cfg.Logger.Info("another broker is gone", "broker", id)
		return
	}
	d.brokers[id] = rec.Address
	d.cfg.Logger.Info("another broker is there", "broker", id, "address", rec.Address)
}

func (d *Directory) applyRoute(ev store.Event) {
	tenant, node, ok := strings.Cut(strings.TrimPrefix(ev.Key, routePrefix), "/")
	var r Route
	if ok && !ev.Deleted {
		ok = json.Unmarshal(ev.Value, &r) == nil && r.Broker != ""
	}
	if !ok {
		d.cfg.Logger.Warn("a node's route in the store can't be read", "key", ev.Key)
		return
	}
	p := place{tenant, node}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.revs, p)
	d.forget(p)
	own := d.here[p]
	switch {
	case r.Broker == d.id:
		d.revs[p] = ev.Rev
		if own == nil {
			d.soil(p)
		}
		return
	case !ev.Deleted:
		d.remember(p, r)
	}
	if own != nil && (ev.Deleted || !own.yields) {
		// It moved, as a rule, and its session here is about to end. If not, the other's claim is the older one.
		time.AfterFunc(contested, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.here[p] == own {
				d.soil(p)
			}
		})
	}
}

// remember and forget are called with d.mu held.
func (d *Directory) remember(p place, r Route) {
	t := d.tenants[p.tenant]
	if t == nil {
		t = &tenantRoutes{map[string]Route{}, map[netip.Addr]map[string]struct{}{}}
		d.tenants[p.tenant] = t
	}
	t.nodes[p.node] = r
	for _, a := range r.Addresses {
		if t.addresses[a] == nil {
			t.addresses[a] = map[string]struct{}{}
		}
		t.addresses[a][p.node] = struct{}{}
	}
}

func (d *Directory) forget(p place) {
	t := d.tenants[p.tenant]
	if t == nil {
		return
	}
	for _, a := range t.nodes[p.node].Addresses {
		delete(t.addresses[a], p.node)
		if len(t.addresses[a]) == 0 {
			delete(t.addresses, a)
		}
	}
	delete(t.nodes, p.node)
	if len(t.nodes) == 0 {
		delete(d.tenants, p.tenant)
	}
}
