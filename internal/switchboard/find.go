package switchboard

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// list has a node found by the addresses that its session attests. b.mu is held.
func (b *Board) list(s *tunnel.Session, p place) {
	of := b.addresses[p.tenant]
	if of == nil {
		of = map[netip.Addr]map[string]bool{}
		b.addresses[p.tenant] = of
	}
	for _, a := range s.PeerHello().Addresses {
		if of[a] == nil {
			of[a] = map[string]bool{}
		}
		of[a][p.node] = true
	}
}

// unlist takes back what list did. b.mu is held.
func (b *Board) unlist(s *tunnel.Session, p place) {
	if s == nil {
		return
	}
	of := b.addresses[p.tenant]
	for _, a := range s.PeerHello().Addresses {
		if delete(of[a], p.node); len(of[a]) == 0 {
			delete(of, a)
		}
	}
	if len(of) == 0 {
		delete(b.addresses, p.tenant)
	}
}

// Dial connects to an address as the tenant's API server knows it: "node-name:port" or "ip:port", of a node, a pod or a
// Service. What is refused, here or by the node, is a *tunnel.RefusedError.
func (b *Board) Dial(ctx context.Context, tenant, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" {
		return nil, refusal(wire.BadRequest, "not an address to dial: %.80q (want host:port)", addr)
	}
	ends, err := b.find(tenant, host)
	if err != nil {
		return nil, err
	}
	found, _ := ctx.Value(foundKey{}).(Found)
	var conn net.Conn
	for i, end := range ends {
		asked := ctx
		if found != nil {
			asked = found(ctx, end.node, end.way.Transport())
		}
		if conn, err = end.way.Open(asked, addr); err == nil {
			return conn, nil
		}
		if i+1 == len(ends) || ctx.Err() != nil || !another(err) {
			break
		}
		b.log.Debug("a node did not take a connection to a service, asking another", "tenant", tenant, "node", end.node, "target", addr,
			"dial", tunnel.TraceOf(asked).String(), "err", err)
	}
	return nil, err
}

// Found is told of each node that is asked for a dial, before it is: of one, as a rule, or of two if the first of those
// by which a Service is reached did not take it. The dial goes on with the context that it returns.
type Found func(ctx context.Context, node string, transport tunnel.Transport) context.Context

type foundKey struct{}

// OnFound has Dial call f in the goroutine of its caller.
func OnFound(ctx context.Context, f Found) context.Context {
	return context.WithValue(ctx, foundKey{}, f)
}

// DialHere is Dial for another broker, which has found the node: it is asked if it is connected here, and no other broker is.
func (b *Board) DialHere(ctx context.Context, tenant, node, addr string) (net.Conn, error) {
	b.mu.RLock()
	way := b.here(tenant, node)
	b.mu.RUnlock()
	if way == nil {
		return nil, notFound(node)
	}
	return way.Open(ctx, addr)
}

// endpoint is a connected node.
type endpoint struct {
	node string
	way  Way
}

// find is by which of a tenant's nodes an address is reached, in the order in which they are to be asked. It looks at what
// is the tenant's and nothing else, so neither its answer nor the way to it depends on what another tenant has.
//
// A name is a node's. An IP is a Service's if it lies in a Service range, whatever a node attests; else the node's that
// attests it, or whose pod CIDR it lies in. Where these are not one and the same node, nobody is asked: a node could
// otherwise take what is another's by attesting its pods' addresses.
func (b *Board) find(tenant, host string) ([]endpoint, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	ip, err := netip.ParseAddr(host)
	if err != nil {
		name := strings.ToLower(host)
		if way := b.way(tenant, name); way != nil {
			return []endpoint{{name, way}}, nil
		}
		return nil, notFound(host)
	}
	ip = ip.Unmap()
	if b.clusters[tenant].isService(ip) && b.any(tenant) {
		return b.candidates(tenant, ip)
	}
	name, err := b.owner(tenant, ip)
	if err != nil {
		return nil, err
	}
	if way := b.way(tenant, name); way != nil {
		return []endpoint{{name, way}}, nil
	}
	return nil, notFound(host)
}

// owner is the one node that has an address, or whose pods have it; "" if there is none. b.mu is held.
func (b *Board) owner(tenant string, ip netip.Addr) (string, error) {
	having := slices.Collect(maps.Keys(b.addresses[tenant][ip]))
	having = append(having, b.agentsHaving(tenant, ip)...)
	if b.elsewhere != nil {
		having = append(having, b.elsewhere.Having(tenant, ip)...)
	}
	slices.Sort(having)
	having = slices.Compact(having)
	pods := b.clusters[tenant].podNodes(ip)
	switch {
	case len(having) > 1:
		return "", refusal(wire.BadRequest, "%d nodes have the address %s (%s): start the API server with "+
			"--kubelet-preferred-address-types=Hostname,InternalIP so that it asks for them by name", len(having), ip, sample(having))
	case len(pods) > 1:
		return "", refusal(wire.BadRequest, "the address %s lies in the podCIDRs of %d nodes (%s), which must not overlap: "+
			"look at spec.podCIDRs of these Nodes", ip, len(pods), sample(pods))
	case len(having) == 1 && len(pods) == 1 && having[0] != pods[0]:
		return "", refusal(wire.BadRequest, "node %s says that it has the address %s, which lies in the podCIDR of node %s: start the API server with "+
			"--kubelet-preferred-address-types=Hostname,InternalIP, and use podCIDRs that no site has in its network", having[0], ip, pods[0])
	case len(having) == 1:
		return having[0], nil
	case len(pods) == 1:
		return pods[0], nil
	}
	return "", nil
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
