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
// the run fails, ended when it goes. Runs share nothing, so none waits for another tenant's.
type Manager struct {
	// Gone, if it is not nil, is called when a tenant was removed and its run has ended, before that of another of its name
	// begins. Set it before Run is called.
	Gone func(t tenant.Tenant)

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
	var mu sync.Mutex
	current := map[string]*running{} // by name, also of those that are gone until they have ended; guarded by mu
	unsubscribe := m.tenants.Subscribe(func(t tenant.Tenant, deleted bool) {
		mu.Lock()
		defer mu.Unlock()
		before := current[t.Name]
		if before != nil {
			before.stop()
		} else if deleted {
			return
		}
		ctx, stop := context.WithCancel(ctx)
		next := &running{tenant: t, deleted: deleted, stop: stop, done: make(chan struct{})}
		current[t.Name] = next
		wg.Go(func() {
			defer close(next.done)
			defer stop()
			m.follow(ctx, before, next)
			mu.Lock()
			defer mu.Unlock()
			if current[t.Name] == next {
				delete(current, t.Name)
			}
		})
	})
	<-ctx.Done()
	unsubscribe()
	wg.Wait()
	return context.Cause(ctx)
}

// running is what is done about one change of a tenant.
type running struct {
	tenant  tenant.Tenant
	deleted bool
	stop    context.CancelFunc
	done    chan struct{}
}

// follow does what is to be done about a change when what was done about the one before has ended: there are never two runs of one name.
func (m *Manager) follow(ctx context.Context, before, next *running) {
	if before != nil {
		<-before.done
		// Another's coming may be all that is seen of a tenant's going.
		removed := !before.deleted && (next.deleted || !before.tenant.CreatedAt.Equal(next.tenant.CreatedAt))
		if removed && m.Gone != nil {
			m.Gone(before.tenant)
		}
	}
	if !next.deleted {
		m.keep(ctx, next.tenant)
	}
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
