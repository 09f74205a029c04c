package tenant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
)

const keyPrefix = "/mooring/tenants/"

// Key is where the store holds a tenant. A commit that must not outlive the tenant checks it.
func Key(name string) string { return keyPrefix + name }

// Errors of the registry, for errors.Is.
var (
	// ErrExists says that a tenant of that name is there already.
	ErrExists = errors.New("tenant exists already")
	// ErrNotFound says that there is no tenant of that name.
	ErrNotFound = errors.New("no such tenant")
)

// Store is what the registry needs of *store.Store.
type Store interface {
	Get(ctx context.Context, key string) (store.Item, error)
	Commit(ctx context.Context, ops ...store.Op) error
	WatchSynced(ctx context.Context, prefix string, synced func(), fn func(store.Event)) error
}

// Registry holds the tenants of the store in memory, as of the last change that Run has seen. All methods may
// be called at any time; Get, List and DialAPI know nothing before Run has read the store (WaitSynced).
type Registry struct {
	// Domain is the front's (front.domain): each tenant has its name in it. Set it before anything is called; "" = none.
	Domain string

	store  Store
	log    *slog.Logger
	synced chan struct{}
	health *health

	// telling is held while subscribers are told, so that each is told of all changes in order. Whoever
	// takes both takes telling first.
	telling     sync.Mutex
	subscribers map[*subscriber]struct{} // guarded by telling

	mu      sync.RWMutex // guards the following
	tenants map[string]Tenant
	hosts   map[string]string // which tenant has a further host
}

type subscriber struct{ fn func(Tenant, bool) }

// NewRegistry makes a registry that knows nothing until Run.
func NewRegistry(s Store, log *slog.Logger) *Registry {
	return &Registry{
		store: s, log: log, synced: make(chan struct{}), health: newHealth(log),
		subscribers: map[*subscriber]struct{}{}, tenants: map[string]Tenant{}, hosts: map[string]string{},
	}
}

// Run follows the store, and tries upstreams that are down, until ctx ends. It may be called once.
func (r *Registry) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var probes sync.WaitGroup
	defer probes.Wait()
	defer cancel()
	probes.Go(func() { r.health.run(ctx, r.Get) })
	return r.store.WatchSynced(ctx, keyPrefix, func() { close(r.synced) }, r.apply)
}

// WaitSynced returns when all tenants that the store held at Run's start are known.
func (r *Registry) WaitSynced(ctx context.Context) error {
	select {
	case <-r.synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the tenants to be read from the store: %w", context.Cause(ctx))
	}
}

func (r *Registry) apply(ev store.Event) {
	name := strings.TrimPrefix(ev.Key, keyPrefix)
	var t Tenant
	if !ev.Deleted {
		if err := decode(name, ev.Value, &t); err != nil {
			// One damaged record is one tenant's trouble; what was known of it stays in use.
			r.log.Error("tenant's record in the store can't be used, remove the tenant and add it again", "tenant", name, "err", err)
			return
		}
	}
	r.telling.Lock()
	defer r.telling.Unlock()
	r.mu.Lock()
	old, had := r.tenants[name]
	if ev.Deleted {
		delete(r.tenants, name)
		r.setHosts(name, old.Hosts, nil)
		t = old
	} else {
		r.tenants[name] = t
		r.setHosts(name, old.Hosts, t.Hosts)
	}
	r.mu.Unlock()

	if ev.Deleted && !had || !ev.Deleted && had && t.Equal(old) {
		return
	}
	r.log.Info("tenant changed", "tenant", name, "removed", ev.Deleted, "address", t.Address)
	for s := range r.subscribers {
		s.fn(t.clone(), ev.Deleted)
	}
}

func decode(name string, value []byte, t *Tenant) error {
	if err := json.Unmarshal(value, t); err != nil {
		return err
	}
	if t.Name != name {
		return fmt.Errorf("the record is that of tenant %q", t.Name)
	}
	return t.validate()
}

// Get returns the tenant of that name.
func (r *Registry) Get(name string) (Tenant, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	t, ok := r.tenants[name]
	return t.clone(), ok
}

// List returns all tenants by name.
func (r *Registry) List() []Tenant {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]Tenant, 0, len(r.tenants))
	for _, name := range slices.Sorted(maps.Keys(r.tenants)) {
		out = append(out, r.tenants[name].clone())
	}
	return out
}

