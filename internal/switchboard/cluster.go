package switchboard

import (
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Node is what a tenant's API server says of one of its nodes.
type Node struct {
	// PodCIDRs are where the addresses of the node's pods are taken from.
	PodCIDRs []netip.Prefix
	// Ready is the condition of that name.
	Ready bool
}

func (n Node) equal(o Node) bool { return n.Ready == o.Ready && slices.Equal(n.PodCIDRs, o.PodCIDRs) }

// Backends are the nodes on which a Service's ready pods are.
type Backends struct {
	// Nodes by name, each once.
	Nodes []string
	// Elsewhere says that some of what is behind the Service is on no node, so that any node may be asked.
	Elsewhere bool
}

// cluster is what is known of the addresses in one tenant's cluster, beside its nodes' own. All of it is the API
// server's word, none a node's.
type cluster struct {
	nodes    map[string]Node
	pods     prefixes
	ranges   []netip.Prefix // of Services
	services map[netip.Addr]Backends
}

// cluster returns the tenant's, made if there is none. b.mu is held.
func (b *Board) cluster(tenant string) *cluster {
	c := b.clusters[tenant]
	if c == nil {
		c = &cluster{nodes: map[string]Node{}, services: map[netip.Addr]Backends{}}
		b.clusters[tenant] = c
	}
	return c
}

func (c *cluster) setNode(name string, n Node) {
	old := c.nodes[name]
	c.pods.change(name, old.PodCIDRs, n.PodCIDRs)
	c.nodes[name] = n
}

// SetNodes says what nodes there are: those that are not named are forgotten.
func (b *Board) SetNodes(tenant string, nodes map[string]Node) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.cluster(tenant)
	for name, old := range c.nodes {
		if _, there := nodes[name]; !there {
			c.pods.change(name, old.PodCIDRs, nil)
			delete(c.nodes, name)
		}
	}
	for name, n := range nodes {
		if old, there := c.nodes[name]; !there || !old.equal(n) {
			c.setNode(name, n)
		}
	}
}

// SetServiceRanges says where the addresses of the tenant's Services are taken from.
func (b *Board) SetServiceRanges(tenant string, ranges []netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cluster(tenant).ranges = slices.Clone(ranges)
}

// SetServices says what is behind the addresses of the tenant's Services. It keeps the map, which must not be changed any more.
func (b *Board) SetServices(tenant string, services map[netip.Addr]Backends) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cluster(tenant).services = services
}

// ForgetCluster forgets all that was said of a tenant's cluster.
func (b *Board) ForgetCluster(tenant string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.clusters, tenant)
}

// isService tells whether an address is that of a Service, or would be.
func (c *cluster) isService(ip netip.Addr) bool {
	if c == nil {
		return false
	}
	if _, known := c.services[ip]; known {
		return true
	}
	return slices.ContainsFunc(c.ranges, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// podNodes are the nodes whose pods may have the address: one, if all is well.
func (c *cluster) podNodes(ip netip.Addr) []string {
	if c == nil {
		return nil
	}
	return c.pods.holding(ip)
}

// attempts is how many nodes are asked for one connection to a Service, at most.
const attempts = 2

// candidates are the connected nodes by which a Service is reached, in the order in which they are to be asked. Those
// on which one of its pods is ready come alone if there are any: nothing says that pods of one site reach those of
// another. Of the others, those that the API server calls Ready come first. Beside that chance decides, so that the
// load spreads. b.mu is held.
func (b *Board) candidates(tenant string, ip netip.Addr) ([]endpoint, error) {
	c := b.clusters[tenant]
	behind, known := c.services[ip]
	var ready, others []endpoint
	if known && len(behind.Nodes) > 0 {
		ready = b.connected(tenant, behind.Nodes)
		if len(ready) == 0 && !behind.Elsewhere {
			return nil, refusal(wire.Unavailable, "the pods behind the service address %s are on %s, of which none is connected",
				ip, sample(behind.Nodes))
		}
	}
	if len(ready) == 0 {
		ready, others = b.some(tenant, c)
	}
	all := slices.Concat(ready, others)
	if len(all) == 0 {
		return nil, refusal(wire.Unavailable, "no node is connected by which the service address %s could be reached", ip)
	}
	return all[:min(attempts, len(all))], nil
}

// connected are a few of the named nodes that are connected, beginning anywhere. b.mu is held.
func (b *Board) connected(tenant string, names []string) (out []endpoint) {
	first := rand.IntN(len(names))
	for i := range names {
		name := names[(first+i)%len(names)]
		if way := b.way(tenant, name); way != nil {
			if out = append(out, endpoint{name, way}); len(out) == attempts {
				break
			}
		}
	}
	return out
}

// maxLook bounds how many nodes are looked at for those that are Ready: a map is walked from anywhere, so where most are,
// the first few do.
const maxLook = 256

// some are a few connected nodes, those that are Ready apart from the others; those of other brokers if there is none here. b.mu is held.
func (b *Board) some(tenant string, c *cluster) (ready, others []endpoint) {
	looked := 0
	for name, way := range b.ways(tenant) {
		looked++
		switch {
		case c.nodes[name].Ready:
			ready = append(ready, endpoint{name, way})
		case len(others) < attempts:
			others = append(others, endpoint{name, way})
		}
		if len(ready) == attempts || looked == maxLook {
			break
		}
	}
	return ready, others
}

// another tells whether a failed attempt says something of the node that was asked only: it was gone or did not
// want to, and no connection was tried. What the Service itself answered would be no other by another way.
func another(err error) bool {
	var refused *tunnel.RefusedError
	if errors.As(err, &refused) {
		switch refused.Code {
		case wire.Denied, wire.Overloaded, wire.Draining, wire.Unavailable, wire.Superseded, wire.Shutdown:
			return true
		}
		return false
	}
	var closed *tunnel.ClosedError
	return errors.As(err, &closed)
}

// prefixes finds the names that hold a prefix in which an address lies, in as many steps as there are lengths of
// prefixes. The zero value is empty.
type prefixes struct {
	names   map[netip.Prefix]map[string]bool
	lengths map[length]int // how many prefixes there are of it
}

// length of prefixes of one family.
type length struct {
	bits int
	six  bool
}

// change takes a name off some prefixes and puts it to others.
func (p *prefixes) change(name string, from, to []netip.Prefix) {
	if p.names == nil {
		p.names, p.lengths = map[netip.Prefix]map[string]bool{}, map[length]int{}
	}
	for _, f := range from {
		l := length{f.Bits(), f.Addr().Is6()}
		if !p.names[f][name] {
			continue // it was listed twice
		}
		if delete(p.names[f], name); len(p.names[f]) > 0 {
			continue
		}
		delete(p.names, f)
		if p.lengths[l]--; p.lengths[l] == 0 {
			delete(p.lengths, l)
		}
	}
	for _, t := range to {
		if p.names[t] == nil {
			p.names[t] = map[string]bool{}
			p.lengths[length{t.Bits(), t.Addr().Is6()}]++
		}
		p.names[t][name] = true
	}
}

// holding returns the names, in order.
func (p *prefixes) holding(ip netip.Addr) []string {
	found := map[string]bool{}
	for l := range p.lengths {
		if l.six != ip.Is6() {
			continue
		}
		if prefix, err := ip.Prefix(l.bits); err == nil {
			maps.Copy(found, p.names[prefix])
		}
	}
	return slices.Sorted(maps.Keys(found))
}
