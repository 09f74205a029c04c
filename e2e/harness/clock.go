package harness

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// shifted puts the program timeshift before a command line, if the clock is to be another than the machine's.
func shifted(clock time.Duration, timeshift string, argv ...string) []string {
	if clock == 0 {
		return argv
	}
	return append([]string{timeshift, clock.Truncate(time.Second).String()}, argv...)
}

// ClockAt is the Clock by which now would be the time t.
func ClockAt(t time.Time) time.Duration { return time.Until(t).Truncate(time.Second) }

// StopAll stops all that the platform runs, as a person would before moving house.
func (p *Platform) StopAll() {
	for _, t := range p.tenants {
		t.Stop()
	}
	p.Broker.Stop()
	p.etcd.Stop()
}

// StartAll starts again, on their data, what StopAll has stopped.
func (p *Platform) StartAll(ctx context.Context) error {
	if err := p.startEtcd(ctx); err != nil {
		return err
	}
	if err := p.StartBroker(ctx); err != nil {
		return err
	}
	for _, t := range p.tenants {
		if err := t.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

const (
	kubeletStarter = "/etc/mooring/start-kubelet"
	kubeletStarts  = "/var/log/kubelet-starts"
)

// AgentOptions are what an agent's configuration says beside the harness's needs.
type AgentOptions struct {
	Transport string // default quic
	Serial    string // node.serial; default: the machine's own, which all boxes share
}

// ConfigureAgentWith is ConfigureAgent for boxes whose clock is changed and whose kubelet's starts are counted: the
// kubelet is started through a script.
func (b *Box) ConfigureAgentWith(o AgentOptions) error {
	if o.Transport == "" {
		o.Transport = "quic"
	}
	node := ""
	if o.Serial != "" {
		node = fmt.Sprintf("node: {serial: %s}\n", o.Serial)
	}
	return b.Write(AgentConfigPath, fmt.Sprintf(`apiVersion: mooring.dev/v1alpha1
kind: AgentConfiguration
tunnel: {transport: %s}
%skubelet:
  path: %s
  config: {cgroupRoot: /%s}
`, o.Transport, node, kubeletStarter, b.Cgroup))
}

// SetClock makes the agent and the kubelet start with that clock from now on.
func (b *Box) SetClock(clock time.Duration) error {
	b.Clock = clock
	kubelet := strings.Join(shifted(clock, "timeshift", "/usr/bin/kubelet"), " ")
	script := fmt.Sprintf("#!/bin/sh\necho start >> %s\nexec %s \"$@\"\n", kubeletStarts, kubelet)
	if err := b.Write(kubeletStarter, script); err != nil {
		return err
	}
	return os.Chmod(b.Path(kubeletStarter), 0o755)
}

// KillKubelet ends the box's kubelet, if one runs.
func (b *Box) KillKubelet() {
	if pid := b.FindProcess("kubelet"); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// KubeletStarts is how often the box's kubelet has been started.
func (b *Box) KubeletStarts() int {
	data, _ := os.ReadFile(b.Path(kubeletStarts))
	return strings.Count(string(data), "\n")
}