// Subscribe calls fn for each tenant that is known, before it returns, and from then on for each change, one
// call at a time and in order. A deleted tenant comes as it was last. fn must return soon, as it delays the
// telling of others (though not Get and List, which it may use), and must not subscribe or cancel. After cancel
// has returned, fn is not called again.
func (r *Registry) Subscribe(fn func(t Tenant, deleted bool)) (cancel func()) {
	r.telling.Lock()
	defer r.telling.Unlock()
	for _, t := range r.List() {
		fn(t, false)
	}
	s := &subscriber{fn}
	r.subscribers[s] = struct{}{}
	return func() {
		r.telling.Lock()
		defer r.telling.Unlock()
		delete(r.subscribers, s)
	}
}

// Add stores a new tenant; ErrExists if its name is taken, ErrHostTaken if one of its hosts is.
func (r *Registry) Add(ctx context.Context, t Tenant) error {
	if err := errors.Join(t.validate(), r.checkHosts(t)); err != nil {
		return err
	}
	b, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("tenant %s: encode: %w", t.Name, err)
	}
	for {
		hosts, err := r.hostOps(ctx, t.Name, nil, t.Hosts)
		if err == nil {
			err = r.store.Commit(ctx, append(hosts, store.Create(Key(t.Name), b))...)
		}
		if errors.Is(err, store.ErrConflict) {
			if _, err := r.store.Get(ctx, Key(t.Name)); errors.Is(err, store.ErrNotFound) {
				continue // it was about a host
			}
			return fmt.Errorf("tenant %s: %w: remove it first", t.Name, ErrExists)
		}
		if err != nil {
			return fmt.Errorf("tenant %s: %w", t.Name, err)
		}
		return nil
	}
}

// Remove forgets a tenant; ErrNotFound if there is none. Its nodes and tokens are not the registry's.
func (r *Registry) Remove(ctx context.Context, name string) error {
	return r.RemoveIf(ctx, name, nil)
}

// RemoveIf is Remove of the tenant that is meant: only is asked of what the store holds, each time that another writer was first;
// nil = any will do. ErrExists if it says no. A record that can't be read is nobody's: only Remove removes it.
func (r *Registry) RemoveIf(ctx context.Context, name string, only func(Tenant) bool) error {
	if err := pki.ValidTenant(name); err != nil {
		return err
	}
	for {
		it, err := r.store.Get(ctx, Key(name))
		if errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("%w: %s", ErrNotFound, name)
		}
		if err == nil && only != nil {
			err = meant(it.Value, only)
		}
		var ops []store.Op
		if err == nil {
			ops, err = r.hostOps(ctx, name, hostsOf(it.Value), nil)
		}
		if err == nil {
			err = r.store.Commit(ctx, append(ops, store.Delete(it.Key, it.Rev))...)
		}
		if errors.Is(err, store.ErrConflict) {
			continue // changed under us; what there is now is to go as well, if it is meant
		}
		if err != nil {
			return fmt.Errorf("remove tenant %s: %w", name, err)
		}
		return nil
	}
}

// meant tells by its error whether the tenant of a record is the one that only is true for.
func meant(record []byte, only func(Tenant) bool) error {
	var t Tenant
	if err := json.Unmarshal(record, &t); err != nil {
		return fmt.Errorf("its record in the store can't be used, remove it with `broker tenant remove`: %w", err)
	}
	if !only(t) {
		return fmt.Errorf("another has the name: %w", ErrExists)
	}
	return nil
}

// DialAPI opens a TCP connection to the tenant's API server, bounded by ctx and by 15 seconds: at the first of its addresses that
// answers. The TLS in it is the caller's client's.
func (r *Registry) DialAPI(ctx context.Context, name string) (net.Conn, error) {
	return r.DialAPIFor(ctx, name, nil)
}

// DialAPIFor is DialAPI for a connection that is passed on: client is whose it is, for tenants that want a PROXY header.
func (r *Registry) DialAPIFor(ctx context.Context, name string, client net.Addr) (net.Conn, error) {
	t, ok := r.Get(name)
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	c, err := r.health.dial(ctx, t)
	if err != nil {
		return nil, err
	}
	return t.introduce(c, client)
}
