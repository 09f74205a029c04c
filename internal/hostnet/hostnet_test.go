package hostnet

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNetns runs f in a network namespace of its own, in which setup (ip(8) commands) was done.
func inNetns(t *testing.T, setup []string, f func(t *testing.T)) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, and with it the namespace, ends with this goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			for _, command := range setup {
				if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
					return errors.New(command + ": " + string(out))
				}
			}
			f(t)
			return nil
		}()
	}()
	err := <-done
	if errors.Is(err, unix.EPERM) {
		if os.Getenv("MOORING_REQUIRE_ALL") != "" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("needs root, for a network namespace")
	}
	if err != nil {
		t.Fatal(err)
	}
}

var site = []string{
	"link set lo up",
	"link add cni0 type bridge", "addr add 10.244.1.1/24 dev cni0", "addr add fd00:244:1::1/64 dev cni0 nodad", "link set cni0 up",
	"link add eth0 type veth peer name far0", "addr add 192.168.1.10/24 dev eth0", "link set eth0 up", "link set far0 up",
	"route add default via 192.168.1.1", "route add blackhole 10.99.0.0/16",
}

func TestWayTo(t *testing.T) {
	inNetns(t, site, func(t *testing.T) {
		for to, want := range map[string]Way{
			"10.244.1.7":        {Interface: "cni0"},
			"::ffff:10.244.1.7": {Interface: "cni0"},
			"fd00:244:1::7":     {Interface: "cni0"},
			"10.244.1.1":        {Interface: "lo", Local: true},
			"192.168.1.10":      {Interface: "lo", Local: true},
			"127.0.0.5":         {Interface: "lo", Local: true},
			"192.168.1.77":      {Interface: "eth0"},
			"10.96.0.1":         {Interface: "eth0", Gateway: true},
			"198.51.100.1":      {Interface: "eth0", Gateway: true},
		} {
			if got, err := WayTo(netip.MustParseAddr(to)); err != nil || got != want {
				t.Errorf("%s: %+v, %v; want %+v", to, got, err, want)
			}
		}
		// The kernel makes the way to an IPv6 address of its own a moment after the address, and tells nobody.
		got, err := WayTo(netip.MustParseAddr("fd00:244:1::1"))
		for end := time.Now().Add(10 * time.Second); !got.Local && time.Now().Before(end); time.Sleep(time.Millisecond) {
			got, err = WayTo(netip.MustParseAddr("fd00:244:1::1"))
		}
		if err != nil || !got.Local {
			t.Errorf("an IPv6 address of this machine: %+v, %v", got, err)
		}
		for _, to := range []string{"10.99.0.1", "fd00:99::1"} {
			if got, err := WayTo(netip.MustParseAddr(to)); err == nil {
				t.Errorf("%s: %+v; want no way", to, got)
			}
		}
	})
}

// modem is a node that has nothing but links without a router's address: LTE as most modems have it (a tun is such a link),
// and as one that pretends to be Ethernet does.
var modem = []string{
	"link set lo up",
	"tuntap add dev wwan0 mode tun", "addr add 10.64.0.2 peer 10.64.0.1 dev wwan0", "addr add 10.65.0.2/24 dev wwan0",
	"addr add fd64::2/64 dev wwan0 nodad", "link set wwan0 up", "route add default dev wwan0", "-6 route add default dev wwan0",
	"link add wwan1 type veth peer name far1", "link set wwan1 arp off", "addr add 10.66.0.2/24 dev wwan1", "link set wwan1 up",
	"link set far1 up", "route add 128.0.0.0/1 dev wwan1",
	"link add eth0 type veth peer name far0", "addr add 192.168.1.10/24 dev eth0", "link set eth0 up", "link set far0 up",
	"route add 64.0.0.0/2 dev wwan1", "route add default dev eth0 table 7", "rule add to 10.67.0.0/16 table 7",
}

