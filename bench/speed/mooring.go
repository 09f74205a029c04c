package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/bench/internal/proc"
	"github.com/mooring-edge/mooring/bench/internal/shore"
	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// mooring is the product, from this tree: one broker, and for each transport an agent and a sidecar. The tenant's API server is a
// stand-in (internal/kubetest), as nothing of the load goes through it; and in a kubelet's place, as the only port of its node that an
// agent dials, is the target.
type mooring struct {
	bed    *bed
	shore  *shore.Shore
	agents map[tunnel.Transport]*proc.Process
	health map[tunnel.Transport]string // where each agent has its metrics
}

// The modes, in the order of the tables.
const (
	mooringConnect        = "Mooring, HTTPConnect/mTLS"
	mooringSidecarGRPC    = "Mooring, sidecar gRPC/UDS"
	mooringSidecarConnect = "Mooring, sidecar CONNECT/UDS"
)

var mooringNames = []string{mooringConnect, mooringSidecarGRPC, mooringSidecarConnect}

var transportNames = map[tunnel.Transport]string{tunnel.TransportTCP: "TLS+yamux", tunnel.TransportQUIC: "QUIC"}

// startMooring starts a broker.
func startMooring(b *bed, bin string) (*mooring, error) {
	s, err := shore.New(b.dir, filepath.Join(bin, "broker"), "127.0.0.1", "", false)
	if err != nil {
		return nil, err
	}
	b.stops = append(b.stops, s.Close)
	if err := s.API.SignCertificates(); err != nil {
		return nil, err
	}
	if err := s.Start(b.ctx); err != nil {
		return nil, err
	}
	return &mooring{bed: b, shore: s, agents: map[tunnel.Transport]*proc.Process{}, health: map[tunnel.Transport]string{}}, s.AddTenant(b.ctx)
}

// agent starts the node that has this transport.
func (m *mooring) agent(t tunnel.Transport, bin string) (*proc.Process, error) {
	if p := m.agents[t]; p != nil {
		return p, nil
	}
	_, port, err := splitPort(m.bed.target)
	if err != nil {
		return nil, err
	}
	// As the kubelet would have registered it, if there was one.
	m.shore.API.Put("/api/v1/nodes/"+m.node(t), `{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "`+m.node(t)+`"}, "spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}}`)
	token, err := m.shore.Client.CreateToken(m.bed.ctx, admin.TokenRequest{Tenant: shore.TenantName, TTL: config.Duration{Duration: time.Hour}})
	if err != nil {
		return nil, fmt.Errorf("make a token: %w", err)
	}
	dir := m.agentDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	at, err := m.bed.addresses(2)
	if err != nil {
		return nil, err
	}
	m.health[t] = at[1]
	cfg := config.DefaultAgent()
	cfg.JoinFile, cfg.StateDir, cfg.Socket = filepath.Join(dir, "join.yaml"), filepath.Join(dir, "state"), filepath.Join(dir, "agent.sock")
	cfg.HealthAddress, cfg.APIAddress, cfg.API.Advertise, cfg.Node.Console = at[1], at[0], false, ""
	cfg.Tunnel.Transport, cfg.Node.Name = string(t), m.node(t)
	cfg.Kubelet.Mode, cfg.Kubelet.RootDir, cfg.Kubelet.Port = "none", filepath.Join(dir, "kubelet"), port
	for path, what := range map[string]any{"agent.yaml": cfg, "join.yaml": token.Bundle} {
		text, err := yaml.Marshal(what)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, path), text, 0o600); err != nil {
			return nil, err
		}
	}
	if err := m.launch(t, bin); err != nil {
		return nil, err
	}
	agent := filepath.Join(bin, "edge-agent")
	ctx, cancel := context.WithTimeout(m.bed.ctx, startTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, agent, "wait", "--for", "ready", "--socket", cfg.Socket).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("wait for %s to be ready: %w\n%s\nthe end of its log:\n%s", m.node(t), err, out, m.agents[t].Tail())
	}
	return m.agents[t], nil
}

// launch starts the agent's process, also again.
func (m *mooring) launch(t tunnel.Transport, bin string) error {
	p, err := m.bed.run(m.node(t), "", filepath.Join(bin, "edge-agent"), "run", "--config", filepath.Join(m.agentDir(t), "agent.yaml"))
	m.agents[t] = p
	return err
}

func (m *mooring) agentDir(t tunnel.Transport) string {
	return filepath.Join(m.bed.dir, "agent-"+string(t))
}

func (m *mooring) node(t tunnel.Transport) string { return "bench-" + string(t) }

// direct has load and broker speak HTTP CONNECT over mTLS.
func (m *mooring) direct(t tunnel.Transport, bin string) (*chain, error) {
	agent, err := m.agent(t, bin)
	if err != nil {
		return nil, err
	}
	c := &chain{name: mooringConnect, transport: transportNames[t], near: []*proc.Process{m.shore.Broker}, far: []*proc.Process{agent}}
	dir, err := m.egress("http-connect", t)
	if err != nil {
		return nil, err
	}
	client, _, err := certs{ca: filepath.Join(dir, "ca.crt"), cert: filepath.Join(dir, "client.crt"), key: filepath.Join(dir, "client.key")}.tls()
	if err != nil {
		return nil, err
	}
	client.ServerName = ""
	c.dial = mtlsConnect(m.shore.Config.Egress.Listen, m.target(t), client)
	return c, nil
}

// sidecars have load and sidecar speak what each mode has, on one socket.
func (m *mooring) sidecars(t tunnel.Transport, bin string) ([]*chain, error) {
	agent, err := m.agent(t, bin)
	if err != nil {
		return nil, err
	}
	dir, err := m.egress("sidecar-grpc", t)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "proxy.sock")
	sidecar, err := m.bed.run("sidecar-"+string(t), "", filepath.Join(bin, "broker"), "egress-proxy", "--dir", dir, "--socket", socket, "--transport", string(t))
	if err != nil {
		return nil, err
	}
	near, far := []*proc.Process{sidecar, m.shore.Broker}, []*proc.Process{agent}
	chains := []*chain{
		{name: mooringSidecarGRPC, transport: transportNames[t], dial: unixGRPC(socket, m.target(t)), near: near, far: far},
		{name: mooringSidecarConnect, transport: transportNames[t], dial: unixConnect(socket, m.target(t)), near: near, far: far},
	}
	return chains, ready(m.bed.ctx, chains[1].dial)
}

// target is it as API servers name it: the kubelet of a node.
func (m *mooring) target(t tunnel.Transport) string {
	_, port, _ := splitPort(m.bed.target)
	return fmt.Sprintf("%s:%d", m.node(t), port)
}

// egress has the broker's command write what an API server needs.
func (m *mooring) egress(mode string, t tunnel.Transport) (dir string, err error) {
	dir = filepath.Join(m.bed.dir, mode+"-"+string(t))
	cmd := exec.CommandContext(m.bed.ctx, m.shore.Binary, "egress", "issue", "--socket", m.shore.Config.AdminSocket,
		"--tenant", shore.TenantName, "--mode", mode, "--out", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("broker egress issue: %w\n%s", err, out)
	}
	return dir, nil
}

// ready returns once a dial works.
func ready(ctx context.Context, dial dialFunc) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		c, err := dial(ctx)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
