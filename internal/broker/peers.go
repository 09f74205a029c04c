package broker

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mooring-edge/mooring/internal/peers"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// peerAdvertiseEnv overrides peer.advertise.
const peerAdvertiseEnv = "MOORING_PEER_ADVERTISE"

// transportBroker is the transport of what goes by another broker, in logs and spans.
const transportBroker tunnel.Transport = "broker"

// elsewhere is what other brokers have, as the switchboard wants to know it.
type elsewhere struct {
	dir   *peers.Directory
	links *peers.Links
}

// Having and Nodes are the directory's, with those that are there by an agent of konnectivity alone.
func (e *elsewhere) Having(tenant string, address netip.Addr) []string {
	return nodesOf(e.dir.Having(tenant, address))
}
func (e *elsewhere) Nodes(tenant string) []string { return nodesOf(e.dir.Nodes(tenant)) }

func (e *elsewhere) Way(tenant, node string) switchboard.Way {
	route, ok := e.dir.Find(tenant, node)
	if !ok {
		route, ok = e.dir.Find(tenant, agentRoute(node))
	}
	if !ok {
		return nil
	}
	return detour{e.links, route, tenant, node}
}

// detour is the way to a node by the broker that it is connected to.
type detour struct {
	links        *peers.Links
	route        peers.Route
	tenant, node string
}

func (d detour) Open(ctx context.Context, addr string) (net.Conn, error) {
	return d.links.Dial(ctx, d.route, d.tenant, d.node, addr)
}

func (d detour) Transport() tunnel.Transport { return transportBroker }

// attester knows what nodes attest, whichever broker they are connected to: any of them may see a kubelet's request first.
type attester struct {
	board *switchboard.Board
	dir   *peers.Directory // nil: there is one broker
}

// NodeAddresses implements enroll.Attester.
func (a attester) NodeAddresses(tenant, node string) ([]netip.Addr, bool) {
	if addresses, ok := a.board.NodeAddresses(tenant, node); ok || a.dir == nil {
		return addresses, ok
	}
	route, ok := a.dir.Find(tenant, node)
	return route.Addresses, ok
}

func (b *broker) attester() attester {
	a := attester{board: b.board}
	if b.peers != nil {
		a.dir = b.peers.dir
	}
	return a
}

// newPeers makes what several brokers need, if there are to be several.
func (b *broker) newPeers(st *store.Store) error {
	if b.cfg.Peer.Listen == "" {
		return nil
	}
	address, err := advertised(b.cfg.Peer.Listen, cmp.Or(os.Getenv(peerAdvertiseEnv), b.cfg.Peer.Advertise))
	if err != nil {
		return err
	}
	isPeer := func(id pki.Identity) error {
		if id.TrustDomain != b.cfg.TrustDomain || id.Role != pki.RoleBroker {
			return fmt.Errorf("identity %s is not of a broker of %s", id, b.cfg.TrustDomain)
		}
		return nil
	}
	log := b.log.With("part", "peers")
	dir := peers.NewDirectory(peers.DirectoryConfig{Store: st, Name: brokerID(), Address: address, Registerer: b.metrics, Logger: log})
	b.peers = &elsewhere{dir, peers.NewLinks(peers.LinksConfig{
		Directory: dir, Here: hereFunc(func(ctx context.Context, tenant, node, addr string) (net.Conn, error) {
			return b.board.DialHere(ctx, tenant, node, addr)
		}),
		Client: pki.ClientTLS(func() (*tls.Certificate, error) { return b.cert.get() },
			pki.VerifyPeer(b.ca.pool, x509.ExtKeyUsageServerAuth, time.Now, isPeer)),
		Server: b.serverTLS(pki.ServerOptions{}, pki.RoleBroker),
		Logger: log,
	})}
	return nil
}

// hereFunc is a peers.Here; the board that it asks is made later.
type hereFunc func(ctx context.Context, tenant, node, addr string) (net.Conn, error)

func (f hereFunc) DialHere(ctx context.Context, tenant, node, addr string) (net.Conn, error) {
	return f(ctx, tenant, node, addr)
}

// advertised is the address for other brokers: what is said, or what is listened on if that can be meant.
func advertised(listen, said string) (string, error) {
	if said != "" {
		host, port, err := net.SplitHostPort(said)
		if err != nil || host == "" || port == "" {
			return "", fmt.Errorf("the address for other brokers, %q (peer.advertise, or %s), is not host:port", said, peerAdvertiseEnv)
		}
		return net.JoinHostPort(host, port), nil // also [10.0.0.1]:8134, which is what a pod's address in brackets gives
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	if ip, err := netip.ParseAddr(host); host == "" || port == "0" || err == nil && ip.IsUnspecified() {
		return "", errors.New("peer.advertise is required: peer.listen, " + listen + ", does not say how other brokers reach this one")
	}
	return listen, nil
}

// servePeers runs the part that several brokers need.
func (b *broker) servePeers(ctx context.Context, g *errgroup.Group, ln net.Listener) {
	if b.peers == nil {
		return
	}
	g.Go(func() error { return b.peers.dir.Run(ctx) })
	g.Go(func() error { return b.peers.links.Serve(ctx, ln) })
	b.log.Info("nodes of other brokers are reached, and others reach those of this one", "id", b.peers.dir.ID(), "listen", ln.Addr().String())
}
