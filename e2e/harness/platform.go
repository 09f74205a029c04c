package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// The wide area network between the platform and the sites. Its broker is known by name, as it would
// be in life; the boxes find the name in their hosts file, since nothing but the broker answers them.
const (
	wanBridge      = "wan"
	BrokerAddress  = "203.0.113.1"
	BrokerName     = "edge.example"
	BrokerPort     = "443"
	EgressAddress  = "127.0.0.1:8132"
	brokerHealth   = "127.0.0.1:9641"
	etcdAddress    = "127.0.0.1:2379"
	advertisedAddr = "198.51.100.1" // what API servers say of themselves; nobody can or need reach it
)

// Platform is the machine on which the control planes and the broker run: a network namespace whose
// only way out is the WAN, on which only the broker listens.
type Platform struct {
	env    *Env
	Net    host.Netns
	Broker *Proc
	// Clock is by how much the wall clock of the platform's programs is off, from their next start on.
	Clock time.Duration
	// Shared has the broker keep its state in the platform's etcd, so that a second one can join it (StartSecondBroker).
	Shared bool
	// NodeCertificateTTL is the broker's identity.nodeCertificateTTL, from its next start on; 0 = its default.
	NodeCertificateTTL time.Duration
	// BrokerExtra is appended to the broker's configuration, and HostsFile is its /etc/hosts, from its next start on; empty =
	// none, and the machine's.
	BrokerExtra, HostsFile string
	// PublicEndpoint is the host:port by which nodes find the broker, from its next start on; empty = BrokerName, which the
	// harness's boxes have in their hosts files.
	PublicEndpoint string
	// Konnectivity has the broker take agents of konnectivity, from its next start on.
	Konnectivity bool

	etcd    *Proc
	second  *Proc
	tenants []*Tenant
	sites   int
}

// StartPlatform makes the namespace and starts etcd.
func (e *Env) StartPlatform(ctx context.Context) (*Platform, error) {
	ns, err := host.AddNetns(e.run.Name("platform"))
	if err != nil {
		return nil, err
	}
	p := &Platform{env: e, Net: ns}
	for _, command := range []string{
		// A bridge without an address of its own takes its lowest port's, and so changes it when a site is
		// added: the other sites' packets would go astray until they ask again where the broker is.
		"link add " + wanBridge + " address 02:00:00:00:00:01 type bridge",
		"addr add " + BrokerAddress + "/24 dev " + wanBridge,
		"link set " + wanBridge + " up",
	} {
		if err := ns.IP(command); err != nil {
			return nil, err
		}
	}
	return p, p.startEtcd(ctx)
}

func (p *Platform) startEtcd(ctx context.Context) error {
	e := p.env
	proc, err := e.start("etcd", false, p.argv(e.Tool("etcd"),
		"--name=e2e", "--data-dir="+filepath.Join(e.Dir(), "etcd"),
		"--listen-client-urls=http://"+etcdAddress, "--advertise-client-urls=http://"+etcdAddress,
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=e2e=http://127.0.0.1:2380",
		"--unsafe-no-fsync", "--log-level=warn"))
	if err != nil {
		return err
	}
	p.etcd = proc
	_, err = e.Wait(ctx, "etcd", time.Minute, func(ctx context.Context) error { return p.listening(ctx, etcdAddress) })
	return err
}

// argv wraps a daemon's command line so that it runs on the platform, with its clock.
func (p *Platform) argv(argv ...string) []string {
	return p.Net.Argv(shifted(p.Clock, p.env.Product("timeshift"), argv...)...)
}

// withHosts wraps an API server's command so that it runs on the platform with, as /etc/hosts, the file
// that the broker keeps for the tenant: kube-apiserver looks a node's name up before nodes/NAME/proxy.
func (p *Platform) withHosts(tenant string, argv ...string) []string {
	return p.withHostsFile(filepath.Join(p.hostsDir(), tenant), argv...)
}

// withHostsFile is argv with a file of one's own as /etc/hosts.
func (p *Platform) withHostsFile(file string, argv ...string) []string {
	const script = `mount --bind "$0" /etc/hosts && exec "$@"`
	return p.Net.Argv(append([]string{"unshare", "--mount", "--", "sh", "-c", script, file},
		shifted(p.Clock, p.env.Product("timeshift"), argv...)...)...)
}

