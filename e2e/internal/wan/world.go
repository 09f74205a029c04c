package wan

import (
	"errors"
	"fmt"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/relay"
)

const (
	// Endpoint is where a World's broker listens.
	Endpoint = "203.0.113.1:443"
	// TrustDomain is that of a World's CA.
	TrustDomain = "wan.test"

	platformAddr = "203.0.113.1"
	routerAddr   = "203.0.113.2"
)

// World is one network. Its fields are set by New and not changed any more.
type World struct {
	Site, Router, Platform host.Netns
	// Link is between Router and Platform; its way up is towards the platform.
	Link *relay.Link
	CA   *pki.CA

	run   *host.Run
	name  string
	made  []host.Netns
	sites int
	procs []*Proc
}

// New makes a World; its names in the kernel begin with the run's and name.
func New(run *host.Run, name string, s relay.Settings) (w *World, err error) {
	w = &World{run: run, name: name}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make the network %s: %w", name, err), w.Close())
		}
	}()
	if w.CA, err = pki.NewCA(TrustDomain, time.Now()); err != nil {
		return w, err
	}
	if w.Router, err = w.addNetns("router"); err != nil {
		return w, err
	}
	if w.Platform, err = w.addNetns("platform"); err != nil {
		return w, err
	}
	w.Link, err = relay.StartLink(relay.LinkConfig{
		Near:     relay.End{Netns: w.Router.Path(), Device: "wan"},
		Far:      relay.End{Netns: w.Platform.Path(), Device: "wan"},
		Settings: s,
	})
	if err != nil {
		return w, err
	}
	err = errors.Join(
		w.Router.IP("addr add "+routerAddr+" peer "+platformAddr+" dev wan"),
		w.Router.IP("link set wan up"),
		w.Router.Sysctl("net/ipv4/ip_forward", "1"),
		w.Platform.IP("addr add "+platformAddr+" peer "+routerAddr+" dev wan"),
		w.Platform.IP("link set wan up"),
		w.Platform.IP("route add default via "+routerAddr),
	)
	if err != nil {
		return w, err
	}
	w.Site, err = w.AddSite()
	return w, err
}

func (w *World) addNetns(what string) (host.Netns, error) {
	n, err := host.AddNetns(w.run.Name(w.name + "-" + what))
	if n != "" {
		w.made = append(w.made, n)
	}
	return n, err
}

// AddSite makes one more namespace behind the router, with an address of its own.
func (w *World) AddSite() (host.Netns, error) {
	i := w.sites
	w.sites++
	n, err := w.addNetns(fmt.Sprintf("site%d", i))
	if err != nil {
		return n, err
	}
	return n, errors.Join(
		w.Router.IP(fmt.Sprintf("link add lan%d type veth peer name eth0 netns %s", i, n)),
		w.Router.IP(fmt.Sprintf("addr add 10.77.%d.1/24 dev lan%d", i, i)),
		w.Router.IP(fmt.Sprintf("link set lan%d up", i)),
		n.IP(fmt.Sprintf("addr add 10.77.%d.2/24 dev eth0", i)),
		n.IP("link set eth0 up"),
		n.IP(fmt.Sprintf("route add default via 10.77.%d.1", i)),
	)
}

// NAT has the router masquerade the sites, and let nothing in that they did not ask for.
func (w *World) NAT() error {
	return w.Router.Nft(`
table inet nat {
	chain out { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }
	chain in { type filter hook input priority filter; iifname "wan" drop; }
	chain through { type filter hook forward priority filter; iifname "wan" ct state new,invalid drop; }
}`)
}

// SetMTU sets the MTU of the stretch between the router and the platform. The router tells senders of it.
func (w *World) SetMTU(n int) error {
	set := fmt.Sprintf("link set wan mtu %d", n)
	return errors.Join(w.Router.IP(set), w.Platform.IP(set))
}

// Congestion sets the congestion control of TCP at both ends, whatever the programs ask for. It is the routes', as a namespace
// may not choose one for itself that the system does not allow to everybody.
func (w *World) Congestion(name string) error {
	return errors.Join(
		w.Site.IP("route change default via 10.77.0.1 congctl lock "+name),
		w.Platform.IP("route change default via "+routerAddr+" congctl lock "+name),
	)
}

// Close ends the processes of a World and removes all that it made.
func (w *World) Close() error {
	var errs []error
	for _, p := range w.procs {
		errs = append(errs, p.Close())
	}
	if w.Link != nil {
		w.Link.Close()
	}
	for _, n := range w.made {
		errs = append(errs, n.Delete())
	}
	return errors.Join(errs...)
}
