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
func nodeAddresses(ctx context.Context, configured []netip.Addr, endpoint string) []netip.Addr {
	if len(configured) > 0 {
		return usable(configured)
	}
	if a, ok := routeSource(ctx, endpoint); ok {
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

// routeSource asks the kernel which source address it would use to reach the broker. Connecting a UDP
// socket sends nothing.
func routeSource(ctx context.Context, endpoint string) (netip.Addr, bool) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", endpoint)
	if err != nil {
		return netip.Addr{}, false
	}
	defer conn.Close()
	ap, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return netip.Addr{}, false
	}
	a := ap.Addr().Unmap()
	return a, attestable(a) // a broker on the same machine is reached from loopback
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
