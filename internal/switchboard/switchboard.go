// Package switchboard knows which node is connected by which tunnel session, and turns (tenant,
// address) into a connection through the right one.
//
// A tenant's addresses are looked up among that tenant's sessions only, so nothing of another
// tenant's can be reached or told apart from what does not exist. It issues and verifies no
// identities: who attaches a session has done so. What there is in a tenant's cluster beside
// its nodes it is told by whoever asks the API server (SetNodes and its like).
package switchboard

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Config is what a Board is made of.
type Config struct {
	// Registerer takes the metrics; nil leaves them out.
	Registerer prometheus.Registerer
	Logger     *slog.Logger
	// Elsewhere knows what is connected to other brokers; nil: there are none.
	Elsewhere Elsewhere
}

// Board holds the live sessions. Make it with New. Safe for concurrent use.
type Board struct {
	log       *slog.Logger
	elsewhere Elsewhere // nil: there is none

	mu sync.RWMutex // guards the following fields
	// tenant -> node -> session. A tenant without sessions has no entry.
	sessions map[string]map[string]*tunnel.Session
	agents   map[string]map[string][]*agentEntry // tenant -> node -> oldest first; beside the sessions
	// former are the sessions that another took over from and whose streams go on. Each node has one at most.
	former map[place]*tunnel.Session
	// retired are those that a session at another broker took over from: of each node the last that was asked here.
	retired map[place]*tunnel.Session
	// addresses are the names of a tenant's nodes by the addresses that their sessions attest.
	addresses map[string]map[netip.Addr]map[string]bool
	clusters  map[string]*cluster // by tenant
	// still is what Enter was given for each of these.
	still map[*tunnel.Session]func() (wire.Code, error)
	gone  chan struct{} // closed, and made anew, with each session that is removed
}

// place is a node of a tenant.
type place struct{ tenant, node string }

// New makes an empty Board.
func New(cfg Config) *Board {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Board{
		log: cfg.Logger, elsewhere: cfg.Elsewhere, sessions: map[string]map[string]*tunnel.Session{}, former: map[place]*tunnel.Session{}, retired: map[place]*tunnel.Session{},
		agents: map[string]map[string][]*agentEntry{}, addresses: map[string]map[netip.Addr]map[string]bool{}, clusters: map[string]*cluster{},
		still: map[*tunnel.Session]func() (wire.Code, error){}, gone: make(chan struct{}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(&collector{board: b})
	}
	return b
}

// Enter makes s the session of a node until s has ended. The newest session wins: one that
// was there before is drained if the node says that it hands over, else closed with code Superseded.
//
// still is asked once s can be found by Cut and Recheck, and by each Recheck; s is closed if it fails, or drained if the code
// is Draining. Who bars a node first writes that down and then has its session cut, so that one which comes in between is
// found by one of the two.
func (b *Board) Enter(s *tunnel.Session, tenant, node string, still func() (wire.Code, error)) {
	log := b.log.With("tenant", tenant, "node", node, "transport", string(s.Transport()), "remote", s.RemoteAddr().String())
	old, fenced := b.put(s, place{tenant, node}, still)
	switch {
	case old == nil:
		log.Info("node connected")
	case old == fenced:
		log.Info("node connected again; its older session is closed", "old", old.RemoteAddr().String())
	default:
		log.Info("node moved to another session; what runs on the older one goes on there",
			"old", old.RemoteAddr().String(), "oldTransport", string(old.Transport()), "streams", old.Stats().OpenStreams)
		_ = old.Drain(0) // an error says that it has ended
	}
	if fenced != nil {
		fenced.Close(wire.Superseded, "a newer session of this node took over")
	}
	s.OnEnd(func() {
		b.remove(s, place{tenant, node})
		b.log.Info("node's session ended", "tenant", tenant, "node", node, "transport", string(s.Transport()), "remote", s.RemoteAddr().String(),
			"after", time.Since(s.Stats().Since).Round(time.Millisecond), "err", s.Err())
	})
	b.check(s, place{tenant, node}, log, still)
}

// check asks whether s may go on, and ends it if not.
func (b *Board) check(s *tunnel.Session, p place, log *slog.Logger, still func() (wire.Code, error)) {
	code, err := still()
	switch {
	case err == nil:
	case code == wire.Draining:
		b.retire(s, p)
		_ = s.Drain(0)
	default:
		log.Warn("node's session is closed", "err", err)
		s.Close(code, err.Error())
	}
}

// retire has a session that another broker's took over from asked no more: what runs on it goes on. The node is found where it is now.
func (b *Board) retire(s *tunnel.Session, p place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sessions[p.tenant][p.node] != s {
		return
	}
	b.unlist(s, p)
	b.unseat(p)
	b.retired[p] = s
}

// unseat leaves a node without a session that is asked. b.mu is held.
func (b *Board) unseat(p place) {
	delete(b.sessions[p.tenant], p.node)
	if len(b.sessions[p.tenant]) == 0 {
		delete(b.sessions, p.tenant)
	}
}

// Recheck asks again whether a node's live session and agents may go on, and closes those that may not; for node "" it asks
// of all agents of the tenant. It returns when that is done.
func (b *Board) Recheck(tenant, node string) {
	for _, s := range b.all(place{tenant, node}) {
		b.mu.RLock()
		still := b.still[s]
		b.mu.RUnlock()
		if still != nil {
			b.check(s, place{tenant, node}, b.log.With("tenant", tenant, "node", node, "remote", s.RemoteAddr().String()), still)
		}
	}
	for _, e := range b.agentsOf(tenant, node) {
		b.checkAgent(e)
	}
}

// all are a node's sessions: the one that is asked, and those that were taken over from.
func (b *Board) all(p place) []*tunnel.Session {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var all []*tunnel.Session
	for _, s := range []*tunnel.Session{b.sessions[p.tenant][p.node], b.retired[p], b.former[p]} {
		if s != nil {
			all = append(all, s)
		}
	}
	return all
}

// Probe asks a node's live session, if it is not s, for a sign of life; false if there is none or it stays silent.
func (b *Board) Probe(ctx context.Context, tenant, node string, s *tunnel.Session) bool {
	old := b.session(tenant, node)
	return old != nil && old != s && old.Probe(ctx) == nil
}

// put makes s the session of a node. It returns the one that was before, and the one, if any, that is to be closed: that same,
// unless the node hands over; then the one that it had handed over from before.
func (b *Board) put(s *tunnel.Session, p place, still func() (wire.Code, error)) (old, fenced *tunnel.Session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.still[s] = still
	nodes := b.sessions[p.tenant]
	if nodes == nil {
		nodes = map[string]*tunnel.Session{}
		b.sessions[p.tenant] = nodes
	}
	if old = nodes[p.node]; old != nil {
		b.unlist(old, p)
	} else { // the node was at another broker meanwhile
		old = b.retired[p]
		delete(b.retired, p)
	}
	nodes[p.node] = s
	b.list(s, p)
	if old == nil || !s.PeerHello().Handover {
		return old, old
	}
	fenced = b.former[p]
	b.former[p] = old
	return old, fenced
}

func (b *Board) remove(s *tunnel.Session, p place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.still, s)
	close(b.gone)
	b.gone = make(chan struct{})
	for _, m := range []map[place]*tunnel.Session{b.former, b.retired} {
		if m[p] == s {
			delete(m, p)
		}
	}
	if b.sessions[p.tenant][p.node] != s {
		return
	}
	b.unlist(s, p)
	b.unseat(p)
}