// TestWayWithoutGateway: over a link without neighbours the default route leads beyond it, as a router's does. What is in the
// link's own network is a neighbour's, and so is all that is on the site's Ethernet, be it by the default route. Seen failing
// with Gateway left to the kernel's attributes alone (10.96.0.1, fd96::1, 198.51.100.1), without IFF_NOARP (198.51.100.1), with
// byDefault true for all routes (the links' own), and with noNeighbours true for all links (10.67.0.1).
func TestWayWithoutGateway(t *testing.T) {
	inNetns(t, modem, func(t *testing.T) {
		for to, want := range map[string]Way{
			"10.96.0.1":    {Interface: "wwan0", Gateway: true},
			"fd96::1":      {Interface: "wwan0", Gateway: true},
			"198.51.100.1": {Interface: "wwan1", Gateway: true}, // half of a default route
			"100.64.0.1":   {Interface: "wwan1"},                // a route of its own
			"10.64.0.1":    {Interface: "wwan0"},                // the peer
			"10.65.0.7":    {Interface: "wwan0"},
			"fd64::7":      {Interface: "wwan0"},
			"10.66.0.7":    {Interface: "wwan1"},
			"192.168.1.77": {Interface: "eth0"},
			"10.67.0.1":    {Interface: "eth0"},
			"10.65.0.2":    {Interface: "lo", Local: true},
		} {
			if got, err := WayTo(netip.MustParseAddr(to)); err != nil || got != want {
				t.Errorf("%s: %+v, %v; want %+v", to, got, err, want)
			}
		}
	})
}

// TestOnlyOn: what an interface has alone, up or down, which the way to an address doesn't say. Seen failing with the other
// interfaces' addresses left out of OnlyOn (10.96.0.53, fd96::53).
func TestOnlyOn(t *testing.T) {
	setup := slices.Concat(site, []string{
		"link add kube-ipvs0 type bridge", "addr add 10.96.0.77/32 dev kube-ipvs0", "addr add fd96::77/128 dev kube-ipvs0 nodad",
		"addr add 10.96.0.53/32 dev kube-ipvs0", "addr add 10.96.0.53/32 dev lo",
		"addr add fd96::53/128 dev kube-ipvs0 nodad", "addr add fd96::53/128 dev eth0 nodad",
	})
	inNetns(t, setup, func(t *testing.T) {
		for a, want := range map[string]bool{
			"10.96.0.77": true, "fd96::77": true, "::ffff:10.96.0.77": true,
			"10.96.0.53": false, "fd96::53": false, "192.168.1.10": false, "127.0.0.1": false, "10.96.0.78": false,
		} {
			if got := OnlyOn("kube-ipvs0", netip.MustParseAddr(a)); got != want {
				t.Errorf("%s is on kube-ipvs0 alone: %t, want %t", a, got, want)
			}
		}
		if OnlyOn("kube-ipvs1", netip.MustParseAddr("10.96.0.77")) {
			t.Error("an interface that is not there has an address")
		}
		want := Way{Interface: "lo", Local: true}
		if got, err := WayTo(netip.MustParseAddr("10.96.0.77")); err != nil || got != want {
			t.Errorf("10.96.0.77: %+v, %v; want %+v", got, err, want)
		}
	})
}

func TestLoopback(t *testing.T) {
	inNetns(t, site, func(t *testing.T) {
		for _, a := range []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")} {
			if err := RemoveLoopback(a); err != nil {
				t.Errorf("%s, which is not there: %v", a, err)
			}
			if err := AddLoopback(a); err != nil {
				t.Fatal(err)
			}
			if w, err := WayTo(a); err != nil || !w.Local {
				t.Errorf("%s on lo: %+v, %v", a, w, err)
			}
			l, err := net.Listen("tcp", netip.AddrPortFrom(a, 6443).String())
			if err != nil {
				t.Errorf("listen on it: %v", err)
			} else {
				l.Close()
			}
			if err := AddLoopback(a); !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s a second time: %v; want ErrExist", a, err)
			}
			if err := RemoveLoopback(a); err != nil {
				t.Error(err)
			}
			if w, err := WayTo(a); err == nil && w.Local {
				t.Errorf("%s is still there", a)
			}
		}
	})
}

// Whatever comes over the socket is read within its bounds.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		body, err := body1(b)
		if err == nil {
			for range attributes(body) {
			}
		}
		for range attributes(b) {
		}
	})
}
