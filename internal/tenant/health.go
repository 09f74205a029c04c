package tenant

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// probeEvery is how often an address that does not answer is tried again.
	probeEvery = 5 * time.Second
	// probeTimeout bounds one such try.
	probeTimeout = 3 * time.Second
	// maxProbes is how many are tried at one time.
	maxProbes = 16
)

// Upstream is what is known of one of a tenant's addresses.
type Upstream struct {
	Address string
	// Err is why it counts as down; nil: it is up, or was not needed yet.
	Err error
	// Since is when it went down.
	Since time.Time
}

// health knows which addresses are down: those at which the last dial failed, until one succeeds. While an address is down
// it is dialled after the others, and tried by itself. Nothing is held while anything is dialled.
type health struct {
	dialOne func(ctx context.Context, address string) (net.Conn, error)
	log     *slog.Logger

	mu   sync.Mutex // guards the following
	down map[place]Upstream
}

// place is one tenant's address: two tenants behind one balancer are two matters.
type place struct{ tenant, address string }

func newHealth(log *slog.Logger) *health {
	return &health{dialOne: dialTCP, log: log, down: map[place]Upstream{}}
}

// of tells how the tenant's addresses are, in the tenant's order.
func (h *health) of(t Tenant) []Upstream {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Upstream
	for _, a := range t.Addresses() {
		u, ok := h.down[place{t.Name, a}]
		if !ok {
			u = Upstream{Address: a}
		}
		out = append(out, u)
	}
	return out
}

// dial opens a connection to the tenant's API server.
func (h *health) dial(ctx context.Context, t Tenant) (net.Conn, error) {
	all := h.of(t)
	slices.SortStableFunc(all, func(a, b Upstream) int { return boolInt(a.Err != nil) - boolInt(b.Err != nil) })
	order := make([]string, len(all))
	for i, u := range all {
		order[i] = u.Address
	}
	c, seen, err := dialFirst(ctx, order, h.dialOne)
	for _, v := range seen {
		h.note(t.Name, v)
	}
	if err != nil {
		return nil, fmt.Errorf("tenant %s: dial API server: %w", t.Name, err)
	}
	return c, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// note keeps what a dial showed, and logs what it changed.
func (h *health) note(tenant string, v verdict) {
	p := place{tenant, v.address}
	h.mu.Lock()
	was, down := h.down[p]
	switch {
	case v.err == nil:
		delete(h.down, p)
	case down:
		was.Err = v.err
		h.down[p] = was
	default:
		h.down[p] = Upstream{Address: v.address, Err: v.err, Since: time.Now()}
	}
	h.mu.Unlock()
	switch {
	case v.err == nil && down:
		h.log.Info("API server answers again", "tenant", tenant, "address", v.address, "after", time.Since(was.Since).Round(time.Second))
	case v.err != nil && !down:
		h.log.Warn("API server does not answer at this address", "tenant", tenant, "address", v.address, "err", v.err)
	}
}

// run tries what is down, until ctx ends. lookup says whether a tenant is there still.
func (h *health) run(ctx context.Context, lookup func(name string) (Tenant, bool)) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			h.probe(ctx, lookup)
		case <-ctx.Done():
			return
		}
	}
}

func (h *health) probe(ctx context.Context, lookup func(name string) (Tenant, bool)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, maxProbes)
	for _, p := range h.downNow(lookup) {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			if c, err := h.dialOne(ctx, p.address); err == nil {
				c.Close()
				h.note(p.tenant, verdict{address: p.address})
			}
		})
	}
}

// downNow lists what is down, and forgets what is nobody's address any more.
func (h *health) downNow(lookup func(name string) (Tenant, bool)) []place {
	h.mu.Lock()
	var all []place
	for p := range h.down {
		all = append(all, p)
	}
	h.mu.Unlock()
	return slices.DeleteFunc(all, func(p place) bool {
		if t, ok := lookup(p.tenant); ok && slices.Contains(t.Addresses(), p.address) {
			return false
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.down, p)
		return true
	})
}

// Upstreams tells how the addresses of a tenant are; none if there is no such tenant.
func (r *Registry) Upstreams(name string) []Upstream {
	t, ok := r.Get(name)
	if !ok {
		return nil
	}
	return r.health.of(t)
}

var upDesc = prometheus.NewDesc("mooring_tenant_upstream_up",
	"1 while the last connection to this address of a tenant's API server was made (or none was tried yet), 0 since one failed.",
	[]string{"tenant", "upstream"}, nil)

// Describe and Collect make the registry a prometheus.Collector of its tenants' upstreams.
func (r *Registry) Describe(out chan<- *prometheus.Desc) { out <- upDesc }

// Collect tells of each address of each tenant.
func (r *Registry) Collect(out chan<- prometheus.Metric) {
	for _, t := range r.List() {
		for _, u := range r.health.of(t) {
			out <- prometheus.MustNewConstMetric(upDesc, prometheus.GaugeValue, float64(boolInt(u.Err == nil)), t.Name, u.Address)
		}
	}
}