// NodeAddresses are the addresses that a node's live session attests; false if it has none.
func (b *Board) NodeAddresses(tenant, node string) ([]netip.Addr, bool) {
	s := b.session(tenant, node)
	if s == nil {
		return nil, false
	}
	return slices.Clone(s.PeerHello().Addresses), true
}

// Cut closes a node's live sessions and agents, if there are any, and tells whether there were.
func (b *Board) Cut(tenant, node string, code wire.Code, message string) bool {
	all := b.all(place{tenant, node})
	for _, s := range all {
		s.Close(code, message)
	}
	agents := b.agentsOf(tenant, node)
	for _, e := range agents {
		e.Close(code, message)
	}
	return len(all)+len(agents) > 0
}

// CutTenant closes all sessions and agents of a tenant's nodes.
func (b *Board) CutTenant(tenant string, code wire.Code, message string) {
	for _, s := range b.every(tenant) {
		s.Close(code, message)
	}
	for _, e := range b.agentsOf(tenant, "") {
		e.Close(code, message)
	}
}

// Live tells whether a node has a session, or one that ends with its streams, or an agent.
func (b *Board) Live(tenant, node string) bool {
	return len(b.all(place{tenant, node})) > 0 || len(b.agentsOf(tenant, node)) > 0
}

// Is tells whether the session that a node is asked by said this instance and generation in its hello.
func (b *Board) Is(tenant, node, instance string, generation uint64) bool {
	s := b.session(tenant, node)
	if s == nil {
		return false
	}
	h := s.PeerHello()
	return h.Instance != "" && h.Instance == instance && h.Generation == generation
}

// every is all sessions of a tenant's nodes, or of all tenants' if that is empty.
func (b *Board) every(tenant string) []*tunnel.Session {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var all []*tunnel.Session
	for t, nodes := range b.sessions {
		if tenant == "" || t == tenant {
			all = slices.AppendSeq(all, maps.Values(nodes))
		}
	}
	for _, m := range []map[place]*tunnel.Session{b.former, b.retired} {
		for p, s := range m {
			if tenant == "" || p.tenant == tenant {
				all = append(all, s)
			}
		}
	}
	return all
}

func (b *Board) session(tenant, node string) *tunnel.Session {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.sessions[tenant][node]
}

// Info describes one live session.
type Info struct {
	Tenant, Node string
	Transport    tunnel.Transport
	RemoteAddr   string
	Addresses    []netip.Addr
	AgentVersion string
	Stats        tunnel.Stats
}

// Session describes that by which a node is asked here: its live session, or an agent; false if it has none.
func (b *Board) Session(tenant, node string) (Info, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if s := b.sessions[tenant][node]; s != nil {
		return describe(s, tenant, node), true
	}
	if e := b.agent(tenant, node); e != nil {
		return e.describe(), true
	}
	return Info{}, false
}

// Sessions describes all live sessions, by tenant and node.
func (b *Board) Sessions() []Info {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var all []Info
	for tenant, nodes := range b.sessions {
		for node, s := range nodes {
			all = append(all, describe(s, tenant, node))
		}
	}
	slices.SortFunc(all, func(a, b Info) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Node, b.Node))
	})
	return all
}

func describe(s *tunnel.Session, tenant, node string) Info {
	hello := s.PeerHello()
	return Info{
		Tenant: tenant, Node: node,
		Transport: s.Transport(), RemoteAddr: s.RemoteAddr().String(),
		Addresses: hello.Addresses, AgentVersion: hello.Version,
		Stats: s.Stats(),
	}
}
