package agent

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/mooring-edge/mooring/internal/hostnet"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// TestNetworkIsLearnedAndKept: pods' addresses come from the node's own object, Services' from the broker; both apply
// live, and outlast a restart with nobody there. The broker's word on pods would change nothing: it has none.
func TestNetworkIsLearnedAndKept(t *testing.T) {
	s := newShore(t)
	s.api.SetPodCIDRs("10.244.7.0/24", "fd00:244:7::/64")
	cfg := s.node()
	cfg.API.Advertise = false // these tests leave this machine's lo alone
	_, stop := run(t, cfg)
	sess := s.session()
	says := func(parts ...string) func(*Status) bool {
		return func(s *Status) bool {
			c := condition(s, condNetwork)
			return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(c.Message, p) })
		}
	}
	tell := func(cidrs ...string) {
		t.Helper()
		if err := sess.SendNetwork(wire.Network{ServiceCIDRs: mustPrefixes(cidrs...)}); err != nil {
			t.Fatal(err)
		}
	}
	tell("10.96.0.0/16")
	until(t, cfg.Socket, "told of pods and Services", says("10.244.7.0/24, fd00:244:7::/64", "Services in 10.96.0.0/16"))
	tell("10.112.0.0/16", "8.8.8.0/24")
	st := until(t, cfg.Socket, "told of other Services", says("Services in 10.112.0.0/16"))
	if c := condition(st, condNetwork); c.Status != health.False || !strings.Contains(c.Message, "8.8.8.0/24 is not private") {
		t.Errorf("a range that was refused: %+v", c)
	}
	stop()
	s.stop()
	_, stop = run(t, cfg)
	until(t, cfg.Socket, "as it was, with nobody to ask", says("10.244.7.0/24", "Services in 10.112.0.0/16"))
	stop()

	// What the operator forbids is not permitted, whatever is known.
	cfg.Dial.Pods, cfg.Dial.Services = false, false
	a, stop := run(t, cfg)
	until(t, cfg.Socket, "switched off", says("pods in switched off", "Services in switched off"))
	if r := a.reach.Load(); len(r.pods) > 0 || len(r.services) > 0 {
		t.Errorf("switched off, it reaches %+v", r)
	}
	stop()
	if _, err := mustNew(t, cfg).Reset(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(networkPath(cfg.StateDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was known of the network outlasts a reset: %v", err)
	}
}

// fakeLo is a loopback interface and the ways of a machine around it.
type fakeLo struct {
	has     map[netip.Addr]bool
	denied  bool
	boot    string
	broker  []netip.Addr
	written []string // in the order in which things were done
}

// advertised is one that works on f, and listens nowhere but on loopback.
func (f *fakeLo) advertised(t *testing.T) *advertised {
	t.Helper()
	s := newShore(t)
	cfg := s.node()
	v := newAdvertised(mustNew(t, cfg))
	t.Cleanup(v.close)
	v.way = func(a netip.Addr) (hostnet.Way, error) {
		if f.has[a] {
			return hostnet.Way{Local: true, Interface: "lo"}, nil
		}
		return testWay(a)
	}
	v.add = func(a netip.Addr) error {
		if f.denied {
			return fs.ErrPermission
		}
		if f.has[a] {
			return fs.ErrExist
		}
		f.has[a] = true
		f.written = append(f.written, "add "+a.String())
		return nil
	}
	v.remove = func(a netip.Addr) error {
		delete(f.has, a)
		f.written = append(f.written, "remove "+a.String())
		return nil
	}
	v.boot = func() (string, error) { return f.boot, nil }
	v.lookup = func(context.Context, string) ([]netip.Addr, error) { return f.broker, nil }
	v.open = func(at string) (net.Listener, error) {
		if !f.has[netip.MustParseAddrPort(at).Addr()] {
			return nil, errors.New("no such address")
		}
		return net.Listen("tcp", "127.0.0.1:0")
	}
	return v
}

func (f *fakeLo) note(added []addedAddress) error {
	f.written = append(f.written, "note")
	return nil
}

func servers(texts ...string) (out []netip.AddrPort) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

// TestAdvertised: what is on lo follows what the control plane says, is noted before it is there, and what is not ours stays.
func TestAdvertised(t *testing.T) {
	v6 := netip.MustParseAddr("fd00:1::1")
	one, two, theirs := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("203.0.113.8"), netip.MustParseAddr("203.0.113.9")
	f := &fakeLo{has: map[netip.Addr]bool{theirs: true}, boot: "b1"}
	v := f.advertised(t)
	state := func() health.Condition { return v.agent.health.Get(condAdvertise) }

	added := v.bring(t.Context(), servers("203.0.113.7:6443", "[fd00:1::1]:6443"), nil, f.note)
	if !f.has[one] || !f.has[v6] || len(added) != 2 || !slices.Equal(f.written, []string{"note", "add 203.0.113.7", "note", "add fd00:1::1"}) {
		t.Fatalf("lo has %v, added %v, after %q", f.has, added, f.written)
	}
	if c := state(); c.Status != health.True || !strings.Contains(c.Message, "203.0.113.7:6443, [fd00:1::1]:6443") {
		t.Errorf("condition %+v", c)
	}
	// The same again does nothing; another port of it adds nothing; another address takes the place of one.
	f.written = nil
	added = v.bring(t.Context(), servers("203.0.113.7:6443", "[fd00:1::1]:6443"), added, f.note)
	added = v.bring(t.Context(), servers("203.0.113.7:6444", "[fd00:1::1]:6443"), added, f.note)
	if len(f.written) > 0 || len(added) != 2 {
		t.Errorf("what is there already: %q, %v", f.written, added)
	}
	added = v.bring(t.Context(), servers("203.0.113.8:6443", "[fd00:1::1]:6443"), added, f.note)
	if f.has[one] || !f.has[two] || !f.has[v6] || len(added) != 2 {
		t.Errorf("after a change lo has %v, added %v", f.has, added)
	}

	// Somebody else's is not taken, and not removed.
	added = v.bring(t.Context(), servers("203.0.113.9:6443"), added, f.note)
	if c := state(); c.Status != health.False || !strings.Contains(c.Message, "203.0.113.9 is an address of this machine already") {
		t.Errorf("condition %+v", c)
	}
	v.bring(t.Context(), nil, added, f.note)
	if !f.has[theirs] || len(f.has) != 1 {
		t.Errorf("lo has %v, want what was there before", f.has)
	}

	// After the machine's next start nothing is ours, though the address is noted.
	f.boot, f.written = "b2", nil
	added = v.bring(t.Context(), nil, []addedAddress{{theirs, "b1"}}, f.note)
	if !f.has[theirs] || len(added) > 0 {
		t.Errorf("lo has %v, added %v", f.has, added)
	}
	added = v.bring(t.Context(), servers("203.0.113.7:6443"), added, f.note)
	f.has = map[netip.Addr]bool{} // somebody set lo anew
	added = v.bring(t.Context(), servers("203.0.113.7:6443"), added, f.note)
	if !f.has[one] || len(added) != 1 {
		t.Errorf("lo has %v, added %v", f.has, added)
	}
	v.agent.cfg.API.Advertise = false
	if added = v.bring(t.Context(), servers("203.0.113.7:6443"), added, f.note); f.has[one] || len(added) > 0 || state().Reason != "Off" {
		t.Errorf("switched off, lo has %v, added %v", f.has, added)
	}
}

// TestAdvertisedRefused: an address that something else is behind is not put on lo, the broker's above all, also if it is
// there already. Seen failing with brokers returning none: the node would have cut itself off.
func TestAdvertisedRefused(t *testing.T) {
	f := &fakeLo{has: map[netip.Addr]bool{}, boot: "b1", broker: []netip.Addr{netip.MustParseAddr("203.0.113.7")}}
	v := f.advertised(t)
	v.agent.cfg.Tunnel.Endpoint = "broker.example:443"
	for at, why := range map[string]string{
		"127.0.0.1:6443": "loopback", "[::1]:6443": "loopback", "169.254.169.254:443": "link-local", "[fe80::1]:6443": "link-local", "224.0.0.1:1": "multicast",
		"0.0.0.0:1": "no address", "192.168.1.10:6443": "of this machine already", "192.168.1.77:6443": "neighbour's on eth0", "10.244.1.7:6443": "neighbour's on cni0",
		"203.0.113.7:6443": "where the broker is reached",
	} {
		added := v.bring(t.Context(), servers(at), nil, f.note)
		if c := v.agent.health.Get(condAdvertise); len(added) > 0 || c.Status != health.False || !strings.Contains(c.Message, why) {
			t.Errorf("%s: added %v, condition %+v; want a reason with %q", at, added, c, why)
		}
	}
	if len(f.has) > 0 {
		t.Errorf("lo has %v", f.has)
	}
	f.broker = nil
	added := v.bring(t.Context(), servers("203.0.113.7:6443"), nil, f.note)
	f.broker = []netip.Addr{netip.MustParseAddr("203.0.113.7")} // it moved there
	if added = v.bring(t.Context(), servers("203.0.113.7:6443"), added, f.note); len(added) > 0 || len(f.has) > 0 {
		t.Errorf("the broker moved to an address on lo, and lo has %v", f.has)
	}
	f.broker, f.denied = nil, true
	v.bring(t.Context(), servers("203.0.113.7:6443"), nil, f.note)
	if c := v.agent.health.Get(condAdvertise); !strings.Contains(c.Message, "CAP_NET_ADMIN") {
		t.Errorf("condition %+v", c)
	}
}

// TestAdvertisedForThisNodeAlone: the address answers this machine and its pods, nobody on the site's network.
func TestAdvertisedForThisNodeAlone(t *testing.T) {
	v := (&fakeLo{has: map[netip.Addr]bool{}}).advertised(t)
	for remote, want := range map[string]bool{
		"10.244.1.7": true, "192.168.1.10": true, "127.0.0.1": true, "fd00:244:1::7": true, "192.168.1.77": false, "172.17.0.2": false, "203.0.113.50": false,
	} {
		if err := v.fromHere(netip.MustParseAddr(remote)); (err == nil) != want {
			t.Errorf("%s: %v; want let in: %t", remote, err, want)
		}
	}
	e := &apiEndpoint{logger: v.agent.logger, metrics: v.agent.metrics, sessions: v.agent.client,
		allow: func(netip.Addr) error { return errors.New("a stranger") }}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- e.serve(ctx, l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a stranger was sent %d bytes", n)
	}
	c.Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestForgetNetwork: what is taken off lo is what this run of the kernel was given by the agent.
func TestForgetNetwork(t *testing.T) {
	dir := t.TempDir()
	var removed []netip.Addr
	forget := func() []string {
		t.Helper()
		removed = nil
		said, err := forgetNetwork(dir, func() (string, error) { return "b2", nil }, func(a netip.Addr) error { removed = append(removed, a); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return said
	}
	if said := forget(); len(said) > 0 {
		t.Errorf("with no file: %q", said)
	}
	if err := os.WriteFile(networkPath(dir), []byte(`{"added":[{"address":"203.0.113.7","boot":"b1"},{"address":"203.0.113.8","boot":"b2"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := forget(); len(said) != 1 || len(removed) != 1 || removed[0].String() != "203.0.113.8" {
		t.Errorf("said %q, removed %v", said, removed)
	}
	if err := os.WriteFile(networkPath(dir), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := forget(); len(said) > 0 || len(removed) > 0 {
		t.Errorf("with a torn file: %q, %v", said, removed)
	}
}
