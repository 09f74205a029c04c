package peers

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/mooring-edge/mooring/internal/store"
)

const (
	brokerPrefix = "/mooring/brokers/"
	routePrefix  = "/mooring/routes/"

	defaultTTL = 10 * time.Second
	// writeBatch is how many routes one commit writes: ten thousand nodes that come back are some hundred commits.
	writeBatch = 100
	// contested is how long another broker's claim to a node that is connected here may stand: a node that moved has its
	// session here ended within that time.
	contested = time.Second
	// retryWrite is the pause after a commit that failed.
	retryWrite = time.Second
)

// Store is what a Directory needs of *store.Store.
type Store interface {
	Commit(ctx context.Context, ops ...store.Op) error
	Lease(ctx context.Context, ttl time.Duration) (*store.Lease, error)
	Watch(ctx context.Context, prefix string, fn func(store.Event)) error
}

// DirectoryConfig is what a Directory is made of.
type DirectoryConfig struct {
	Store Store
	// Name begins this broker's id, which is another in each process.
	Name string
	// Address is the host:port by which the others reach this one's Links.
	Address string
	// TTL is how long the routes of a broker outlive it. Default 10 s.
	TTL time.Duration
	// Registerer takes the metrics; nil leaves them out.
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Directory knows which broker has which node. Safe for concurrent use.
type Directory struct {
	cfg DirectoryConfig
	id  string

	mu      sync.Mutex // guards the following
	here    map[place]*presence
	dirty   map[place]struct{} // what the store may say otherwise than here
	brokers map[string]string  // id -> address
	tenants map[string]*tenantRoutes
	revs    map[place]int64 // of routes that name this broker, as seen in the store

	wake chan struct{} // holds one: something is dirty
}

type place struct{ tenant, node string }

func (p place) key() string { return routePrefix + p.tenant + "/" + p.node }

// presence is one session of a node here.
type presence struct {
	addresses []netip.Addr
	yields    bool // to whoever else claims the place, for as long as that is there
}

// tenantRoutes are a tenant's nodes at other brokers.
type tenantRoutes struct {
	nodes     map[string]Route
	addresses map[netip.Addr]map[string]struct{} // address -> names of nodes
}

// Route is where a node is.
type Route struct {
	Broker    string       `json:"broker"` // its id
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

type brokerRecord struct {
	Address string `json:"address"`
}

// NewDirectory makes a Directory; it starts nothing.
func NewDirectory(cfg DirectoryConfig) *Directory {
	cfg.TTL = cmp.Or(cfg.TTL, defaultTTL)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	var random [4]byte
	rand.Read(random[:])
	d := &Directory{
		cfg: cfg, id: cfg.Name + "-" + hex.EncodeToString(random[:]),
		here: map[place]*presence{}, dirty: map[place]struct{}{}, brokers: map[string]string{}, tenants: map[string]*tenantRoutes{},
		revs: map[place]int64{}, wake: make(chan struct{}, 1),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mooring_peer_brokers", Help: "Other brokers of this store that are there now.",
		}, d.others))
	}
	return d
}

// others is how many other brokers there are.
func (d *Directory) others() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return float64(len(d.brokers))
}

// ID is this broker's, in this process.
func (d *Directory) ID() string { return d.id }

// Attach says that a node is connected here. detach says that this session has ended; it does nothing to a later one's.
func (d *Directory) Attach(tenant, node string, addresses []netip.Addr) (detach func()) {
	return d.attach(place{tenant, node}, &presence{addresses: slices.Clone(addresses)})
}

// AttachAside is Attach for what may well be at several brokers at one time: the last to say so is asked, and the others say it
// again when that one has left.
func (d *Directory) AttachAside(tenant, node string, addresses []netip.Addr) (detach func()) {
	return d.attach(place{tenant, node}, &presence{addresses: slices.Clone(addresses), yields: true})
}

func (d *Directory) attach(p place, own *presence) (detach func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.here[p] = own
	d.soil(p)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.here[p] == own {
			delete(d.here, p)
			d.soil(p)
		}
	}
}

