package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

// TestIdentity shows that the right box joins, and comes back, whatever happened to it meanwhile, and that no other
// does. One control plane, one transport; the cases build on each other.
func TestIdentity(t *testing.T) {
	t.Parallel() // with the kill loop, which mostly waits
	s := &identitySuite{suite: newSuite(t, "identity")}
	s.transport = "quic"
	s.runCases(t, []testCase{
		{"ControlPlane", true, s.controlPlane},
		{"FiveBoxesPluggedIn", true, s.pluggedIn},
		{"TokensReady", true, s.tokensReady},
		{"ClaimLandsInTenant", true, s.claimed},
		{"WaitsForApproval", true, s.waitsForApproval},
		{"Fault41BootsIn1970", false, s.bootsIn1970},
		{"Fault20ClonedDisk", false, s.clonedDisk},
		{"ApprovedReady", true, s.approvedReady},
		{"Fault44NodeRevoked", false, s.revoked},
		{"Replace", false, s.replaced},
		{"PodsCount", true, s.podsCount},
		{"Fault40CARotatedWhileOff", false, s.caRotated},
		{"Fault39OffFor400Days", false, s.offFor400Days},
	})
}

type identitySuite struct {
	*suite
	// 1 and 2 come with a token each, 3 with a claim, 4 waits for an operator (and is revoked later), 5 boots in 1970 (and
	// is cloned, and replaced, later).
	edge1, edge2, edge3, edge4, edge5 *node

	approved time.Time // when edge4 was
}

// offFor is how long a box lies in a warehouse: longer than any certificate of a node or kubelet lives.
const offFor = 400 * 24 * time.Hour

func (s *identitySuite) controlPlane(_ *suite, t *testing.T) {
	var err error
	s.platform, err = s.env.StartPlatform(s.ctx)
	must(t, err)
	must(t, s.platform.StartBroker(s.ctx))
	s.acme, err = s.platform.NewTenant(s.ctx, "acme")
	must(t, err)
	s.acme.EgressTTL = 2 * offFor // the platform's own certificates are its operator's affair
	must(t, s.acme.Admit(s.ctx))
	must(t, s.acme.Start(s.ctx))
	must(t, s.acme.SetKubeletConfig(s.ctx))
}

// plug installs a box at a site of its own and boots it; its agent does not run yet. All boxes of this suite have the
// same host name, as a factory leaves it, but those that are to join by it.
func (s *identitySuite) plug(t *testing.T, site, hostname, nodeName string, clock time.Duration, o harness.AgentOptions) *node {
	t.Helper()
	at, err := s.platform.AddSite(site)
	must(t, err)
	box, err := at.NewBox(hostname)
	must(t, err)
	n := &node{tenant: s.acme, box: box, name: nodeName}
	must(t, box.ConfigureAgentWith(o))
	must(t, box.SetClock(clock))
	must(t, box.PowerOn(s.ctx))
	return n
}

// pluggedIn starts all agents, so that what has to be waited for is waited for at once.
func (s *identitySuite) pluggedIn(_ *suite, t *testing.T) {
	common, err := s.platform.BrokerCommand(s.ctx, "token", "create", "--no-tenant", "--uses", "10", "--description", "factory")
	must(t, err)
	_, err = s.platform.BrokerCommand(s.ctx, "claim", "create", "--serial", "FACTORY-0003", "--tenant", "acme", "--node-name", "edge-3")
	must(t, err)
	own := func(n *node) string {
		bundle, err := s.acme.Token(s.ctx, "--description", n.String())
		must(t, err)
		return bundle
	}
	s.edge1 = s.plug(t, "site-1", "edge-1", "edge-1", 0, harness.AgentOptions{})
	s.edge2 = s.plug(t, "site-2", "edge-2", "edge-2", 0, harness.AgentOptions{})
	s.edge3 = s.plug(t, "site-3", "factory-box", "edge-3", 0, harness.AgentOptions{Serial: "FACTORY-0003"})
	s.edge4 = s.plug(t, "site-4", "factory-box", "edge-4", 0, harness.AgentOptions{Serial: "FACTORY-0004"})
	s.edge5 = s.plug(t, "site-5", "edge-5", "edge-5", harness.ClockAt(time.Unix(86400, 0)), harness.AgentOptions{})
	for n, bundle := range map[*node]string{s.edge1: own(s.edge1), s.edge2: own(s.edge2), s.edge3: common, s.edge4: common, s.edge5: own(s.edge5)} {
		must(t, n.box.Hand(bundle))
		must(t, n.box.StartAgent())
	}
}

// firstReady waits until a node that was never there before is Ready.
func (s *identitySuite) firstReady(t *testing.T, n *node, limit time.Duration) time.Duration {
	t.Helper()
	return s.wait(t, n.String()+" to be Ready", limit, func(ctx context.Context) error {
		return n.tenant.NodeReady(ctx, n.name)
	})
}

