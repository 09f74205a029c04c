// Package switchboard knows which node is connected by which tunnel session, and turns (tenant,
// address) into a connection through the right one.
//
// A tenant's addresses are looked up among that tenant's sessions only, so nothing of another
// tenant's can be reached or told apart from what does not exist. It issues and verifies no
// identities: who attaches a session has done so.
package switchboard

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
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
}

// Board holds the live sessions. Make it with New. Safe for concurrent use.
type Board struct {
	log *slog.Logger

	mu sync.RWMutex // guards the following fields
	// tenant -> node -> session. A tenant without sessions has no entry.
	sessions map[string]map[string]*tunnel.Session
	// still is what Serve was given for each of them.
	still map[*tunnel.Session]func() (wire.Code, error)
}

// New makes an empty Board.
func New(cfg Config) *Board {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Board{log: cfg.Logger, sessions: map[string]map[string]*tunnel.Session{}, still: map[*tunnel.Session]func() (wire.Code, error){}}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(&collector{board: b})
	}
	return b
}

// Serve makes s the session of a node and returns when s has ended. The newest session wins: one that
// was there before is closed with code Superseded.
//
// still is asked once s can be found by Cut and Recheck, and by each Recheck; s is closed if it fails. Who bars a
// node first writes that down and then has its session cut, so that one which comes in between is found by one of the two.
func (b *Board) Serve(s *tunnel.Session, tenant, node string, still func() (wire.Code, error)) {
	log := b.log.With("tenant", tenant, "node", node, "transport", string(s.Transport()), "remote", s.RemoteAddr().String())
	if old := b.put(s, tenant, node, still); old != nil {
		log.Info("node connected again; its older session is closed", "old", old.RemoteAddr().String())
		old.Close(wire.Superseded, "a newer session of this node took over")
	} else {
		log.Info("node connected")
	}
	if code, err := still(); err != nil {
		log.Warn("node's session is closed", "err", err)
		s.Close(code, err.Error())
	}
	<-s.Done()
	b.remove(s, tenant, node)
	log.Info("node's session ended", "after", time.Since(s.Stats().Since).Round(time.Millisecond), "err", s.Err())
}

// Recheck asks again whether a node's live session may go on, and closes it if not. It returns when that is done.
func (b *Board) Recheck(tenant, node string) {
	b.mu.RLock()
	s := b.sessions[tenant][node]
	still := b.still[s]
	b.mu.RUnlock()
	if still == nil {
		return
	}
	if code, err := still(); err != nil {
		b.log.Warn("node's session is closed", "tenant", tenant, "node", node, "remote", s.RemoteAddr().String(), "err", err)
		s.Close(code, err.Error())
	}
}

// Probe asks a node's live session, if it is not s, for a sign of life; false if there is none or it stays silent.
func (b *Board) Probe(ctx context.Context, tenant, node string, s *tunnel.Session) bool {
	old := b.session(tenant, node)
	return old != nil && old != s && old.Probe(ctx) == nil
}

func (b *Board) put(s *tunnel.Session, tenant, node string, still func() (wire.Code, error)) (old *tunnel.Session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.still[s] = still
	nodes := b.sessions[tenant]
	if nodes == nil {
		nodes = map[string]*tunnel.Session{}
		b.sessions[tenant] = nodes
	}
	old = nodes[node]
	nodes[node] = s
	return old
}

func (b *Board) remove(s *tunnel.Session, tenant, node string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.still, s)
	if b.sessions[tenant][node] != s {
		return
	}
	delete(b.sessions[tenant], node)
	if len(b.sessions[tenant]) == 0 {
		delete(b.sessions, tenant)
	}
}

// Dial connects to an address as the tenant's API server knows it: "node-name:port" or "ip:port".
// What is refused, here or by the node, is a *tunnel.RefusedError.
func (b *Board) Dial(ctx context.Context, tenant, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" {
		return nil, refusal(wire.BadRequest, "not an address to dial: %.80q (want host:port)", addr)
	}
	node, s, err := b.find(tenant, host)
	if err != nil {
		return nil, err
	}
	if found, ok := ctx.Value(foundKey{}).(Found); ok {
		ctx = found(ctx, node, s.Transport())
	}
	stream, err := s.Open(ctx, wire.KindDial, addr)
	if err != nil {
		return nil, err
	}
	return stream, nil
}

// Found is told of each dial that a node was found for, before that is asked. The dial goes on with the context that
// it returns.
type Found func(ctx context.Context, node string, transport tunnel.Transport) context.Context

type foundKey struct{}

// OnFound has Dial call f, once at most, in the goroutine of its caller.
func OnFound(ctx context.Context, f Found) context.Context {
	return context.WithValue(ctx, foundKey{}, f)
}

// find is the node of a tenant that an address belongs to, and its session.
func (b *Board) find(tenant, host string) (string, *tunnel.Session, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return among(b.sessions[tenant], host)
}

// among finds a session by node name, or by an IP that exactly one of the nodes has. It is given one tenant's nodes and
// nothing else, so neither its answer nor the way to it depends on what another tenant has.
func among(nodes map[string]*tunnel.Session, host string) (string, *tunnel.Session, error) {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		name := strings.ToLower(host)
		if s := nodes[name]; s != nil {
			return name, s, nil
		}
		return "", nil, notFound(host)
	}
	var having []string
	for name, s := range nodes {
		if slices.Contains(s.PeerHello().Addresses, ip.Unmap()) {
			having = append(having, name)
		}
	}
	switch len(having) {
	case 0:
		return "", nil, notFound(host)
	case 1:
		return having[0], nodes[having[0]], nil
	}
	slices.Sort(having)
	return "", nil, refusal(wire.BadRequest, "%d nodes have the address %s (%s): start the API server with "+
		"--kubelet-preferred-address-types=Hostname,InternalIP so that it asks for them by name", len(having), host, sample(having))
}

// notFound is the one answer for a node that is not connected, does not exist, or is another tenant's.
func notFound(host string) error {
	return refusal(wire.NotFound, "no connected node has the name or address %.80q", host)
}

func refusal(code wire.Code, format string, args ...any) error {
	return &tunnel.RefusedError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// sample names the first few.
func sample(names []string) string {
	if len(names) > 3 {
		return strings.Join(names[:3], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// NodeAddresses are the addresses that a node's live session attests; false if it has none.
func (b *Board) NodeAddresses(tenant, node string) ([]netip.Addr, bool) {
	s := b.session(tenant, node)
	if s == nil {
		return nil, false
	}
	return slices.Clone(s.PeerHello().Addresses), true
}

// Cut closes a node's live session, if there is one, and tells whether there was.
func (b *Board) Cut(tenant, node string, code wire.Code, message string) bool {
	s := b.session(tenant, node)
	if s == nil {
		return false
	}
	s.Close(code, message)
	return true
}

// CutTenant closes all sessions of a tenant's nodes.
func (b *Board) CutTenant(tenant string, code wire.Code, message string) {
	b.mu.RLock()
	var all []*tunnel.Session
	for _, s := range b.sessions[tenant] {
		all = append(all, s)
	}
	b.mu.RUnlock()
	for _, s := range all {
		s.Close(code, message)
	}
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

// Session describes a node's live session; false if it has none.
func (b *Board) Session(tenant, node string) (Info, bool) {
	s := b.session(tenant, node)
	if s == nil {
		return Info{}, false
	}
	return describe(s, tenant, node), true
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
