package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// A second broker of the same store listens beside the first. The broker's name has both addresses, this one's first: so nodes
// come to this one, and API servers ask the other.
const (
	SecondBrokerAddress = "203.0.113.2"
	peerAddress         = "127.0.0.1:8134"
	secondPeerAddress   = "127.0.0.1:8144"
	secondEgressAddress = "127.0.0.1:8142"
	secondHealth        = "127.0.0.1:9642"
)

// shared is the part of a broker's configuration by which there may be several.
func (p *Platform) shared(peer string) string {
	if !p.Shared {
		return ""
	}
	return fmt.Sprintf("store: {etcd: {endpoints: ['http://%s'], prefix: /brokers}}\npeer: {listen: '%s'}\n", etcdAddress, peer)
}

// brokerSet is all addresses of brokers, as nft writes them.
func (p *Platform) brokerSet() string {
	if p.Shared {
		return "{ " + BrokerAddress + ", " + SecondBrokerAddress + " }"
	}
	return BrokerAddress
}

// brokerHosts are the lines of a hosts file by which the broker is found.
func (s *Site) brokerHosts() string {
	first := BrokerAddress + " " + BrokerName + "\n"
	if s.shared {
		return SecondBrokerAddress + " " + BrokerName + "\n" + first
	}
	return first
}

func (p *Platform) secondSocket() string {
	return filepath.Join(p.env.Dir(), "broker-2", "broker.sock")
}

// StartSecondBroker starts another broker of the platform's store, also again, and waits until it takes commands.
func (p *Platform) StartSecondBroker(ctx context.Context) error {
	dir := filepath.Join(p.env.Dir(), "broker-2")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(dir, "broker.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, `apiVersion: mooring.dev/v1alpha1
kind: BrokerConfiguration
dataDir: %s/data
adminSocket: %s
healthAddress: %s
front: {listen: '%s', publicEndpoint: '%s'}
egress: {listen: '%s', publicEndpoint: 'https://%s'}
drain: {grace: 8s}
%s`, dir, p.secondSocket(), secondHealth, net.JoinHostPort(SecondBrokerAddress, BrokerPort), net.JoinHostPort(BrokerName, BrokerPort),
		secondEgressAddress, secondEgressAddress, p.shared(secondPeerAddress)), 0o644); err != nil {
		return err
	}
	if p.second == nil {
		if err := p.Net.IP("addr add " + SecondBrokerAddress + "/24 dev " + wanBridge); err != nil {
			return err
		}
	}
	proc, err := p.env.start("broker-2", false, p.argv(p.env.Product("broker"), "serve", "--config", path))
	if err != nil {
		return err
	}
	p.second = proc
	_, err = p.env.Wait(ctx, "the second broker's admin socket", time.Minute, func(ctx context.Context) error {
		_, err := p.SecondBrokerCommand(ctx, "tenant", "list")
		return err
	})
	return err
}

// KillSecondBroker ends it without a word.
func (p *Platform) KillSecondBroker() { p.second.Kill() }

// StopSecondBroker has it stop as it is meant to.
func (p *Platform) StopSecondBroker() { p.second.Stop() }

// SecondBrokerCommand is BrokerCommand for the second broker.
func (p *Platform) SecondBrokerCommand(ctx context.Context, args ...string) (string, error) {
	return p.env.output(ctx, p.env.Product("broker"), append(args, "--socket", p.secondSocket())...)
}
