package peers

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
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
