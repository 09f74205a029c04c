package egress

import (
	"strconv"
	"sync"

	"golang.org/x/time/rate"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// Of one tenant's refused dials, so many a second get a line of their own: metrics-server asks every node
	// that is off four times a minute, and a tenant must not fill the platform's disk.
	auditedRefusals     = rate.Limit(1)
	auditedRefusalBurst = 100
	// maxAuditTenants bounds the memory of limits; tenants come and go.
	maxAuditTenants = 10_000
)

// refusals writes refused dials to the audit log, within bounds.
type refusals struct {
	log *audit.Log

	mu      sync.Mutex
	tenants map[string]*refusalCount // guarded by mu
}

type refusalCount struct {
	limit   *rate.Limiter
	skipped int // since the last line
}

// record notes one refusal. Lines that were left out are counted in the next.
func (r *refusals) record(of call, code wire.Code, why error, trace wire.Trace) {
	if r.log == nil || code == wire.Canceled { // the API server hung up: nobody refused anything
		return
	}
	r.mu.Lock()
	if r.tenants == nil || len(r.tenants) > maxAuditTenants {
		r.tenants = map[string]*refusalCount{}
	}
	c := r.tenants[of.id.Tenant]
	if c == nil {
		c = &refusalCount{limit: rate.NewLimiter(auditedRefusals, auditedRefusalBurst)}
		r.tenants[of.id.Tenant] = c
	}
	if !c.limit.Allow() {
		c.skipped++
		r.mu.Unlock()
		return
	}
	skipped := c.skipped
	c.skipped = 0
	r.mu.Unlock()

	detail := map[string]string{"target": of.target, "code": code.String(), "dial": trace.String()}
	if skipped > 0 {
		detail["skipped"] = strconv.Itoa(skipped)
	}
	r.log.Record(audit.Event{
		Event: "dial", Outcome: audit.Refused, Actor: of.id.String(), Tenant: of.id.Tenant, Source: of.source,
		Reason: why.Error(), Detail: detail, Bounded: true,
	})
}
