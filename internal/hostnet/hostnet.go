// Package hostnet asks the kernel how this machine's network is, and puts addresses on its loopback interface.
//
// It speaks netlink, with no library for it: four small messages are less than any has. It decides nothing: which
// addresses may be asked for, and which are whose, its callers know. Linux only.
package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Way is how the kernel would send to an address from this machine.
type Way struct {
	// Local says that the address is this machine's own, or otherwise ends here.
	Local bool
	// Interface is the name of the one that it goes out by: lo for most of the machine's own, whichever has them (OnlyOn).
	Interface string
	// Gateway says that it goes by a router, so that the address is no neighbour's. A default route over a link with no
	// neighbours to ask for (LTE, PPP, WireGuard) names none: what is at the link's other end is the router then.
	Gateway bool
}

// WayTo looks up the way to an address; unix.ENETUNREACH or the like if there is none.
func WayTo(to netip.Addr) (Way, error) {
	to = to.Unmap()
	answer, err := route(to, 0)
	if err != nil {
		return Way{}, fmt.Errorf("look up the way to %s: %w", to, err)
	}
	w := Way{Local: answer[7] == unix.RTN_LOCAL}
	switch answer[7] {
	case unix.RTN_LOCAL, unix.RTN_UNICAST:
	default:
		return Way{}, fmt.Errorf("look up the way to %s: %w", to, unix.ENETUNREACH) // blackhole, broadcast and so on
	}
	var index uint32
	for kind, value := range attributes(answer[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_OIF:
			if len(value) == 4 {
				index = binary.NativeEndian.Uint32(value)
				if i, err := net.InterfaceByIndex(int(index)); err == nil {
					w.Interface = i.Name
				}
			}
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			w.Gateway = true
		}
	}
	// An IPv6 address that lo was just given has a route out by lo for a moment, before it has its own.
	w.Local = w.Local || w.Interface == "lo"
	if !w.Local && !w.Gateway && noNeighbours(index) {
		if w.Gateway, err = byDefault(to); err != nil {
			return Way{}, fmt.Errorf("look up the route to %s: %w", to, err)
		}
	}
	return w, nil
}

// route asks for the way to an address: a header of SizeofRtMsg bytes, and attributes.
func route(to netip.Addr, flags uint32) ([]byte, error) {
	body := make([]byte, unix.SizeofRtMsg)
	body[0], body[1] = family(to), byte(to.BitLen())
	binary.NativeEndian.PutUint32(body[8:], flags)
	answer, err := request(unix.RTM_GETROUTE, 0, attribute(body, unix.RTA_DST, to.AsSlice()))
	if err == nil && len(answer) < unix.SizeofRtMsg {
		err = errAnswer
	}
	return answer, err
}

// byDefault tells whether the route that leads to an address is the default one, or the half of it that VPNs set in its
// place. An interface's own network or peer never is. A kernel before 4.13 says the address itself for the route.
func byDefault(to netip.Addr) (bool, error) {
	answer, err := route(to, unix.RTM_F_FIB_MATCH)
	return err == nil && answer[1] <= 1, err
}

// noNeighbours tells whether an interface has one other end, or none that is asked for by its address (ARP, NDP).
func noNeighbours(index uint32) bool {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], index)
	answer, err := request(unix.RTM_GETLINK, 0, body)
	if err != nil || len(answer) < unix.SizeofIfInfomsg {
		return false
	}
	return binary.NativeEndian.Uint32(answer[8:])&(unix.IFF_POINTOPOINT|unix.IFF_NOARP) != 0
}

// OnlyOn tells whether the interface of that name has an address, and no other has it too; false where that can't be told.
func OnlyOn(name string, a netip.Addr) bool {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return false
	}
	its, err := i.Addrs()
	if err != nil {
		return false
	}
	all, err := net.InterfaceAddrs()
	n := count(its, a)
	return err == nil && n > 0 && n == count(all, a)
}

func count(addrs []net.Addr, a netip.Addr) (n int) {
	for _, x := range addrs {
		if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr() == a.Unmap() {
			n++
		}
	}
	return n
}

// Label marks the IPv4 addresses that AddLoopback added, for people who look.
const Label = "lo:mooring"

// AddLoopback puts an address on lo, as the only one of its prefix; fs.ErrExist if lo has it. The kernel forgets it with
// its next start.
func AddLoopback(a netip.Addr) error {
	err := loopback(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a)
	if errors.Is(err, unix.EEXIST) {
		err = fs.ErrExist
	}
	if err != nil {
		return fmt.Errorf("put %s on the loopback interface: %w", a, err)
	}
	return nil
}

// RemoveLoopback takes an address off lo. That it is not there is no error.
func RemoveLoopback(a netip.Addr) error {
	err := loopback(unix.RTM_DELADDR, 0, a)
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("take %s off the loopback interface: %w", a, err)
	}
	return nil
}

func loopback(kind uint16, flags int, a netip.Addr) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	a = a.Unmap()
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0], body[1] = family(a), byte(a.BitLen())
	binary.NativeEndian.PutUint32(body[4:], uint32(lo.Index))
	body = attribute(body, unix.IFA_LOCAL, a.AsSlice())
	if a.Is4() {
		body = attribute(body, unix.IFA_ADDRESS, a.AsSlice())
		body = attribute(body, unix.IFA_LABEL, append([]byte(Label), 0))
	} else {
		body[2] = unix.IFA_F_NODAD // there is nobody on lo to ask, and it is to be of use at once
	}
	_, err = request(kind, flags, body)
	return err
}

// BootID names this run of the kernel: what it was told before another one, it has forgotten.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
