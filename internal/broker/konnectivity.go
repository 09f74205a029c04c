package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/front"
	"github.com/mooring-edge/mooring/internal/konnectivity"
	"github.com/mooring-edge/mooring/internal/listen"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// konnectivityAgents is the part that takes upstream's agents. nil: they are not wanted.
type konnectivityAgents struct {
	b      *broker
	zone   string
	conns  *listen.Handed
	server *konnectivity.Server
	// clients are others than those that the broker works with, so that strangers' tokens do not use up their rate.
	clients *enroll.Clients
}

func (b *broker) newKonnectivity(addr net.Addr) *konnectivityAgents {
	cfg := b.cfg.Konnectivity
	if !cfg.Enabled {
		return nil
	}
	k := &konnectivityAgents{b: b, zone: cfg.Zone(b.cfg.Front.Domain), conns: listen.NewHanded(addr), clients: enroll.NewClients(b.tenants, nil)}
	t := b.cfg.Tunnel
	k.server = konnectivity.New(konnectivity.Config{
		TLS:    b.serverTLS(pki.ServerOptions{Clients: pki.ClientOptional, NextProtos: []string{"h2"}}, pki.RoleNode),
		Tenant: k.tenant, Nodes: k, OnSession: k.enter,
		HeartbeatInterval: t.HeartbeatInterval.Duration, HeartbeatTimeout: t.HeartbeatTimeout.Duration,
		AuthTimeout: 2 * b.cfg.Front.Limits.HelloTimeout.Duration,
		MaxStreams:  t.MaxStreams, MaxPending: t.MaxPending, Logger: b.log,
	})
	return k
}

// routes are how the front finds it.
func (k *konnectivityAgents) routes() []front.NamedRoute {
	if k == nil {
		return nil
	}
	return []front.NamedRoute{{
		Route: front.Route{Protocol: "h2", Serve: k.conns.Hand},
		Name:  func(name string) bool { _, ok := k.tenant(name); return ok },
		As:    "konnectivity",
	}}
}

// tenant returns the tenant that a server name is of.
func (k *konnectivityAgents) tenant(serverName string) (string, bool) {
	label, zone, _ := strings.Cut(strings.ToLower(serverName), ".")
	if zone != k.zone {
		return "", false
	}
	_, ok := k.b.tenants.Get(label)
	return label, ok
}

func (b *broker) serveKonnectivity(ctx context.Context, g *errgroup.Group, k *konnectivityAgents) {
	if k == nil {
		return
	}
	g.Go(func() error {
		defer b.whenRemoved(func(name string) {
			k.server.Forget(name)
			_, _ = k.clients.Client(name)                     // which forgets it
			b.events.Go(func() { b.board.Recheck(name, "") }) // it may have been removed by another broker
		})()
		return k.server.Serve(ctx, k.conns)
	})
	b.log.Info("konnectivity agents are taken", "names", "TENANT."+k.zone, "serviceAccount", b.cfg.Konnectivity.ServiceAccount)
}

// refuse is an error that is told to the agent.
func refuse(format string, args ...any) error {
	return &tunnel.RefusedError{Code: wire.Denied, Message: fmt.Sprintf(format, args...)}
}

// ByCertificate implements konnectivity.Nodes: the certificate was verified in the handshake, the node's record must hold its key.
func (k *konnectivityAgents) ByCertificate(ctx context.Context, name string, cs tls.ConnectionState) (konnectivity.Identity, error) {
	id, err := pki.PeerIdentity(cs)
	if err != nil {
		return konnectivity.Identity{}, refuse("%v", err)
	}
	if id.Tenant != name { // which tenants there are is not told
		k.refused(id.String(), name, id.Name, "its certificate is another tenant's")
		return konnectivity.Identity{}, refuse("the certificate is of another tenant than the name that was asked for")
	}
	same := k.same(name)
	if err := k.b.nodes.Authorize(ctx, id, cs.PeerCertificates[0]); err != nil {
		if code, text := refusal(err); code != wire.Unavailable {
			k.refused(id.String(), name, id.Name, err.Error())
			return konnectivity.Identity{}, refuse("%s", text)
		}
		return konnectivity.Identity{}, err
	}
	still := func() error {
		if err := same(); err != nil {
			return err
		}
		return k.b.nodes.Authorize(k.b.eventsCtx, id, cs.PeerCertificates[0])
	}
	return konnectivity.Identity{Node: id.Name, By: "certificate", Still: still}, nil
}

// same tells later on, by an error, that the tenant which has the name now was removed, be there another of that name or not.
// Ask for it before anything is asked of the tenant: what an API server said is then never taken for another's word.
func (k *konnectivityAgents) same(name string) func() error {
	was, there := k.b.tenants.Get(name)
	return func() error {
		if now, ok := k.b.tenants.Get(name); !there || !ok || !now.CreatedAt.Equal(was.CreatedAt) {
			return fmt.Errorf("%w: %s, that this agent came to", tenant.ErrNotFound, name)
		}
		return nil
	}
}

