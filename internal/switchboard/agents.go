package switchboard

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Agent is a node's way by a program other than ours. A node's own session is preferred to it, so that a node which moves over
// is reached by the new way from the moment that there is one.
type Agent interface {
	Way
	// Draining tells that it opens nothing any more, while what is open goes on.
	Draining() bool
}

// AgentInfo is what is to be known of an Agent.
type AgentInfo struct {
	RemoteAddr string
	// Addresses are the node's, as its API server says.
	Addresses []netip.Addr
	Stats     func() tunnel.Stats
	// Close ends it.
	Close func(code wire.Code, message string)
	// Still is asked by each Recheck, and once it was entered: an error ends it.
	Still func() (wire.Code, error)
}

// agentEntry is one that was entered.
type agentEntry struct {
	Agent
	AgentInfo
	p place
}

// EnterAgent adds a way to a node, until leave is called. Of several the newest that is not draining is asked.
func (b *Board) EnterAgent(tenant, node string, a Agent, info AgentInfo) (leave func()) {
	e := &agentEntry{a, info, place{tenant, node}}
	b.mu.Lock()
	nodes := b.agents[tenant]
	if nodes == nil {
		nodes = map[string][]*agentEntry{}
		b.agents[tenant] = nodes
	}
	nodes[node] = append(slices.Clip(nodes[node]), e)
	b.mu.Unlock()
	b.checkAgent(e)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		nodes := b.agents[tenant]
		left := slices.DeleteFunc(slices.Clone(nodes[node]), func(o *agentEntry) bool { return o == e })
		if nodes[node] = left; len(left) == 0 {
			delete(nodes, node)
		}
		if len(nodes) == 0 {
			delete(b.agents, tenant)
		}
	}
}

func (b *Board) checkAgent(e *agentEntry) {
	if code, err := e.Still(); err != nil {
		b.log.Warn("node's agent is cut", "tenant", e.p.tenant, "node", e.p.node, "transport", string(e.Transport()), "remote", e.RemoteAddr, "err", err)
		e.Close(code, err.Error())
	}
}

// agent is that by which a node is asked; nil if there is none. b.mu is held.
func (b *Board) agent(tenant, node string) *agentEntry {
	all := b.agents[tenant][node]
	for _, e := range slices.Backward(all) {
		if !e.Draining() {
			return e
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[len(all)-1] // which says so
}

// agentsOf are a node's, or, for "", all of a tenant's.
func (b *Board) agentsOf(tenant, node string) (all []*agentEntry) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if node != "" {
		return slices.Clone(b.agents[tenant][node])
	}
	for _, of := range b.agents[tenant] {
		all = append(all, of...)
	}
	return all
}

// agentsHaving are the names of a tenant's nodes of which an agent is connected and whose Node objects have an address. It looks at
// as many as there are: they are those of a cluster that moves over. b.mu is held.
func (b *Board) agentsHaving(tenant string, ip netip.Addr) (names []string) {
	for node, of := range b.agents[tenant] {
		if slices.ContainsFunc(of, func(e *agentEntry) bool { return slices.Contains(e.Addresses, ip) }) {
			names = append(names, node)
		}
	}
	return names
}

// Agents describes what is connected of nodes beside their sessions, by tenant and node: of each node that which is asked.
func (b *Board) Agents() []Info {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var all []Info
	for tenant, nodes := range b.agents {
		for node := range nodes {
			if e := b.agent(tenant, node); e != nil {
				all = append(all, e.describe())
			}
		}
	}
	slices.SortFunc(all, func(a, b Info) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Node, b.Node))
	})
	return all
}

func (e *agentEntry) describe() Info {
	return Info{
		Tenant: e.p.tenant, Node: e.p.node, Transport: e.Transport(), RemoteAddr: e.RemoteAddr, Addresses: e.Addresses, Stats: e.Stats(),
	}
}
