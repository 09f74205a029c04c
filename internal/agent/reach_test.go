package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mooring-edge/mooring/internal/hostnet"
)

// testWay is the ways of a machine with a LAN 192.168.1.0/24 on eth0, pods on cni0 and other containers on docker0.
func testWay(a netip.Addr) (hostnet.Way, error) {
	for _, route := range []struct {
		prefix string
		way    hostnet.Way
	}{
		{"10.244.1.1/32", hostnet.Way{Local: true, Interface: "lo"}}, {"192.168.1.10/32", hostnet.Way{Local: true, Interface: "lo"}},
		{"2001:db8::10/128", hostnet.Way{Local: true, Interface: "lo"}}, {"198.51.100.1/32", hostnet.Way{Local: true, Interface: "lo"}},
		{"10.96.0.77/32", hostnet.Way{Local: true, Interface: "lo"}}, {"10.96.0.53/32", hostnet.Way{Local: true, Interface: "lo"}},
		{"127.0.0.0/8", hostnet.Way{Local: true, Interface: "lo"}}, {"::1/128", hostnet.Way{Local: true, Interface: "lo"}},
		{"10.244.1.0/24", hostnet.Way{Interface: "cni0"}}, {"fd00:244:1::/64", hostnet.Way{Interface: "cni0"}},
		{"192.168.1.0/24", hostnet.Way{Interface: "eth0"}}, {"172.17.0.0/16", hostnet.Way{Interface: "docker0"}},
		{"10.97.0.0/16", hostnet.Way{Interface: "eth1"}},
		{"0.0.0.0/0", hostnet.Way{Interface: "eth0", Gateway: true}}, {"fd00::/8", hostnet.Way{Interface: "eth0", Gateway: true}},
	} {
		if netip.MustParsePrefix(route.prefix).Contains(a) {
			return route.way, nil
		}
	}
	return hostnet.Way{}, unix.ENETUNREACH
}

// testOnlyOn is the one address of that machine that kube-proxy put there; the kernel's way to it is as to all others.
func testOnlyOn(iface string, a netip.Addr) bool {
	return iface == "kube-ipvs0" && a == netip.MustParseAddr("10.96.0.77")
}

// wideReach is what a hostile API server and a hostile broker would have it be: everything is a pod's and a Service's.
func wideReach() reach {
	all := mustPrefixes("0.0.0.0/0", "::/0")
	return reach{pods: all, services: all, ifaces: podInterfaceNames{"cni", "veth"}, way: testWay, onlyOn: testOnlyOn}
}

func honestReach() reach {
	return reach{
		pods: mustPrefixes("10.244.1.0/24", "fd00:244:1::/64"), services: mustPrefixes("10.96.0.0/15", "fd00:96::/108"),
		ifaces: podInterfaceNames{"cni", "veth"}, way: testWay, onlyOn: testOnlyOn,
	}
}

// TestReach: pods of this node and Services, and nothing that is said to be one and is not here. Seen failing for kube-proxy's
// IPVS mode with a look at way.Interface in place of onlyOn.
func TestReach(t *testing.T) {
	for target, want := range map[string]bool{
		"10.244.1.7:8443": true, "10.244.1.7:1": true, "[fd00:244:1::7]:8080": true, // any port of a pod
		"10.244.1.7:10250": true, // a pod's port of that number
		"10.96.0.10:443":   true, "[fd00:96::10]:443": true,
		"10.96.0.77:443": true, // as kube-proxy has it in its IPVS mode

		"10.244.2.7:8443": false, "[fd00:244:2::7]:8080": false, "10.98.0.1:443": false, // others'
		"10.244.1.1:8443": false, "10.244.1.1:10250": false, // this machine's own, in the podCIDR
		"10.96.0.53:53":  false, // the machine's own, in the range of Services
		"10.97.0.9:443":  false, // a network that the machine is in, in the range of Services
		"192.168.1.1:80": false, "192.168.1.10:22": false, "8.8.8.8:53": false, "198.51.100.1:6443": false,
		"[::ffff:10.244.1.7]:8443": false, "[fd00:244:1::7%eth0]:80": false, "10.244.1.7:0": false, "10.244.1.7": false, "10.244.001.7:80": false,
	} {
		p := testPolicy()
		p.reach = honestReach
		got, err := p.permit(target)
		if (err == nil) != want || err != nil && !errors.Is(err, errDenied) {
			t.Errorf("%q: permitted %t (%v), want %t", target, err == nil, err, want)
		}
		if err == nil && got != netip.MustParseAddrPort(target) {
			t.Errorf("%q: dials %s", target, got)
		}
		p.reach = func() reach { return reach{way: testWay, onlyOn: testOnlyOn} }
		if _, err := p.permit(target); err == nil {
			t.Errorf("%q is permitted with pods and Services switched off", target)
		}
	}
}

