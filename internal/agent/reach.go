package agent

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/mooring-edge/mooring/internal/hostnet"
)

// reach is what the tunnel may dial beside the kubelet: the node's own pods, and Services. The zero value is nothing.
//
// Where an address may lie is one half of it; the other is the way that the kernel would take to it at that moment,
// which says what the address is *here*: an address of a pod goes out by an interface of pods, and that of a Service
// goes to nobody on the node's own network. So an API server or a broker that names ranges at will gets no further
// than that.
type reach struct {
	pods     []netip.Prefix // by the node's own object at its API server
	services []netip.Prefix // that were accepted
	ifaces   podInterfaceNames
	way      func(netip.Addr) (hostnet.Way, error)
	onlyOn   func(iface string, a netip.Addr) bool // as hostnet.OnlyOn
}

// podInterfaceNames begin the names of interfaces that lead to this node's pods.
type podInterfaceNames []string

func (n podInterfaceNames) has(name string) bool {
	return name != "lo" && slices.ContainsFunc(n, func(p string) bool { return strings.HasPrefix(name, p) })
}

// permit says why an address is not to be dialled, or nil.
func (r reach) permit(a netip.Addr) error {
	if why := special(a); why != "" {
		return fmt.Errorf("%s is %s", a, why)
	}
	pod, service := within(a, r.pods), within(a, r.services)
	if !pod && !service {
		return fmt.Errorf("%s is neither of this node, nor of its pods (%s) or a Service (%s)", a, list(r.pods), list(r.services))
	}
	way, err := r.way(a)
	if err != nil {
		return err
	}
	switch {
	case way.Local && service && r.onlyOn(ipvsInterface, a):
		return nil
	case way.Local:
		return fmt.Errorf("%s is an address of this machine, not of a pod or a Service", a)
	case pod && r.ifaces.has(way.Interface):
		return nil
	case service && (way.Gateway || r.ifaces.has(way.Interface)):
		return nil
	case pod:
		return fmt.Errorf("no pod of this node has %s now: it would be sent out by %s", a, way.Interface)
	}
	return fmt.Errorf("%s would be sent to a neighbour on %s, where no Service is", a, way.Interface)
}

// ipvsInterface has the addresses of all Services where kube-proxy runs in its IPVS mode, which turns away what is for
// none of their ports.
const ipvsInterface = "kube-ipvs0"

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// specials are addresses that never are a pod's or a Service's, wherever a range has them.
var specials = []struct {
	what     string
	prefixes []netip.Prefix
}{
	{"a loopback address", mustPrefixes("127.0.0.0/8", "::/96")},
	{"a link-local address", mustPrefixes("169.254.0.0/16", "fe80::/10")},
	{"an address of metadata", mustPrefixes("100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32", "fd00:ec2::/32", "fd20:ce::/32")},
	{"a multicast address", mustPrefixes("224.0.0.0/4", "ff00::/8")},
	{"no address of a host", mustPrefixes("0.0.0.0/8", "240.0.0.0/4")},
	{"an IPv4 address in disguise", mustPrefixes("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")},
}

func mustPrefixes(texts ...string) (out []netip.Prefix) {
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// special says what an address is that is never dialled nor served; "" for all others.
func special(a netip.Addr) string {
	if a.Is4In6() || a.Zone() != "" {
		return "an IPv4 address in disguise, or one with a zone"
	}
	for _, s := range specials {
		if within(a, s.prefixes) {
			return s.what
		}
	}
	return ""
}

// privateRanges are where Services may be by the broker's word alone.
var privateRanges = mustPrefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")

// The widest ranges of Services that are taken by the broker's word: what a kube-apiserver takes, and a site's ULA.
const (
	widestV4 = 12
	widestV6 = 48
)

// acceptServices decides which ranges of Services count. What the operator says does; else what the broker says, if it
// is private, no wider than a cluster's, and none of the networks that this machine is in. Why others are not comes with it.
func acceptServices(told, configured []netip.Prefix, local []netip.Prefix) (accepted []netip.Prefix, refused []string) {
	if len(configured) > 0 {
		return configured, nil
	}
	for _, p := range told {
		widest := widestV6
		if p.Addr().Is4() {
			widest = widestV4
		}
		clash := slices.IndexFunc(local, p.Overlaps)
		switch {
		case !slices.ContainsFunc(privateRanges, func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) }):
			refused = append(refused, fmt.Sprintf("%s is not private", p))
		case p.Bits() < widest:
			refused = append(refused, fmt.Sprintf("%s is wider than /%d", p, widest))
		case clash >= 0:
			refused = append(refused, fmt.Sprintf("%s overlaps the node's network %s", p, local[clash]))
		default:
			accepted = append(accepted, p)
		}
	}
	return accepted, refused
}

// localNetworks are the networks that this machine's interfaces are in, but for those of pods.
func localNetworks(pods podInterfaceNames) []netip.Prefix {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var out []netip.Prefix
	for _, i := range ifaces {
		if i.Name == "lo" || i.Name == ipvsInterface || i.Name == "nodelocaldns" || pods.has(i.Name) {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

// list is prefixes as a person reads them.
func list(prefixes []netip.Prefix) string {
	if len(prefixes) == 0 {
		return "none known or permitted"
	}
	var texts []string
	for _, p := range prefixes {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ", ")
}
