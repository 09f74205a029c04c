package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
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
	kubeletProcess = "/var/lib/mooring/kubelet.process"
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

// KillKubelet ends the kubelet that the box's agent has started, if it still lives. It goes by the agent's own note and not
// by the process's name: one that has just been started is the shell or timeshift yet, and would be taken over by the
// next agent, with the clock that it was started with.
func (b *Box) KillKubelet(ctx context.Context) error {
	data, err := os.ReadFile(b.Path(kubeletProcess))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var note struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(data, &note); err != nil || note.PID <= 1 {
		return fmt.Errorf("the agent's note of its kubelet is %q (%v)", data, err)
	}
	pid := strconv.Itoa(note.PID)
	lives := func() bool {
		_, err := os.Stat(b.Path("/proc/" + pid))
		return err == nil
	}
	if !lives() {
		return nil
	}
	if _, err := b.Run(ctx, "busybox", "kill", "-KILL", pid); err != nil && lives() {
		return err
	}
	_, err = b.Site.env.Wait(ctx, "the kubelet of "+b.Site.Name+" to end", 10*time.Second, func(context.Context) error {
		if lives() {
			return fmt.Errorf("process %s of the box is there", pid)
		}
		return nil
	})
	return err
}

// KubeletStarts is how often the box's kubelet has been started.
func (b *Box) KubeletStarts() int {
	data, _ := os.ReadFile(b.Path(kubeletStarts))
	return strings.Count(string(data), "\n")
}
