package agent

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// nodeAddresses are the addresses that the node attests as its own: what the operator configured; else
// the one from which the broker is reached, as a rule the one that the kubelet finds too; else whatever
// the interfaces have.
func nodeAddresses(ctx context.Context, configured []netip.Addr, wayOut string) []netip.Addr {
	if len(configured) > 0 {
		return usable(configured)
	}
	if a, ok := routeSource(ctx, wayOut); ok {
		return usable([]netip.Addr{a})
	}
	return usable(interfaceAddresses())
}

// usable keeps what can be attested, in canonical form, once, within the hello's bound.
func usable(in []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range in {
		a = a.Unmap()
		if attestable(a) && !slices.Contains(out, a) && len(out) < wire.MaxAddresses {
			out = append(out, a)
		}
	}
	return out
}

// lookupTimeout bounds the look-up of a name on the way to a source address.
const lookupTimeout = 3 * time.Second

// routeSource is the address from which a host:port is reached, if others can reach that.
func routeSource(ctx context.Context, to string) (netip.Addr, bool) {
	a, err := sourceAddr(ctx, to)
	return a, err == nil && attestable(a) // a broker on the same machine is reached from loopback
}

// podInterfaces begin the names of interfaces that belong to containers and overlays, whose addresses
// mean another thing on each node.
var podInterfaces = []string{"lo", "cni", "veth", "docker", "flannel", "br-", "virbr", "cali", "cilium", "lxc", "kube-", "nodelocaldns", "tunl", "vxlan", "weave", "podman"}

func interfaceAddresses() []netip.Addr {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, i := range ifaces {
		ofPods := slices.ContainsFunc(podInterfaces, func(p string) bool { return strings.HasPrefix(i.Name, p) })
		if ofPods || i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, p.Addr())
			}
		}
	}
	return out
}
