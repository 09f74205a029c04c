package switchboard

import (
	"context"
	"iter"
	"math/rand/v2"
	"net"
	"net/netip"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Way is how a node is reached. Errors of Open are as those of tunnel.Session.Open.
type Way interface {
	Open(ctx context.Context, addr string) (net.Conn, error)
	Transport() tunnel.Transport
}

// bySession is by the node's own session.
type bySession struct{ s *tunnel.Session }

func (w bySession) Open(ctx context.Context, addr string) (net.Conn, error) {
	stream, err := w.s.Open(ctx, wire.KindDial, addr)
	if err != nil {
		return nil, err // and no nil *Stream in an interface
	}
	return stream, nil
}

func (w bySession) Transport() tunnel.Transport { return w.s.Transport() }

// Elsewhere knows the nodes that are connected to other brokers of the same store. It must not call the Board.
type Elsewhere interface {
	// Way is by which a node is reached, nil if it is connected nowhere else.
	Way(tenant, node string) Way
	// Having are the names of a tenant's nodes that attest an address.
	Having(tenant string, address netip.Addr) []string
	// Nodes are the names of a tenant's nodes.
	Nodes(tenant string) []string
}

// here is the way to a node that is connected to this broker, nil if it is not. b.mu is held.
func (b *Board) here(tenant, node string) Way {
	if s := b.sessions[tenant][node]; s != nil {
		return bySession{s}
	}
	if e := b.agent(tenant, node); e != nil {
		return e
	}
	return nil
}

// way is the way to a node, nil if it is not connected. b.mu is held.
func (b *Board) way(tenant, node string) Way {
	if w := b.here(tenant, node); w != nil {
		return w
	}
	if b.elsewhere != nil {
		return b.elsewhere.Way(tenant, node)
	}
	return nil
}

// any tells whether a node of the tenant is connected. b.mu is held.
func (b *Board) any(tenant string) bool {
	for range b.ways(tenant) {
		return true
	}
	return false
}

// ways are those to a tenant's nodes, beginning anywhere: to those that are connected here, if there are any, for one hop is
// better than two; else to those of other brokers. b.mu is held.
func (b *Board) ways(tenant string) iter.Seq2[string, Way] {
	return func(yield func(string, Way) bool) {
		for name, s := range b.sessions[tenant] {
			if !yield(name, bySession{s}) {
				return
			}
		}
		for name := range b.agents[tenant] {
			if b.sessions[tenant][name] != nil {
				continue
			}
			if e := b.agent(tenant, name); e != nil && !yield(name, e) {
				return
			}
		}
		if len(b.sessions[tenant])+len(b.agents[tenant]) > 0 || b.elsewhere == nil {
			return
		}
		names := b.elsewhere.Nodes(tenant)
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, name := range names {
			if w := b.elsewhere.Way(tenant, name); w != nil && !yield(name, w) {
				return
			}
		}
	}
}

// Connected tells whether a node can be asked: by a session or an agent here, or by another broker.
func (b *Board) Connected(tenant, node string) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.way(tenant, node) != nil
}
