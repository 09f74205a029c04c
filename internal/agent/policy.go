package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// policy is the node's own say in what the tunnel may dial here. It permits the node's own kubelet, by the
// names the API server knows it by; the addresses of the node's pods; and those of Services, if there is a
// reach. Everything else is denied.
//
// Two things make it hold. A target is compared, never resolved: no DNS answer, number form or alias can
// stand for a permitted name. And what is dialled for the kubelet is not the target, but the address at
// which this agent has it listen, so that even a wrong verdict would reach nothing else of the node's own.
type policy struct {
	node      string              // the node's name
	port      uint16              // the kubelet's
	addresses func() []netip.Addr // what the node's hello attests
	kubelet   func() netip.AddrPort
	reach     func() reach // nil: to nothing
}

// errDenied is what every denial says besides its reason, so that whoever sees it knows whose it is.
var errDenied = errors.New("denied by the node's dial policy")

// policy is the dial policy as things are now.
func (a *Agent) policy() policy {
	p := policy{
		port: uint16(a.cfg.Kubelet.Port),
		addresses: func() []netip.Addr {
			if l := a.addresses.Load(); l != nil {
				return *l
			}
			return nil
		},
		kubelet: func() netip.AddrPort {
			if at := a.kubeletAt.Load(); at != nil {
				return *at
			}
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(a.cfg.Kubelet.Port))
		},
	}
	if r := a.reach.Load(); r != nil {
		p.reach = func() reach { return *r }
	}
	if id := a.identity.Load(); id != nil {
		p.node = id.Node
	}
	return p
}

// permit returns where to dial for target, "host:port".
func (p policy) permit(target string) (netip.AddrPort, error) {
	host, port, err := splitTarget(target)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %v", errDenied, err)
	}
	own := sameName(host, p.node) || p.ownAddress(host)
	switch {
	case own && port == p.port:
		return p.kubelet(), nil
	case own:
		return netip.AddrPort{}, fmt.Errorf("%w: port %d is not the kubelet's (%d)", errDenied, port, p.port)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || p.reach == nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %q is neither the name nor an address of node %s", errDenied, host, p.node)
	}
	if err := p.reach().permit(addr); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %v", errDenied, err)
	}
	return netip.AddrPortFrom(addr, port), nil
}

// ownAddress tells whether host is one of the node's addresses, in canonical form. netip takes no
// decimal, octal, hexadecimal or shortened forms; IPv4 in IPv6 and zones are turned away here.
func (p policy) ownAddress(host string) bool {
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Is4In6() || addr.Zone() != "" || !attestable(addr) {
		return false
	}
	for _, own := range p.addresses() {
		if own == addr {
			return true
		}
	}
	return false
}

// attestable tells whether an address can be a node's at all: other machines must be able to mean this
// one by it.
func attestable(a netip.Addr) bool {
	return a.IsValid() && a.IsGlobalUnicast() && !a.IsLoopback() && !a.Is4In6() && a.Zone() == ""
}

// sameName compares names as DNS does, in ASCII only: Unicode folding would find more names equal.
func sameName(a, b string) bool {
	if len(a) != len(b) || a == "" {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// splitTarget takes "host:port" or "[ipv6]:port" apart, more strictly than net.SplitHostPort: one form
// for each target.
func splitTarget(target string) (host string, port uint16, err error) {
	i := strings.LastIndexByte(target, ':')
	if i <= 0 {
		return "", 0, fmt.Errorf("target %.100q is not host:port", target)
	}
	host, digits := target[:i], target[i+1:]
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != digits {
		return "", 0, fmt.Errorf("target %.100q has no valid port", target)
	}
	bracketed := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
	if bracketed {
		host = host[1 : len(host)-1]
	}
	if bracketed != strings.Contains(host, ":") || strings.ContainsAny(host, "[]") {
		return "", 0, fmt.Errorf("target %.100q is not host:port", target)
	}
	return host, uint16(n), nil
}
