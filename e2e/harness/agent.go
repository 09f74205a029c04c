package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// AgentConfigPath and JoinPath are the product's defaults.
const (
	AgentConfigPath = "/etc/mooring/agent.yaml"
	JoinPath        = "/etc/mooring/join.yaml"
)

// ConfigureAgent writes the agent's configuration: the transport asked for, the addresses if they are
// not to be found by itself, and the cgroup that keeps this machine's pods apart from those of the others
// on the same kernel. All else is the default.
func (b *Box) ConfigureAgent(transport string, addresses ...string) error {
	node := ""
	if len(addresses) > 0 {
		node = "node:\n  addresses: [" + strings.Join(addresses, ", ") + "]\n"
	}
	return b.Write(AgentConfigPath, fmt.Sprintf(`apiVersion: mooring.dev/v1alpha1
kind: AgentConfiguration
tunnel:
  transport: %s
%skubelet:
  config:
    cgroupRoot: /%s
`, transport, node, b.Cgroup))
}

// StartAgent starts edge-agent as a service manager would.
func (b *Box) StartAgent() error {
	return b.Start("edge-agent", shifted(b.Clock, "timeshift", "edge-agent", "run")...)
}

// Agent is the running agent.
func (b *Box) Agent() *Proc { return b.Proc("edge-agent") }

// Token makes an enrolment token and returns the join bundle that a box gets.
func (t *Tenant) Token(ctx context.Context, args ...string) (string, error) {
	return t.platform.BrokerCommand(ctx, append([]string{"token", "create", "--tenant", t.Name}, args...)...)
}

// Admit makes the tenant known to the broker and gets what its API server needs to reach nodes. As on a platform, the
// control plane was there before: its API server runs without a way to nodes for that long.
func (t *Tenant) Admit(ctx context.Context) error {
	p := t.platform
	before, err := t.startAPIServer(ctx, "-before", t.Port, p.Net.Argv(t.apiServer(t.Port)...))
	if err != nil {
		return err
	}
	defer before.Stop()
	if _, err := p.BrokerCommand(ctx, "tenant", "add", t.Name, "--kubeconfig", t.Kubeconfig()); err != nil {
		return err
	}
	if err := t.IssueEgress(ctx); err != nil {
		return err
	}
	_, err = p.env.Wait(ctx, "the hosts file of "+t.Name, 10*time.Second, func(context.Context) error {
		_, err := os.Stat(filepath.Join(p.hostsDir(), t.Name))
		return err
	})
	return err
}

// IssueEgress gets the certificate by which the tenant's API server reaches nodes, in place of the one it has.
func (t *Tenant) IssueEgress(ctx context.Context) error {
	args := []string{"egress", "issue", "--tenant", t.Name, "--out", t.EgressDir()}
	if t.EgressTTL != 0 {
		args = append(args, "--ttl", t.EgressTTL.String())
	}
	if t.EgressMode != "" {
		args = append(args, "--mode", t.EgressMode, "--proxy-socket", t.sidecarSocket(), "--broker", net.JoinHostPort(BrokerAddress, BrokerPort))
	}
	_, err := t.platform.BrokerCommand(ctx, args...)
	return err
}

// Hand gives the box the bundle with which it joins.
func (b *Box) Hand(bundle string) error { return b.Write(JoinPath, bundle) }

// ShellCommand is the command line by which a person enters the box.
func (b *Box) ShellCommand() string {
	return strings.Join(b.enter(), " ")
}

// KubectlLine is the start of the command line by which a person uses kubectl on the tenant.
func (t *Tenant) KubectlLine() string {
	p := t.platform
	return strings.Join(p.Net.Argv("env", "KUBECONFIG="+t.Kubeconfig(), p.env.Tool("kubectl")), " ")
}

// Relative shortens a path of the run for printing.
func (e *Env) Relative(path string) string {
	if rel, err := filepath.Rel(e.Dir(), path); err == nil {
		return rel
	}
	return path
}
