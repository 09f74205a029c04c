package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

// Way is one of several ways by which API servers of one tenant reach its nodes, side by side. Each has an API server of its own.
type Way struct {
	tenant *Tenant
	server string
}

// firstWayPort is where the first of these API servers listens; the others follow.
const firstWayPort = 7443

// Kubectl is a command of kubectl's that goes this way.
func (w *Way) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	return w.tenant.KubectlCommand(ctx, append([]string{"--server", w.server}, args...)...)
}

func (t *Tenant) startWay(ctx context.Context, flags ...string) (*Way, error) {
	port := firstWayPort + t.ways
	t.ways++
	argv := append(t.apiServer(port), "--kubelet-certificate-authority="+t.pki("ca.crt"))
	_, err := t.startAPIServer(ctx, fmt.Sprintf("-way-%d", t.ways), port, t.platform.withHosts(t.Name, append(argv, flags...)...))
	return &Way{tenant: t, server: fmt.Sprintf("https://127.0.0.1:%d", port)}, err
}

// bySelector are an API server's flags for an egress selector.
func bySelector(file string) []string {
	return []string{"--kubelet-preferred-address-types=Hostname,InternalIP", "--egress-selector-config-file=" + file}
}

// DirectWay has an API server dial the site's node itself, over a route that no real site has: the site's router lets it in.
func (t *Tenant) DirectWay(ctx context.Context, s *Site) (*Way, error) {
	if err := errors.Join(
		s.Router.Nft("insert rule inet site leaving ct state established,related accept\ninsert rule inet site returning iifname \"wan\" accept\n"),
		t.platform.Net.IP("route add 192.168.1.0/24 via "+s.WANAddress),
	); err != nil {
		return nil, err
	}
	return t.startWay(ctx, "--kubelet-preferred-address-types=InternalIP")
}

// MooringWay has an API server reach the broker in one of the modes of `broker egress issue`. A sidecar has that transport to the broker.
func (t *Tenant) MooringWay(ctx context.Context, mode, transport string) (*Way, error) {
	p := t.platform
	dir := filepath.Join(t.Dir, "way-"+mode+"-"+transport)
	socket := dir + ".sock"
	if _, err := p.BrokerCommand(ctx, "egress", "issue", "--tenant", t.Name, "--out", dir, "--mode", mode, "--proxy-socket", socket,
		"--broker", net.JoinHostPort(BrokerAddress, BrokerPort)); err != nil {
		return nil, err
	}
	if mode != ModeConnect {
		if _, err := p.env.start(t.Name+"/egress-proxy-"+mode+"-"+transport, false, p.argv(p.env.Product("broker"), "egress-proxy",
			"--dir", dir, "--socket", socket, "--transport", transport)); err != nil {
			return nil, err
		}
	}
	return t.startWay(ctx, bySelector(filepath.Join(dir, "egress-selector.yaml"))...)
}

// firstKonnectivityPort is where the first of upstream's servers takes its agent; it uses the next three ports too, and the next server those
// after them.
const firstKonnectivityPort = 8130

// KonnectivityWay has an API server reach the site's node by upstream's server, beside it, and agent, on the node's network. mode is the
// server's: http-connect, over mTLS, or grpc, over a unix socket.
func (t *Tenant) KonnectivityWay(ctx context.Context, s *Site, mode string) (*Way, error) {
	p, e := t.platform, t.platform.env
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	server, err := tools.KonnectivityServer(ctx, root, e.Logf)
	if err != nil {
		return nil, err
	}
	agent, err := e.Konnectivity(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(t.Dir, "konnectivity-"+mode)
	ca, err := newAuthority(dir, p.Clock)
	if err != nil {
		return nil, err
	}
	cert := serving()
	cert.IPAddresses = append(cert.IPAddresses, net.ParseIP(BrokerAddress))
	if err := ca.issue("part", cert); err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	port := firstKonnectivityPort + 4*t.ways
	socket := file("server.sock")
	flags := []string{"--mode=" + mode, "--uds-name=" + socket, "--server-port=0"}
	transport := fmt.Sprintf("uds: {udsName: %q}", socket)
	protocol := "GRPC"
	if mode == "http-connect" {
		flags = []string{"--mode=" + mode, "--server-bind-address=127.0.0.1", fmt.Sprintf("--server-port=%d", port+1),
			"--server-ca-cert=" + file("ca.crt"), "--server-cert=" + file("part.crt"), "--server-key=" + file("part.key")}
		transport = fmt.Sprintf("tcp: {url: \"https://127.0.0.1:%d\", tlsConfig: {caBundle: %q, clientCert: %q, clientKey: %q}}",
			port+1, file("ca.crt"), file("part.crt"), file("part.key"))
		protocol = "HTTPConnect"
	}
	if _, err := e.start(t.Name+"/konnectivity-server-"+mode, false, p.argv(append([]string{server, "--logtostderr=true", "--server-count=1",
		"--agent-bind-address=" + BrokerAddress, fmt.Sprintf("--agent-port=%d", port),
		"--cluster-ca-cert=" + file("ca.crt"), "--cluster-cert=" + file("part.crt"), "--cluster-key=" + file("part.key"),
		"--admin-bind-address=127.0.0.1", fmt.Sprintf("--admin-port=%d", port+2), "--health-bind-address=127.0.0.1", fmt.Sprintf("--health-port=%d", port+3)}, flags...)...)); err != nil {
		return nil, err
	}
	if err := s.Router.Nft(fmt.Sprintf("insert rule inet site leaving ip daddr %s tcp dport %d accept\n", BrokerAddress, port)); err != nil {
		return nil, err
	}
	if _, err := e.start(t.Name+"/konnectivity-agent-"+mode, false, s.LAN.Argv(agent, "--logtostderr=true",
		"--proxy-server-host="+BrokerAddress, fmt.Sprintf("--proxy-server-port=%d", port), "--agent-identifiers=ipv4="+NodeAddress,
		"--ca-cert="+file("ca.crt"), "--agent-cert="+file("part.crt"), "--agent-key="+file("part.key"),
		fmt.Sprintf("--admin-server-port=%d", port+2), fmt.Sprintf("--health-server-port=%d", port+3))); err != nil {
		return nil, err
	}
	selector := file("egress-selector.yaml")
	if err := os.WriteFile(selector, fmt.Appendf(nil, `apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: %s
    transport: {%s}
`, protocol, transport), 0o644); err != nil {
		return nil, err
	}
	// The node's address, not its name: only the broker's hosts file would know that.
	return t.startWay(ctx, "--kubelet-preferred-address-types=InternalIP", "--egress-selector-config-file="+selector)
}
