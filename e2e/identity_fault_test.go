package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

// bootsIn1970: a box whose clock starts at zero enrols all the same, since the broker is verified by the key that the
// bundle pins, or waits and says why; what it holds is not touched. Once the clock is right it is like any other.
func (s *identitySuite) bootsIn1970(_ *suite, t *testing.T) {
	n := s.edge5
	s.wait(t, n.String()+" to do what it can", time.Minute, func(ctx context.Context) error {
		status := n.agentStatus(ctx)
		if !strings.Contains(strings.ToLower(status), "this machine's clock says") {
			return fmt.Errorf("its status says nothing of the clock:\n%s", status)
		}
		return nil
	})
	key := n.stateFile(t, "node.key")
	if year, err := n.box.Run(s.ctx, "timeshift", n.box.Clock.String(), "busybox", "date", "+%Y"); err != nil || strings.TrimSpace(year) != "1970" {
		t.Fatalf("the box is in the year %q (%v)", year, err)
	}
	s.restartAgent(t, n, 0)
	s.note("Ready %.0f s after its clock was right", s.firstReady(t, n, 90*time.Second).Seconds())
	if n.stateFile(t, "node.key") != key {
		t.Error("its key has changed")
	}
	// Once more, as a node that is enrolled and has a kubelet's certificate.
	record := s.recordOf(t, n.name)
	s.restartAgent(t, n, harness.ClockAt(time.Unix(86400, 0)))
	s.agentSays(t, n, time.Minute, "this machine's clock says")
	s.restartAgent(t, n, 0)
	s.ready(t, n, 90*time.Second, time.Now())
	if n.stateFile(t, "node.key") != key {
		t.Error("its key has changed at the second time")
	}
	if now := s.recordOf(t, n.name); now.KeyHash != record.KeyHash {
		t.Errorf("the broker knows it by another key: %s, before %s", now.KeyHash, record.KeyHash)
	}
	if used := s.tokenUses(t, n.String()); used != 1 {
		t.Errorf("its token was used %d times", used)
	}
}

func (s *identitySuite) recordOf(t *testing.T, name string) brokerNode {
	t.Helper()
	nodes, err := s.nodeRecords(s.ctx)
	must(t, err)
	for _, n := range nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("the broker knows no node %s", name)
	return brokerNode{}
}

// clonedDisk: two boxes with one state directory are both kept out, until an operator says which of them it is.
func (s *identitySuite) clonedDisk(_ *suite, t *testing.T) {
	n := s.edge5
	clone := s.plug(t, "site-clone", "edge-5", "edge-5", 0, harness.AgentOptions{})
	must(t, os.CopyFS(clone.box.Path("/var/lib/mooring"), os.DirFS(n.box.Path("/var/lib/mooring"))))
	must(t, os.Remove(clone.box.Path("/var/lib/mooring/lock")))
	must(t, clone.box.StartAgent())

	s.agentSays(t, n, time.Minute, "two boxes")
	s.agentSays(t, clone, time.Minute, "two boxes")
	out, err := s.platform.BrokerCommand(s.ctx, "node", "show", "acme/edge-5", "-o", "json")
	must(t, err)
	var shown struct {
		Boxes []struct{ ID, RemoteAddr string }
	}
	must(t, json.Unmarshal([]byte(out), &shown))
	if len(shown.Boxes) != 2 {
		t.Fatalf("want two boxes, have:\n%s", out)
	}
	keep := ""
	for _, box := range shown.Boxes {
		switch host, _, _ := strings.Cut(box.RemoteAddr, ":"); host {
		case n.box.Site.WANAddress:
			keep = box.ID
		case clone.box.Site.WANAddress:
		default:
			t.Errorf("a box comes from %s, where none is", box.RemoteAddr)
		}
	}
	if keep == "" {
		t.Fatalf("no box comes from the address of %s:\n%s", n, out)
	}
	if table := s.show(t, "edge-5"); !strings.Contains(table, n.box.Site.WANAddress) || !strings.Contains(table, clone.box.Site.WANAddress) {
		t.Errorf("broker node show does not name both addresses:\n%s", table)
	}
	s.wait(t, "an Event that names both addresses", 15*time.Second, func(ctx context.Context) error {
		out, err := s.acme.Kubectl(ctx, "get", "events", "-A", "--field-selector", "involvedObject.kind=Node,involvedObject.name=edge-5",
			"-o", `jsonpath={range .items[*]}{.type} {.reason}: {.message}{"\n"}{end}`)
		if err == nil && (!strings.Contains(out, n.box.Site.WANAddress) || !strings.Contains(out, clone.box.Site.WANAddress)) {
			err = fmt.Errorf("the events are:\n%s", out)
		}
		return err
	})
	_, err = s.platform.BrokerCommand(s.ctx, "node", "resolve", "acme/edge-5", "--keep", keep)
	must(t, err)
	start := time.Now()
	s.wait(t, "the session of the box that was kept", 90*time.Second, func(ctx context.Context) error { return s.connectedFrom(ctx, n) })
	s.note("the kept one is back after %.0f s", time.Since(start).Seconds())
	s.ready(t, n, time.Minute, time.Now())
	// The other one goes on asking.
	clone.box.Agent().Kill()
	must(t, clone.box.StartAgent())
	s.agentSays(t, clone, time.Minute, "two boxes", "another box")
	must(t, s.connectedFrom(s.ctx, n))
	must(t, clone.box.PowerOff())
}

