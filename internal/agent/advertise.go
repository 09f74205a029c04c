package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/mooring-edge/mooring/internal/hostnet"
	"github.com/mooring-edge/mooring/pkg/health"
)

// advertised serves the addresses that the control plane advertises, on lo. Pods find them behind the Service
// default/kubernetes, by the node's kube-proxy, and would have no way to them else.
//
// An address that is on lo is this machine's own for all that runs on it. So none is taken that something else is behind:
// one that the machine has, a neighbour's, and above all the broker's.
type advertised struct {
	agent   *Agent
	serving map[netip.AddrPort]func() // ends it, and waits for that
	ctx     context.Context
	stop    context.CancelFunc

	// For tests.
	way         func(netip.Addr) (hostnet.Way, error)
	add, remove func(netip.Addr) error
	boot        func() (string, error)
	lookup      func(ctx context.Context, host string) ([]netip.Addr, error)
	open        func(at string) (net.Listener, error)
}

func newAdvertised(a *Agent) *advertised {
	ctx, stop := context.WithCancel(context.Background())
	return &advertised{
		agent: a, serving: map[netip.AddrPort]func(){}, ctx: ctx, stop: stop,
		way: hostnet.WayTo, add: hostnet.AddLoopback, remove: hostnet.RemoveLoopback, boot: hostnet.BootID,
		open: func(at string) (net.Listener, error) { return net.Listen("tcp", at) },
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
	}
}

// close ends the listening. The addresses stay.
func (v *advertised) close() {
	v.stop()
	for _, end := range v.serving {
		end()
	}
}

// bring has lo and the listeners be as the control plane says. It is given what this agent added to lo, and returns that
// as it is now; note is called with what is going to be, before anything is added.
func (v *advertised) bring(ctx context.Context, told []netip.AddrPort, added []addedAddress, note func([]addedAddress) error) []addedAddress {
	boot, err := v.boot()
	if err != nil {
		v.agent.health.Set(condAdvertise, health.False, "Failed", "which run of the kernel this is can't be read: "+err.Error())
		return added
	}
	added = slices.DeleteFunc(slices.Clone(added), func(a addedAddress) bool { return a.Boot != boot }) // the kernel has forgotten those
	if !v.agent.cfg.API.Advertise {
		told = nil
	}
	ours := func(a netip.Addr) bool { return slices.Contains(added, addedAddress{a, boot}) }
	var refused []string
	var wanted []netip.AddrPort
	brokers := v.brokers(ctx)
	for _, at := range told {
		if why := v.unfit(at.Addr(), ours(at.Addr()), brokers); why != "" {
			refused = append(refused, why)
			continue
		}
		wanted = append(wanted, at)
	}
	added, failed := v.withdraw(wanted, added)
	refused = append(refused, failed...)
	for _, at := range wanted {
		if !ours(at.Addr()) || !v.there(at.Addr()) {
			next := added
			if !ours(at.Addr()) {
				next = append(slices.Clone(added), addedAddress{at.Addr(), boot})
			}
			if err := note(next); err != nil {
				refused = append(refused, fmt.Sprintf("%s is not served: what is on lo could not be noted: %v", at, err))
				continue
			}
			if err := v.add(at.Addr()); err != nil && !errors.Is(err, fs.ErrExist) {
				refused = append(refused, needsAdmin(err))
				continue
			} else if err != nil {
				refused = append(refused, fmt.Sprintf("%s is on the loopback interface already, by somebody else's doing", at.Addr()))
				continue
			}
			added = next
		}
		if err := v.listen(at); err != nil {
			refused = append(refused, err.Error())
		}
	}
	v.says(refused)
	return added
}

func needsAdmin(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return err.Error() + " (the agent needs CAP_NET_ADMIN for that; api.advertise: false does without)"
	}
	return err.Error()
}

// withdraw stops serving what is not wanted any more, and takes the addresses off lo that nothing is wanted on.
func (v *advertised) withdraw(wanted []netip.AddrPort, added []addedAddress) (left []addedAddress, failed []string) {
	for at, end := range v.serving {
		if !slices.Contains(wanted, at) {
			end()
			delete(v.serving, at)
		}
	}
	for _, a := range added {
		if slices.ContainsFunc(wanted, func(at netip.AddrPort) bool { return at.Addr() == a.Address }) {
			left = append(left, a)
			continue
		}
		if err := v.remove(a.Address); err != nil {
			failed = append(failed, err.Error())
			left = append(left, a)
		}
	}
	return left, failed
}