func (p *Platform) hostsDir() string { return filepath.Join(p.env.Dir(), "broker", "hosts") }

func (p *Platform) listening(ctx context.Context, address string) error {
	c, err := p.Net.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}

// brokerConfig is what a platform's operator writes.
func (p *Platform) brokerConfig() string {
	dir := filepath.Join(p.env.Dir(), "broker")
	identity := ""
	if p.NodeCertificateTTL != 0 {
		identity = fmt.Sprintf("identity: {nodeCertificateTTL: %s}\n", p.NodeCertificateTTL)
	}
	if p.Konnectivity {
		identity += fmt.Sprintf("konnectivity: {enabled: true, domain: %s}\n", KonnectivityDomain)
	}
	return fmt.Sprintf(`apiVersion: mooring.dev/v1alpha1
kind: BrokerConfiguration
dataDir: %s/data
adminSocket: %s/broker.sock
front:
  listen: %s
  publicEndpoint: %s
  domain: %s
egress:
  listen: %s
  publicEndpoint: https://%s
  hostsDir: %s
drain: {grace: 8s}
%s%s%s`, dir, dir, net.JoinHostPort(BrokerAddress, BrokerPort), cmp.Or(p.PublicEndpoint, net.JoinHostPort(BrokerName, BrokerPort)), BrokerName, EgressAddress, EgressAddress, p.hostsDir(), identity, p.shared(peerAddress), p.BrokerExtra)
}

// BrokerConfigPath is the broker's configuration file.
func (p *Platform) BrokerConfigPath() string {
	return filepath.Join(p.env.Dir(), "broker", "broker.yaml")
}

// BrokerSocket is where the broker's subcommands find it.
func (p *Platform) BrokerSocket() string {
	return filepath.Join(p.env.Dir(), "broker", "broker.sock")
}

// StartBroker starts the broker, also again on the data of one that was killed, and waits until it
// takes commands.
func (p *Platform) StartBroker(ctx context.Context) error {
	if err := p.LaunchBroker(); err != nil {
		return err
	}
	return p.AwaitBroker(ctx)
}

// LaunchBroker is StartBroker without the waiting.
func (p *Platform) LaunchBroker() error {
	path := p.BrokerConfigPath()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(p.brokerConfig()), 0o644); err != nil {
		return err
	}
	argv := p.argv(p.env.Product("broker"), "serve", "--config", path)
	if p.HostsFile != "" {
		argv = p.withHostsFile(p.HostsFile, p.env.Product("broker"), "serve", "--config", path)
	}
	proc, err := p.env.start("broker", false, argv)
	if err != nil {
		return err
	}
	p.Broker = proc
	return nil
}

// AwaitBroker waits until the broker takes commands.
func (p *Platform) AwaitBroker(ctx context.Context) error {
	_, err := p.env.Wait(ctx, "the broker's admin socket", time.Minute, func(ctx context.Context) error {
		_, err := p.BrokerCommand(ctx, "tenant", "list")
		return err
	})
	return err
}

// BrokerCommand runs one of the broker's subcommands and returns what it printed.
func (p *Platform) BrokerCommand(ctx context.Context, args ...string) (string, error) {
	return p.env.output(ctx, p.env.Product("broker"), append(args, "--socket", p.BrokerSocket())...)
}

// addWAN connects a router namespace to the WAN and returns the router's address there. The link is down on the
// router's side.
func (p *Platform) addWAN(router host.Netns) (string, error) {
	p.sites++
	link := fmt.Sprintf("%s-%d", wanBridge, p.sites)
	address := fmt.Sprintf("203.0.113.%d", 10+p.sites)
	return address, errors.Join(
		p.Net.IP("link add "+link+" type veth peer name wan netns "+string(router)),
		p.Net.IP("link set "+link+" master "+wanBridge+" up"),
		router.IP("addr add "+address+"/24 dev wan"),
	)
}

// output runs a program to its end. Its error holds what the program said.
func (e *Env) output(ctx context.Context, program string, args ...string) (string, error) {
	cmd := e.command(ctx, append([]string{program}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), err
}

func splitLines(s string) []string { return strings.Fields(s) }

// BrokerOffline runs one of the broker's subcommands that need no broker.
func (p *Platform) BrokerOffline(ctx context.Context, args ...string) (string, error) {
	return p.env.output(ctx, p.env.Product("broker"), args...)
}