// soil marks a place to be written. d.mu is held.
func (d *Directory) soil(p place) {
	d.dirty[p] = struct{}{}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Find is where a node is connected, if that is another broker which is there.
func (d *Directory) Find(tenant, node string) (Route, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.tenants[tenant]
	if t == nil {
		return Route{}, false
	}
	r, ok := t.nodes[node]
	_, there := d.brokers[r.Broker]
	return r, ok && there
}

// Having are the names of a tenant's nodes at other brokers that have an address.
func (d *Directory) Having(tenant string, address netip.Addr) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	if t := d.tenants[tenant]; t != nil {
		for name := range t.addresses[address] {
			if _, there := d.brokers[t.nodes[name].Broker]; there {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// Nodes are the names of a tenant's nodes at other brokers.
func (d *Directory) Nodes(tenant string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	if t := d.tenants[tenant]; t != nil {
		for name, r := range t.nodes {
			if _, there := d.brokers[r.Broker]; there {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// address is where a broker is reached.
func (d *Directory) address(broker string) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a, ok := d.brokers[broker]
	return a, ok
}

// Run keeps the directory until ctx ends, and takes this broker's part of it away then.
func (d *Directory) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ended(ctx, d.cfg.Store.Watch(ctx, brokerPrefix, d.applyBroker)) })
	g.Go(func() error { return ended(ctx, d.cfg.Store.Watch(ctx, routePrefix, d.applyRoute)) })
	g.Go(func() error { return d.publish(ctx) })
	return g.Wait()
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// publish writes what is here, under one lease after another.
func (d *Directory) publish(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := d.publishUnder(ctx); err != nil && ctx.Err() == nil {
			d.cfg.Logger.Warn("other brokers can't be told which nodes are connected here; trying again", "err", err, "wait", retryWrite)
			pause(ctx, retryWrite)
		}
	}
	return nil
}

func (d *Directory) publishUnder(ctx context.Context) error {
	lease, err := d.cfg.Store.Lease(ctx, d.cfg.TTL)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = lease.Close(ctx) // else it ends by itself, with its time
	}()
	record, err := json.Marshal(brokerRecord{d.cfg.Address})
	if err != nil {
		return err
	}
	if err := d.cfg.Store.Commit(ctx, store.Put(brokerPrefix+d.id, record).Leased(lease)); err != nil {
		return err
	}
	d.mu.Lock()
	for p := range d.here { // under a new lease, all of it
		d.soil(p)
	}
	d.mu.Unlock()
	for {
		select {
		case <-d.wake:
		case <-lease.Lost():
			return errors.New("the lease in the store is lost")
		case <-ctx.Done():
			return nil
		}
		for {
			batch := d.take()
			if len(batch) == 0 {
				break
			}
			if err := d.write(ctx, lease, batch); err != nil {
				d.giveBack(batch)
				// What stands in the store stands as long as the lease does: to begin anew would take it all away for a while.
				d.cfg.Logger.Warn("other brokers can't be told of some nodes; trying again", "nodes", len(batch), "err", err, "wait", retryWrite)
				select {
				case <-time.After(retryWrite):
				case <-lease.Lost():
					return errors.New("the lease in the store is lost")
				case <-ctx.Done():
					return nil
				}
			}
		}
	}
}

// take removes the next places to write from those that are dirty.
func (d *Directory) take() []place {
	d.mu.Lock()
	defer d.mu.Unlock()
	var batch []place
	for p := range d.dirty {
		if len(batch) == writeBatch {
			break
		}
		batch = append(batch, p)
		delete(d.dirty, p)
	}
	return batch
}

func (d *Directory) giveBack(batch []place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range batch {
		d.soil(p)
	}
}

// write makes the store say of each place what is so here.
func (d *Directory) write(ctx context.Context, lease *store.Lease, batch []place) error {
	var puts, deletes []store.Op
	d.mu.Lock()
	for _, p := range batch {
		if own := d.here[p]; own != nil {
			val, err := json.Marshal(Route{d.id, own.addresses})
			if err != nil {
				d.mu.Unlock()
				return err
			}
			puts = append(puts, store.Put(p.key(), val).Leased(lease))
		} else if rev := d.revs[p]; rev != 0 {
			deletes = append(deletes, store.Delete(p.key(), rev))
		} // else what was written comes back by the watch, and is deleted then
	}
	d.mu.Unlock()
	if len(puts) > 0 {
		if err := d.cfg.Store.Commit(ctx, puts...); err != nil {
			return err
		}
	}
	for _, op := range deletes {
		if err := d.cfg.Store.Commit(ctx, op); err != nil && !errors.Is(err, store.ErrConflict) { // conflict: another broker's by now
			return err
		}
	}
	return nil
}

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

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// errNoBroker is what a broker that left says no more.
func errNoBroker(id string) error {
	return fmt.Errorf("broker %s, which the node was connected to, is not there", id)
}
