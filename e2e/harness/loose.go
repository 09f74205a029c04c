package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// LooseAgent is an agent without a machine: it runs beside the broker and has no kubelet, but enrols, bootstraps and
// keeps its tunnel like any other. Many of them cost little.
type LooseAgent struct {
	Name string
	Dir  string // holds all its files; its state in state/

	Proc     *Proc // that was started last
	platform *Platform
}

// looseAPIPorts is where the local API endpoints of loose agents begin: they share a loopback.
const looseAPIPorts = 20000

// NewLooseAgent makes the files of the n-th loose agent; nothing runs yet.
func (p *Platform) NewLooseAgent(n int, transport, bundle string) (*LooseAgent, error) {
	name := fmt.Sprintf("loose-%d", n)
	a := &LooseAgent{Name: name, Dir: filepath.Join(p.env.Dir(), "loose", name), platform: p}
	if err := os.MkdirAll(a.Dir, 0o755); err != nil {
		return nil, err
	}
	for file, content := range map[string]string{
		"join.yaml": bundle,
		"agent.yaml": fmt.Sprintf(`apiVersion: mooring.dev/v1alpha1
kind: AgentConfiguration
joinFile: %[1]s/join.yaml
stateDir: %[1]s/state
socket: %[1]s/agent.sock
healthAddress: ""
apiAddress: 127.0.0.1:%[2]d
tunnel: {endpoint: "%[3]s", transport: %[4]s}
node: {name: %[5]s}
kubelet: {mode: none, rootDir: %[1]s/kubelet}
api: {advertise: false}
`, a.Dir, looseAPIPorts+n, net.JoinHostPort(BrokerAddress, BrokerPort), transport, name),
	} {
		if err := os.WriteFile(filepath.Join(a.Dir, file), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Start starts the agent, its clock off by that much.
func (a *LooseAgent) Start(clock time.Duration) error {
	p := a.platform
	proc, err := p.env.start(a.Name, false, p.Net.Argv(shifted(clock, p.env.Product("timeshift"),
		p.env.Product("edge-agent"), "run", "--config", filepath.Join(a.Dir, "agent.yaml"))...))
	if err == nil {
		a.Proc = proc
	}
	return err
}

// Status is what `edge-agent status` prints as JSON, also of an agent that is not ready.
func (a *LooseAgent) Status(ctx context.Context) (string, error) {
	p := a.platform
	cmd := p.env.command(ctx, p.env.Product("edge-agent"), "status", "-o", "json", "--socket", filepath.Join(a.Dir, "agent.sock"))
	out, err := cmd.Output()
	if len(out) > 0 {
		err = nil
	}
	return string(out), err
}