// ready waits until the node is Ready and its kubelet was heard of after since, which is of the platform's clock.
func (s *identitySuite) ready(t *testing.T, n *node, limit time.Duration, since time.Time) time.Duration {
	t.Helper()
	return s.wait(t, n.String()+" to be Ready", limit, func(ctx context.Context) error {
		return n.tenant.NodeBack(ctx, n.name, since)
	})
}

func (s *identitySuite) tokensReady(_ *suite, t *testing.T) {
	for _, n := range []*node{s.edge1, s.edge2} {
		s.firstReady(t, n, time.Minute)
	}
}

// claimed: a box with a token that is no tenant's, and the serial number that an operator has claimed, is that tenant's
// node by the name in the claim; nobody was asked.
func (s *identitySuite) claimed(_ *suite, t *testing.T) {
	s.firstReady(t, s.edge3, time.Minute)
}

// show is `broker node show`.
func (s *identitySuite) show(t *testing.T, name string) string {
	t.Helper()
	out, err := s.platform.BrokerCommand(s.ctx, "node", "show", "acme/"+name)
	must(t, err)
	return out
}

// waitsForApproval: without a claim it waits, and both ends show the same fingerprint; an operator lets it in.
func (s *identitySuite) waitsForApproval(_ *suite, t *testing.T) {
	var pending []struct{ Fingerprint, Serial string }
	s.wait(t, "the box without a claim to be pending", 30*time.Second, func(ctx context.Context) error {
		out, err := s.platform.BrokerCommand(ctx, "node", "pending", "-o", "json")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(out), &pending); err != nil {
			return err
		}
		if len(pending) != 1 || pending[0].Fingerprint == "" {
			return fmt.Errorf("want one that waits, have %s", out)
		}
		return nil
	})
	if pending[0].Serial != "FACTORY-0004" {
		t.Errorf("the box that waits has the serial %q", pending[0].Serial)
	}
	status, err := s.edge4.box.Run(s.ctx, "edge-agent", "status")
	if err == nil || !strings.Contains(status, pending[0].Fingerprint) {
		t.Errorf("the box's status (%v) does not show %s:\n%s", err, pending[0].Fingerprint, status)
	}
	if s.nodeKnown(t, "edge-4") {
		t.Error("it is a node before anybody has let it in")
	}
	_, err = s.platform.BrokerCommand(s.ctx, "node", "approve", pending[0].Fingerprint, "--tenant", "acme", "--node-name", "edge-4")
	must(t, err)
	s.approved = time.Now()
}

// approvedReady: the agent asks again every half minute or so; there was something else to do meanwhile, which may have
// taken longer than the node has: when it was there is what its own time says, and that it is Ready is looked at now.
func (s *identitySuite) approvedReady(_ *suite, t *testing.T) {
	const limit = 90 * time.Second
	s.firstReady(t, s.edge4, max(time.Until(s.approved.Add(limit)), 10*time.Second))
	out, err := s.acme.Kubectl(s.ctx, "get", "node", s.edge4.name, "-o", "jsonpath={.metadata.creationTimestamp}")
	must(t, err)
	at, err := time.Parse(time.RFC3339, out)
	must(t, err)
	took := at.Sub(s.approved.Truncate(time.Second)) // an object's time is of whole seconds
	s.note("a node %.0f s after its approval", took.Seconds())
	if took > limit {
		t.Errorf("a node %s after its approval, want at most %s", took, limit)
	}
}

func (s *identitySuite) nodeKnown(t *testing.T, name string) bool {
	t.Helper()
	nodes, err := s.nodeRecords(s.ctx)
	must(t, err)
	for _, n := range nodes {
		if n.Name == name {
			return true
		}
	}
	return false
}

// agentStatus is `edge-agent status`, also of one that is not ready.
func (n *node) agentStatus(ctx context.Context) string {
	out, err := n.box.Command(ctx, "edge-agent", "status").CombinedOutput()
	if len(out) == 0 && err != nil {
		return err.Error()
	}
	return string(out)
}

// agentSays waits until `edge-agent status` holds one of the texts.
func (s *identitySuite) agentSays(t *testing.T, n *node, limit time.Duration, texts ...string) {
	t.Helper()
	s.wait(t, fmt.Sprintf("the agent of %s to say one of %q", n, texts), limit, func(ctx context.Context) error {
		status := n.agentStatus(ctx)
		for _, text := range texts {
			if strings.Contains(strings.ToLower(status), strings.ToLower(text)) {
				return nil
			}
		}
		return fmt.Errorf("it says:\n%s", status)
	})
}

// stateFile reads a file of the agent's state.
func (n *node) stateFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(n.box.Path(filepath.Join("/var/lib/mooring", name)))
	must(t, err)
	return string(data)
}

// restartAgent starts agent and kubelet anew, with that clock.
func (s *identitySuite) restartAgent(t *testing.T, n *node, clock time.Duration) {
	t.Helper()
	n.box.Agent().Stop()
	must(t, n.box.KillKubelet(s.ctx))
	must(t, n.box.SetClock(clock))
	must(t, n.box.StartAgent())
}