// ByToken implements konnectivity.Nodes.
func (k *konnectivityAgents) ByToken(ctx context.Context, name, token string) (konnectivity.Identity, error) {
	cfg, same := k.b.cfg.Konnectivity, k.same(name)
	who, err := enroll.ReviewToken(ctx, k.clients, name, token, cfg.Audience)
	switch {
	case errors.Is(err, enroll.ErrTokenUnknown):
		return konnectivity.Identity{}, refuse("%v", err)
	case err != nil:
		return konnectivity.Identity{}, err
	case who.User != cfg.User():
		k.refused(who.User, name, who.Node, "a token of another ServiceAccount")
		return konnectivity.Identity{}, refuse("the token is of %s, want %s (konnectivity.serviceAccount)", who.User, cfg.User())
	case who.Node == "":
		k.refused(who.User, name, "", "a token that is bound to no node")
		return konnectivity.Identity{}, refuse("the token names no node: mount one by a projected volume of the agent's pod with audience %s (Kubernetes 1.30 and later say the pod's node in it), not a Secret's", cfg.Audience)
	case pki.ValidNode(who.Node) != nil:
		return konnectivity.Identity{}, refuse("the token's node %.80q has no valid name", who.Node)
	}
	still := func() error {
		if err := same(); err != nil {
			return err
		}
		return k.notRevoked(k.b.eventsCtx, name, who.Node)
	}
	if err := k.notRevoked(ctx, name, who.Node); err != nil {
		if errors.Is(err, enroll.ErrRevoked) {
			k.refused(who.User, name, who.Node, err.Error())
			return konnectivity.Identity{}, refuse("%v", errRevoked)
		}
		return konnectivity.Identity{}, err
	}
	return konnectivity.Identity{Node: who.Node, UID: who.NodeUID, By: "token of " + who.User, Still: still}, nil
}

// notRevoked lets a node that an operator revoked in by no other way either.
func (k *konnectivityAgents) notRevoked(ctx context.Context, name, node string) error {
	rec, err := k.b.nodes.Get(ctx, name, node)
	switch {
	case errors.Is(err, enroll.ErrNodeNotFound):
		return nil // it is known to the API server alone
	case err != nil:
		return err
	case rec.RevokedAt != nil:
		return fmt.Errorf("node %s/%s: %w", name, node, enroll.ErrRevoked)
	}
	return nil
}

// Whereabouts implements konnectivity.Nodes.
func (k *konnectivityAgents) Whereabouts(ctx context.Context, name string, id konnectivity.Identity) (konnectivity.Whereabouts, error) {
	addresses, port, err := enroll.NodeAddresses(ctx, k.clients, name, id.Node, id.UID)
	if errors.Is(err, enroll.ErrNodeGone) || errors.Is(err, tenant.ErrNotFound) {
		return konnectivity.Whereabouts{}, fmt.Errorf("%w: %w", konnectivity.ErrNoNode, err)
	}
	return konnectivity.Whereabouts{Addresses: addresses, KubeletPort: port}, err
}

func (k *konnectivityAgents) refused(actor, tenant, node, reason string) {
	k.b.audit.Record(audit.Event{
		Event: "session", Outcome: audit.Refused, Actor: actor, Tenant: tenant, Node: node, Reason: reason,
		Detail: map[string]string{"transport": string(konnectivity.Transport)},
	})
}

// enter puts a session on the switchboard.
func (k *konnectivityAgents) enter(s *konnectivity.Session) (leave func(), err error) {
	b := k.b
	if b.draining.Load() {
		return nil, errDraining
	}
	name, node := s.Tenant(), s.Node()
	detach := func() {}
	if b.peers != nil {
		detach = b.peers.dir.AttachAside(name, agentRoute(node), s.Addresses())
	}
	out := b.board.EnterAgent(name, node, s, switchboard.AgentInfo{
		RemoteAddr: s.RemoteAddr().String(), Addresses: s.Addresses(), Stats: s.Stats, Close: s.Close,
		// A tenant that was removed while its agent came in is seen here: who removes it cuts what is entered.
		Still: func() (wire.Code, error) { return agentMayStay(s.Still()) },
	})
	return func() { out(); detach() }, nil
}

// agentMayStay is what is to be done with an agent after its Still: what can't be looked up now, stays.
func agentMayStay(err error) (wire.Code, error) {
	if errors.Is(err, tenant.ErrNotFound) {
		return wire.Revoked, err
	}
	if err != nil {
		if code, told := refusal(err); code != wire.Unavailable {
			return code, errors.New(told)
		}
	}
	return wire.OK, nil
}

// agentSuffix is what the route of a node's agent has after the node's name: it must not be taken for the route of
// its own session, and no node has such a name.
const agentSuffix = "~konnectivity"

func agentRoute(node string) string { return node + agentSuffix }

// nodesOf are the nodes to which routes lead, each once.
func nodesOf(routes []string) []string {
	for i, r := range routes {
		routes[i] = strings.TrimSuffix(r, agentSuffix)
	}
	slices.Sort(routes)
	return slices.Compact(routes)
}