// unfit says why an address is not put on lo; "" if it may be.
func (v *advertised) unfit(a netip.Addr, ours bool, brokers []netip.Addr) string {
	if what := special(a); what != "" {
		return fmt.Sprintf("%s is %s, which no pod could mean the control plane by", a, what)
	}
	if slices.Contains(brokers, a) {
		return fmt.Sprintf("%s is also where the broker is reached, and would be cut off", a)
	}
	if ours {
		return ""
	}
	way, err := v.way(a)
	switch {
	case err != nil: // no way there: the better for serving it here
		return ""
	case way.Local:
		return fmt.Sprintf("%s is an address of this machine already", a)
	case !way.Gateway:
		return fmt.Sprintf("%s is a neighbour's on %s, which pods reach by themselves", a, way.Interface)
	}
	return ""
}

// there tells whether an address that was added still is: somebody may have set lo anew.
func (v *advertised) there(a netip.Addr) bool {
	way, err := v.way(a)
	return err != nil || way.Local
}

// brokers are the addresses by which the broker, or the proxy before it, is reached now.
func (v *advertised) brokers(ctx context.Context) []netip.Addr {
	var out []netip.Addr
	if s := v.agent.session.Load(); s != nil {
		if ap, err := netip.ParseAddrPort(s.RemoteAddr().String()); err == nil {
			out = append(out, ap.Addr().Unmap())
		}
	}
	host, _, err := net.SplitHostPort(v.agent.wayOut())
	if err != nil {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, _ := v.lookup(ctx, host)
	for _, a := range found {
		out = append(out, a.Unmap())
	}
	return out
}

// listen serves one address, if it is not served.
func (v *advertised) listen(at netip.AddrPort) error {
	if v.serving[at] != nil {
		return nil
	}
	l, err := v.open(at.String())
	if err != nil {
		return fmt.Errorf("listen on the control plane's address: %w", err)
	}
	ctx, cancel := context.WithCancel(v.ctx)
	var done sync.WaitGroup
	done.Go(func() {
		_ = (&apiEndpoint{v.agent.client, v.agent.logger, v.agent.metrics, v.fromHere}).serve(ctx, l)
	})
	v.serving[at] = func() { cancel(); done.Wait() }
	v.agent.logger.Info("the control plane's address is served on this node", "address", at.String())
	return nil
}

// fromHere refuses who is neither on this machine nor one of its pods: a neighbour on the site's network could send to
// an address on lo, too.
func (v *advertised) fromHere(remote netip.Addr) error {
	way, err := v.way(remote)
	if err != nil {
		return err
	}
	if way.Local || podInterfaceNames(v.agent.cfg.Dial.PodInterfaces).has(way.Interface) {
		return nil
	}
	return fmt.Errorf("%s is neither on this node nor one of its pods", remote)
}

func (v *advertised) says(refused []string) {
	var served []string
	for at := range v.serving {
		served = append(served, at.String())
	}
	slices.Sort(served)
	h := v.agent.health
	switch {
	case !v.agent.cfg.API.Advertise:
		h.Set(condAdvertise, health.True, "Off", "pods find the API server by themselves, if at all (api.advertise: false)")
	case len(refused) > 0:
		h.Set(condAdvertise, health.False, "Refused", "pods do not find the API server here by all that it is advertised at: "+strings.Join(refused, "; "))
	case len(served) > 0:
		h.Set(condAdvertise, health.True, "Served", "pods find the API server at "+strings.Join(served, ", "))
	default:
		h.Set(condAdvertise, health.True, "NothingTold", "the broker has not said where the control plane is advertised")
	}
}

// forgetNetwork takes off lo what this agent put there, and forgets the cluster. It returns what it did.
func forgetNetwork(stateDir string, boot func() (string, error), remove func(netip.Addr) error) (said []string, err error) {
	f, readErr := loadNetwork(stateDir)
	now, bootErr := boot()
	if readErr != nil || bootErr != nil {
		return nil, nil // nothing that is known to be ours
	}
	for _, a := range f.Added {
		if a.Boot != now {
			continue
		}
		if removeErr := remove(a.Address); removeErr != nil {
			err = errors.Join(err, removeErr)
			continue
		}
		said = append(said, fmt.Sprintf("took the control plane's address %s off the loopback interface", a.Address))
	}
	return said, err
}
