package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/hostnet"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// nodeEvery is how often the node's own object is read once it has podCIDRs: they change with a new object only.
	nodeEvery = 5 * time.Minute
	// nodeMin and nodeMax bound the pause before that.
	nodeMin = time.Second
	nodeMax = 30 * time.Second

	maxNetworkFile = 64 << 10
)

// networkFile is what is kept of the cluster over a restart, in the state directory.
type networkFile struct {
	Tenant  string         `json:"tenant"`
	Node    string         `json:"node"`
	Told    wire.Network   `json:"told"` // by the broker
	PodCIDR []netip.Prefix `json:"podCIDRs,omitempty"`
	Added   []addedAddress `json:"added,omitempty"` // to lo
}

// addedAddress is one that this agent put on lo.
type addedAddress struct {
	Address netip.Addr `json:"address"`
	// Boot is the run of the kernel that has it: another one that it has is somebody else's.
	Boot string `json:"boot"`
}

// network follows what the agent's cluster is like, and keeps to it. Its fields are of the one goroutine of keepNetwork.
type network struct {
	agent *Agent
	known networkFile
	saved networkFile
	// advertised is what serves the control plane's addresses.
	advertised *advertised
}

func networkPath(stateDir string) string { return filepath.Join(stateDir, "network.json") }

func loadNetwork(stateDir string) (networkFile, error) {
	var f networkFile
	data, err := durable.ReadFile(networkPath(stateDir), maxNetworkFile)
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err == nil {
		err = f.Told.Validate()
	}
	if err != nil {
		return networkFile{}, err
	}
	return f, nil
}

// onNetwork takes what the broker tells off the tunnel's own loop. Only the latest counts.
func (a *Agent) onNetwork(_ *tunnel.Session, n wire.Network) { replace(a.told, n) }

// replace puts v into a channel that holds one, in place of what is there.
func replace[T any](c chan T, v T) {
	for {
		select {
		case c <- v:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}

// lookAgain has the ways to the advertised addresses judged anew.
func (a *Agent) lookAgain() {
	select {
	case a.networkWoke <- struct{}{}:
	default:
	}
}

// keepNetwork keeps the dial policy and the advertised addresses as the cluster is, until ctx ends. The addresses stay
// then: pods' connections are refused until the agent is back, and not sent elsewhere.
func (a *Agent) keepNetwork(ctx context.Context) error {
	n := &network{agent: a, advertised: newAdvertised(a)}
	defer n.advertised.close()
	f, err := loadNetwork(a.cfg.StateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.logger.Warn("what was known of the cluster's network can't be read, it is learned anew", "err", err)
	}
	n.known, n.saved = f, f
	n.apply(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case told := <-a.told:
			n.known.Told = told
		case cidrs := <-a.podCIDRs:
			n.known.PodCIDR = cidrs
		case <-a.networkWoke:
		}
		n.apply(ctx)
	}
}

// apply brings everything into line with what is known.
func (n *network) apply(ctx context.Context) {
	a := n.agent
	id := a.identity.Load()
	if id == nil {
		return
	}
	if n.known.Tenant != id.Tenant || n.known.Node != id.Node {
		if n.known.Tenant != "" && n.known.Tenant != id.Tenant {
			n.known.Told = wire.Network{}
		}
		n.known.PodCIDR = nil // another's
		n.known.Tenant, n.known.Node = id.Tenant, id.Node
	}
	r := reach{ifaces: a.cfg.Dial.PodInterfaces, way: hostnet.WayTo, onlyOn: hostnet.OnlyOn}
	var refused []string
	if a.cfg.Dial.Pods {
		r.pods = n.known.PodCIDR
	}
	if a.cfg.Dial.Services {
		r.services, refused = acceptServices(n.known.Told.ServiceCIDRs, a.serviceCIDRs, localNetworks(r.ifaces))
	}
	a.reach.Store(&r)
	a.networkSays(r, refused)
	n.known.Added = n.advertised.bring(ctx, n.known.Told.APIServers, n.known.Added, n.note)
	n.save()
}

// note keeps what is on lo before it is put there, so that a killed agent still knows.
func (n *network) note(added []addedAddress) error {
	n.known.Added = added
	return n.save()
}

// save writes what is known, if it is not on the disk.
func (n *network) save() error {
	same := n.known.Tenant == n.saved.Tenant && n.known.Node == n.saved.Node && slices.Equal(n.known.PodCIDR, n.saved.PodCIDR) &&
		slices.Equal(n.known.Added, n.saved.Added) && slices.Equal(n.known.Told.ServiceCIDRs, n.saved.Told.ServiceCIDRs) &&
		slices.Equal(n.known.Told.APIServers, n.saved.Told.APIServers)
	if same {
		return nil
	}
	data, err := json.MarshalIndent(n.known, "", "  ")
	if err == nil {
		err = n.agent.writeFile(networkPath(n.agent.cfg.StateDir), append(data, '\n'), 0o600)
	}
	if err != nil {
		n.agent.logger.Warn("what is known of the cluster's network can't be kept for the next start", "err", err)
		return err
	}
	n.saved = n.known
	n.saved.Added = slices.Clone(n.known.Added)
	return nil
}

// networkSays is the condition of the dial policy.
func (a *Agent) networkSays(r reach, refused []string) {
	what := func(permitted bool, setting string, prefixes []netip.Prefix) string {
		if !permitted {
			return "switched off (" + setting + ")"
		}
		return list(prefixes)
	}
	message := "the API server reaches pods in " + what(a.cfg.Dial.Pods, "dial.pods", r.pods) +
		", and Services in " + what(a.cfg.Dial.Services, "dial.services", r.services)
	if len(refused) > 0 {
		a.health.Set(condNetwork, health.False, "ServiceCIDRRefused", message+"; refused what the broker says of Services: "+
			strings.Join(refused, "; ")+" (dial.serviceCIDRs sets the ranges by hand)")
		return
	}
	a.health.Set(condNetwork, health.True, "Known", message)
}

// readNode reads the node's own object again and again, until ctx ends: its API server's word on the addresses of its
// pods. While that can't be asked, the last word counts.
func (a *Agent) readNode(ctx context.Context) error {
	for wait := nodeMin; ctx.Err() == nil; {
		if _, err := a.client.Session(ctx); err != nil {
			return nil // ctx has ended
		}
		next := nodeEvery
		cidrs, err := a.joiner.PodCIDRs(ctx, a.identity.Load())
		switch {
		case err != nil:
			a.logger.Debug("the node's own object can't be read, trying again", "err", err)
			fallthrough
		case len(cidrs) == 0:
			next, wait = wait, min(2*wait, nodeMax)
		default:
			wait = nodeMin
		}
		if err == nil {
			replace(a.podCIDRs, cidrs)
		}
		pause(ctx, next)
	}
	return nil
}

// parsePrefixes parses what the configuration has validated.
func parsePrefixes(what string, texts []string) (out []netip.Prefix, err error) {
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		out = append(out, p)
	}
	return out, nil
}
