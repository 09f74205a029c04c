package enroll

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/tenant"
)

const (
	restartMin = time.Second
	restartMax = time.Minute
)

// TenantFeed tells of tenants as they come and go; *tenant.Registry.
type TenantFeed interface {
	Subscribe(fn func(t tenant.Tenant, deleted bool)) (cancel func())
}

// Manager keeps one run going for each tenant: started when the tenant comes, started anew when it changes or
// the run fails, ended when it goes. Runs share nothing, so none waits for another.
type Manager struct {
	tenants TenantFeed
	what    string
	run     func(context.Context, tenant.Tenant) error
	log     *slog.Logger
}

// NewManager makes a manager of runs, such as (*Approver).Run; what names them in the log. It starts nothing.
func NewManager(tenants TenantFeed, what string, run func(context.Context, tenant.Tenant) error, log *slog.Logger) *Manager {
	return &Manager{tenants: tenants, what: what, run: run, log: log}
}

// Run follows the tenants until ctx ends, and returns when all runs have. It may be called once at a time.
func (m *Manager) Run(ctx context.Context) error {
	ctx, stopAll := context.WithCancel(ctx)
	defer stopAll()
	var wg sync.WaitGroup
	type running struct {
		stop context.CancelFunc
		done chan struct{}
	}
	current := map[string]running{} // only the feed's calls use it, one at a time
	unsubscribe := m.tenants.Subscribe(func(t tenant.Tenant, deleted bool) {
		before, had := current[t.Name]
		if had {
			before.stop()
		}
		if deleted {
			delete(current, t.Name)
			return
		}
		ctx, stop := context.WithCancel(ctx)
		next := running{stop: stop, done: make(chan struct{})}
		current[t.Name] = next
		wg.Go(func() {
			defer close(next.done)
			defer stop()
			if had {
				<-before.done // never two runs of one tenant
			}
			m.keep(ctx, t)
		})
	})
	<-ctx.Done()
	unsubscribe()
	wg.Wait()
	return context.Cause(ctx)
}

// keep runs a tenant's run again when it fails.
func (m *Manager) keep(ctx context.Context, t tenant.Tenant) {
	for pause := restartMin; ctx.Err() == nil; pause = min(2*pause, restartMax) {
		err := m.run(ctx, t)
		if ctx.Err() != nil {
			return
		}
		m.log.Error(m.what+" stopped, starting again", "tenant", t.Name, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}