// connectedFrom returns nil if the node's session comes from its own site.
func (s *identitySuite) connectedFrom(ctx context.Context, n *node) error {
	out, err := s.platform.BrokerCommand(ctx, "node", "show", "acme/"+n.name, "-o", "json")
	if err != nil {
		return err
	}
	var shown struct{ Session *struct{ RemoteAddr string } }
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		return err
	}
	if shown.Session == nil || !strings.HasPrefix(shown.Session.RemoteAddr, n.box.Site.WANAddress+":") {
		return fmt.Errorf("%s has no session from %s:\n%s", n, n.box.Site.WANAddress, out)
	}
	return nil
}

// revokeLimit is how long a revoked node's tunnel may live on.
const revokeLimit = 5 * time.Second

// revoked: a stolen box is out at once, and stays out.
func (s *identitySuite) revoked(_ *suite, t *testing.T) {
	n := s.edge4
	must(t, s.connectedFrom(s.ctx, n))
	if n.tunnelDown(s.ctx) == nil {
		t.Fatal("its agent says that it has no tunnel before anything was done to it")
	}
	_, err := s.platform.BrokerCommand(s.ctx, "node", "revoke", "acme/edge-4", "--reason", "stolen")
	must(t, err)
	took := s.wait(t, "the tunnel to be cut", revokeLimit, n.tunnelDown)
	s.note("cut after %.1f s", took.Seconds())
	must(t, s.outside(s.ctx, n))
	s.agentSays(t, n, 30*time.Second, "revoked")

	s.platform.Broker.Kill()
	must(t, s.platform.StartBroker(s.ctx))
	s.ready(t, s.edge1, time.Minute, time.Now()) // the broker serves again
	n.box.Agent().Kill()                         // and this one asks at once
	must(t, n.box.StartAgent())
	s.agentSays(t, n, 30*time.Second, "revoked")
	must(t, s.outside(s.ctx, n))
	s.brokerLogged(t, "renewal refused", "node=edge-4")

	// Its key gets it nothing with a fresh token either.
	n.box.Agent().Stop()
	bundle, err := s.acme.Token(s.ctx, "--description", "for a revoked box", "--node-name", "edge-9")
	must(t, err)
	must(t, n.box.Write("/run/again.yaml", bundle))
	must(t, n.box.Write("/run/agent.yaml", secondAgent))
	must(t, os.MkdirAll(n.box.Path("/run/again"), 0o700))
	must(t, os.WriteFile(n.box.Path("/run/again/node.key"), []byte(n.stateFile(t, "node.key")), 0o600))
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	out, err := n.box.Run(ctx, "edge-agent", "join", "--config", "/run/agent.yaml", "--bundle", "/run/again.yaml")
	if err == nil {
		t.Errorf("a revoked key has joined again:\n%s", out)
	}
	if used := s.tokenUses(t, "for a revoked box"); used != 0 {
		t.Errorf("a revoked key has used a token %d times", used)
	}
	s.brokerLogged(t, "enrolment refused", "key is revoked")
	must(t, n.box.StartAgent())
}

// tunnelDown returns nil if the agent says that it is not connected: the box is where a tunnel would be of use.
func (n *node) tunnelDown(ctx context.Context) error {
	var status struct{ Tunnel *struct{ Connected bool } }
	out, _ := n.box.Command(ctx, "edge-agent", "status", "-o", "json").Output() // it fails where the node is not ready
	if err := json.Unmarshal(out, &status); err != nil {
		return err
	}
	if status.Tunnel == nil || status.Tunnel.Connected {
		return fmt.Errorf("the agent of %s says that it is connected: %s", n, out)
	}
	return nil
}

// brokerLogged fails unless the broker has written a line that holds all of the texts.
func (s *identitySuite) brokerLogged(t *testing.T, texts ...string) {
	t.Helper()
	log, err := os.ReadFile(s.platform.Broker.Log)
	must(t, err)
	for line := range strings.Lines(string(log)) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			return
		}
	}
	t.Errorf("the broker's log has no line with %q", texts)
}

// outside returns nil if the broker has no session of the node.
func (s *identitySuite) outside(ctx context.Context, n *node) error {
	names, err := s.connected(ctx)
	for _, name := range names {
		if name == n.name {
			err = fmt.Errorf("%s is connected", n)
		}
	}
	return err
}

// replaced: a box takes the name of one that is dead, with a token like any other; without the operator's word it can't.
func (s *identitySuite) replaced(_ *suite, t *testing.T) {
	old := s.edge5
	must(t, old.box.PowerOff())
	key := s.recordOf(t, old.name).KeyHash
	_, err := s.platform.BrokerCommand(s.ctx, "node", "replace", "acme/edge-5")
	must(t, err)
	n := s.plug(t, "site-5b", "edge-5", "edge-5", 0, harness.AgentOptions{})
	bundle, err := s.acme.Token(s.ctx, "--description", "replacement")
	must(t, err)
	must(t, n.box.Hand(bundle))
	start := time.Now()
	must(t, n.box.StartAgent())
	s.ready(t, n, 90*time.Second, start)
	if now := s.recordOf(t, n.name); now.KeyHash == key {
		t.Error("the broker still knows the node by the dead box's key")
	}
	// The dead box was not dead.
	must(t, old.box.PowerOn(s.ctx))
	must(t, old.box.StartAgent())
	s.agentSays(t, old, time.Minute, "revoked", "replaced", "refused")
	must(t, s.connectedFrom(s.ctx, n))
	must(t, old.box.PowerOff())
	s.edge5 = n
}
