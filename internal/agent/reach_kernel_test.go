package agent

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mooring-edge/mooring/internal/hostnet"
)

// byTheKernel runs f in a network namespace of its own, in which setup (ip(8) commands) was done.
func byTheKernel(t *testing.T, setup []string, f func()) {
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
			f()
			return nil
		}()
	}()
	err := <-done
	if errors.Is(err, unix.EPERM) && os.Getenv("MOORING_REQUIRE_ALL") == "" {
		t.Skip("needs root, for a network namespace")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestReachByTheKernel: on a node with a modem that names no gateway, and kube-proxy in its IPVS mode, Services are reached and
// an address there is fit for the control plane; the node itself and the site's LAN are refused. Seen failing with Way.Gateway
// left to the kernel's attributes (10.96.0.10, fd96::10, and unfit), and with way.Interface in place of onlyOn (10.96.0.77).
func TestReachByTheKernel(t *testing.T) {
	setup := []string{
		"link set lo up", "addr add 10.96.0.53/32 dev lo",
		"tuntap add dev wwan0 mode tun", "addr add 10.64.0.2 peer 10.64.0.1 dev wwan0", "link set wwan0 up",
		"route add default dev wwan0", "-6 route add default dev wwan0",
		"link add eth0 type veth peer name far0", "addr add 10.97.0.10/24 dev eth0", "link set eth0 up", "link set far0 up",
		// kube-proxy's is a dummy, and down too.
		"link add kube-ipvs0 type bridge", "addr add 10.96.0.77/32 dev kube-ipvs0", "addr add 10.96.0.53/32 dev kube-ipvs0",
	}
	byTheKernel(t, setup, func() {
		r := wideReach()
		r.way, r.onlyOn = hostnet.WayTo, hostnet.OnlyOn
		for a, want := range map[string]bool{
			"10.96.0.10": true, "fd96::10": true, "10.96.0.77": true,
			"10.96.0.53": false, "10.64.0.1": false, "10.64.0.2": false, "10.97.0.10": false, "10.97.0.7": false,
		} {
			if err := r.permit(netip.MustParseAddr(a)); (err == nil) != want {
				t.Errorf("%s: %v; want it permitted: %t", a, err, want)
			}
		}
		r.services = nil // that is, all are pods
		if err := r.permit(netip.MustParseAddr("10.96.0.77")); err == nil {
			t.Error("an address of kube-proxy's is permitted as a pod's")
		}
		v := advertised{way: hostnet.WayTo}
		for a, want := range map[string]bool{"198.51.100.1": true, "10.64.0.1": false, "10.97.0.7": false, "10.97.0.10": false} {
			if why := v.unfit(netip.MustParseAddr(a), false, nil); (why == "") != want {
				t.Errorf("%s for the control plane: %q; want it fit: %t", a, why, want)
			}
		}
	})
}
