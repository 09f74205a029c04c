package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// backLimit is how long a node may be away after the broker was killed.
const backLimit = 30 * time.Second

// execWorks returns nil if a command in the node's pod answers from the right machine.
func (s *suite) execWorks(n *node) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		out, err := s.exec(ctx, n, "cat /site")
		if err == nil && out != n.site()+"\n" {
			err = fmt.Errorf("exec on %s answers from %q", n, out)
		}
		return err
	}
}

// brokerKilled: kill -9 loses nothing, and no process on any node has to be restarted for it.
func (s *suite) brokerKilled(t *testing.T) {
	before := map[*node]string{}
	for _, n := range s.nodes {
		before[n] = n.processes()
	}
	s.platform.Broker.Kill()
	killed := time.Now()
	for _, n := range s.nodes { // the outage is real
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
		if out, err := s.exec(ctx, n, "cat /site"); err == nil {
			t.Errorf("exec on %s works without a broker: %q", n, out)
		}
		cancel()
	}
	must(t, s.platform.StartBroker(s.ctx))
	start := time.Now()
	s.logf("    broker was away for %.1f s", start.Sub(killed).Seconds())
	for _, n := range s.nodes {
		s.wait(t, "exec on "+n.String(), time.Until(start.Add(backLimit)), s.execWorks(n))
		s.wait(t, n.String()+" to be Ready again", time.Until(start.Add(backLimit)), func(ctx context.Context) error {
			return n.tenant.NodeBack(ctx, n.name, start)
		})
		s.note("%s back after %.1f s", n, time.Since(start).Seconds())
		if now := n.processes(); now != before[n] {
			t.Errorf("%s was restarted: %s; before: %s", n, now, before[n])
		}
	}
}

// brokerRestarted: a broker that is told to stop lets a command finish that runs when it is told, and is asked for others
// meanwhile.
func (s *suite) brokerRestarted(t *testing.T) {
	type result struct {
		n   *node
		out string
		err error
	}
	running := make(chan result, len(s.nodes))
	for _, n := range s.nodes {
		go func() {
			out, err := s.exec(s.ctx, n, "echo begun; touch /begun; sleep 6; cat /site; rm /begun")
			running <- result{n, out, err}
		}()
		s.wait(t, "the command on "+n.String()+" to run", time.Minute, func(ctx context.Context) error {
			_, err := s.exec(ctx, n, "ls /begun")
			return err
		})
	}
	stopped := make(chan struct{})
	told := time.Now()
	go func() {
		defer close(stopped)
		s.platform.Broker.Stop()
	}()
	for range s.nodes {
		if r := <-running; r.err != nil || r.out != "begun\n"+r.n.site()+"\n" {
			t.Errorf("the command on %s that ran when the broker was told to stop: %q, %v", r.n, r.out, r.err)
		}
	}
	<-stopped
	s.note("stopped after %.1f s", time.Since(told).Seconds())
	start := time.Now()
	must(t, s.platform.StartBroker(s.ctx))
	for _, n := range s.nodes {
		s.wait(t, "exec on "+n.String(), time.Until(start.Add(backLimit)), s.execWorks(n))
		s.note("%s back after %.1f s", n, time.Since(start).Seconds())
	}
}

// agentRestarted: an agent that is told to stop, as for an upgrade, is back within two seconds.
func (s *suite) agentRestarted(t *testing.T) {
	for _, n := range s.nodes {
		pod, kubelet := s.containers(t, n), n.box.FindProcess("kubelet")
		n.box.Agent().Stop()
		start := time.Now()
		must(t, n.box.StartAgent())
		s.wait(t, "the tunnel of "+n.String(), 2*time.Second, func(ctx context.Context) error {
			out, err := s.platform.BrokerCommand(ctx, "node", "show", n.String(), "-o", "json")
			if err == nil && !strings.Contains(out, `"connected": true`) {
				err = fmt.Errorf("not connected: %s", out)
			}
			return err
		})
		s.note("%s back after %.1f s", n, time.Since(start).Seconds())
		s.wait(t, "exec on "+n.String(), time.Minute, s.execWorks(n))
		if now := s.containers(t, n); now != pod {
			t.Errorf("the pod of %s was disturbed: %s; before: %s", n, now, pod)
		}
		if now := n.box.FindProcess("kubelet"); now != kubelet {
			t.Errorf("the kubelet of %s was restarted with the agent: process %d, before %d", n, now, kubelet)
		}
	}
}

// containers describes a node's pod by what changes when it is disturbed.
func (s *suite) containers(t *testing.T, n *node) string {
	t.Helper()
	out, err := n.tenant.Kubectl(s.ctx, "get", "pod", n.pod(), "-o",
		"jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID} restarts={.status.containerStatuses[0].restartCount}")
	must(t, err)
	return out
}

// agentKilled: the pods do not notice, and the new agent takes up where the old one was.
func (s *suite) agentKilled(t *testing.T) {
	for _, n := range s.nodes {
		pod, kubelet := s.containers(t, n), n.box.FindProcess("kubelet")
		n.box.Agent().Kill()
		must(t, n.box.StartAgent())
		start := time.Now()
		s.wait(t, "exec on "+n.String(), time.Minute, s.execWorks(n))
		back := time.Since(start)
		s.wait(t, n.String()+" to be Ready again", time.Minute, func(ctx context.Context) error {
			return n.tenant.NodeBack(ctx, n.name, start)
		})
		s.note("%s back after %.1f s", n, back.Seconds())
		if now := s.containers(t, n); now != pod {
			t.Errorf("the pod of %s was disturbed: %s; before: %s", n, now, pod)
		}
		if now := n.box.FindProcess("kubelet"); now != kubelet {
			t.Errorf("the kubelet of %s was restarted with the agent: process %d, before %d", n, now, kubelet)
		}
	}
}

// nodeRebooted: a machine whose power was cut comes back from its disk alone, its token long used up,
// and brings its pod back.
func (s *suite) nodeRebooted(t *testing.T) {
	n := s.nodes[0]
	before := s.containers(t, n)
	must(t, n.box.PowerOff())
	s.logf("    %s is off", n)
	other := s.nodes[2] // its namesake of the other tenant goes on meanwhile
	must(t, s.execWorks(other)(s.ctx))
	start := time.Now()
	must(t, n.box.PowerOn(s.ctx))
	must(t, n.box.StartAgent())
	s.wait(t, n.String()+" to be Ready after its reboot", 90*time.Second, func(ctx context.Context) error {
		return n.tenant.NodeBack(ctx, n.name, start)
	})
	s.note("Ready after %.1f s", time.Since(start).Seconds())
	s.wait(t, "exec on "+n.String(), 90*time.Second, s.execWorks(n))
	s.note("exec after %.1f s", time.Since(start).Seconds())
	if now := s.containers(t, n); now == before || !strings.HasSuffix(now, "restarts=1") {
		t.Errorf("the pod of %s did not go down and come back with its machine: %s; before: %s", n, now, before)
	}
	if uses := s.tokenUses(t, n.String()); uses != 1 {
		t.Errorf("the token of %s was used %d times, want 1: the reboot enrolled again", n, uses)
	}
}