// TestFault30HostileRanges: with ranges of pods and Services as wide as they come, what is this machine's or its network's is
// refused all the same. Seen failing with the case of way.Local taken out of reach.permit (the node's own ports), and with
// that of a Service by a gateway made unconditional (neighbours).
func TestFault30HostileRanges(t *testing.T) {
	p := testPolicy()
	p.reach = wideReach
	targets := slices.Concat(fault30, []string{
		"192.168.1.10:22", "[2001:db8::10]:22", "192.168.1.1:80", "192.168.1.77:10250", "172.17.0.2:80", "10.244.1.1:22", "10.244.1.1:10250",
		"224.0.0.1:1", "255.255.255.255:1", "0.0.0.0:80", "[ff02::1]:1", "[fe80::1]:1", "100.100.100.200:80", "168.63.129.16:80", "[fd20:ce::254]:80",
		"[64:ff9b::a9fe:a9fe]:80", "198.51.100.1:6443", "127.0.0.1:6443", "[2001:0:a:b::1]:1",
	})
	for _, target := range targets {
		if got, err := p.permit(target); err == nil || got.IsValid() {
			t.Errorf("%q: permitted, to %s", target, got)
		}
	}
}

func TestAcceptServices(t *testing.T) {
	local := mustPrefixes("192.168.1.0/24", "10.100.0.10/32", "fd00:aa::/64")
	for told, reason := range map[string]string{
		"10.96.0.0/12": "overlaps", "10.112.0.0/12": "", "10.96.0.0/16": "", "172.20.0.0/16": "", "192.168.128.0/17": "", "100.64.0.0/16": "",
		"fd00:96::/108": "", "fd00:96::/48": "", "fd00:aa::/108": "overlaps", "fd00::/47": "wider",
		"10.0.0.0/8": "wider", "0.0.0.0/0": "not private", "192.168.0.0/16": "overlaps", "8.8.8.0/24": "not private", "169.254.0.0/16": "not private",
		"127.0.0.0/16": "not private", "2001:db8::/108": "not private", "::/0": "not private", "192.0.0.0/8": "not private", "172.16.0.0/11": "not private",
	} {
		accepted, refused := acceptServices(mustPrefixes(told), nil, local)
		if (len(accepted) == 1) != (reason == "") || (len(refused) == 1) != (reason != "") || !strings.Contains(strings.Join(refused, ""), reason) {
			t.Errorf("%s: accepted %v, refused %v; want a reason with %q", told, accepted, refused, reason)
		}
	}
	configured := mustPrefixes("203.0.113.0/24")
	if got, refused := acceptServices(mustPrefixes("10.0.0.0/8"), configured, local); !slices.Equal(got, configured) || len(refused) > 0 {
		t.Errorf("with dial.serviceCIDRs: %v, %v", got, refused)
	}
}

// FuzzFault30Reach checks by another way than the policy's own that nothing is permitted but the kubelet, addresses in the
// pods' range that go out by their interface, and addresses in the Services' range that are nobody's here.
func FuzzFault30Reach(f *testing.F) {
	for _, c := range policyCases {
		f.Add(c.target, false)
		f.Add(c.target, true)
	}
	for _, target := range fault30 {
		f.Add(target, true)
	}
	for _, target := range []string{"10.244.1.7:8443", "10.96.0.10:443", "[fd00:244:1::7]:80", "[fd00:96::1]:1", "10.244.1.1:1", "10.96.0.77:1"} {
		f.Add(target, false)
	}
	f.Fuzz(func(t *testing.T, target string, wide bool) {
		p := testPolicy()
		p.reach = honestReach
		if wide {
			p.reach = wideReach
		}
		got, err := p.permit(target)
		if err != nil {
			if got.IsValid() {
				t.Fatalf("%q is denied and yet gives %s", target, got)
			}
			return
		}
		if got == kubeletAt {
			return // FuzzFault30Policy's
		}
		if fmt.Sprint(got) == "" || got.Port() == 0 {
			t.Fatalf("%q dials %s", target, got)
		}
		asked, parseErr := netip.ParseAddrPort(target)
		a := got.Addr()
		if parseErr != nil || asked != got || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() && !a.Is4() {
			t.Fatalf("%q dials %s", target, got)
		}
		if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			t.Fatalf("%q dials %s", target, got)
		}
		way, err := testWay(a)
		switch {
		case err != nil:
			t.Fatalf("%q: permitted without a way there", target)
		case way.Local && !testOnlyOn("kube-ipvs0", a):
			t.Fatalf("%q dials this machine at %s", target, got)
		case !way.Local && !way.Gateway && way.Interface != "cni0":
			t.Fatalf("%q dials a neighbour at %s", target, got)
		}
		if !wide && !netip.MustParsePrefix("10.244.1.0/24").Contains(a) && !netip.MustParsePrefix("10.96.0.0/15").Contains(a) &&
			!netip.MustParsePrefix("fd00:244:1::/64").Contains(a) && !netip.MustParsePrefix("fd00:96::/108").Contains(a) {
			t.Fatalf("%q dials %s, in no range", target, got)
		}
	})
}
