package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// TestTwoBrokers shows what a second broker is for: the node is connected to one, its API server asks the other, and either may
// be killed or stopped. The brokers' store is a real etcd, which the API server uses too.
func TestTwoBrokers(t *testing.T) {
	s := newSuite(t, "two brokers")
	s.transport = "auto"
	s.runCases(t, []testCase{
		{"TwoBrokersOneStore", true, (*suite).twoBrokers},
		{"NodeReady", true, (*suite).nodesReady},
		{"PodsRun", true, (*suite).podsRun},
		{"NodeIsAtTheOtherBroker", true, (*suite).atTheOtherBroker},
		{"Logs", false, (*suite).logs},
		{"LogsFollow", false, (*suite).logsFollow},
		{"Exec200MBEachWay", false, (*suite).execBulk},
		{"OtherTenantsNodesNotFound", false, (*suite).foreignNodeNotFound},
		{"Fault19OwnerKilledMidRequest", false, (*suite).ownerKilled},
		{"TheNewOwnerIsTheOneAsked", false, (*suite).back},
		{"NothingElseLeftTheSites", false, (*suite).nothingElseLeft},
	})
}

func (s *suite) twoBrokers(t *testing.T) {
	var err error
	s.platform, err = s.env.StartPlatform(s.ctx)
	must(t, err)
	s.platform.Shared = true
	must(t, s.platform.StartBroker(s.ctx))
	must(t, s.platform.StartSecondBroker(s.ctx))
	for _, name := range []string{"acme", "globex"} {
		tenant, err := s.platform.NewTenant(s.ctx, name)
		must(t, err)
		must(t, tenant.Admit(s.ctx))
		if name == "globex" { // has no node: it is there to ask for another's
			s.globex = tenant
			continue
		}
		must(t, tenant.Start(s.ctx))
		must(t, tenant.SetKubeletConfig(s.ctx))
		s.acme = tenant
	}
	site, err := s.platform.AddSite("acme-1")
	must(t, err)
	box, err := site.NewBox("edge-1")
	must(t, err)
	s.nodes = []*node{{tenant: s.acme, box: box, name: "edge-1"}}
	must(t, box.ConfigureAgent(s.transport))
	must(t, box.PowerOn(s.ctx))
}

// nodeAt asks one broker where the node is: "here", "elsewhere" or "nowhere".
func nodeAt(ctx context.Context, command func(context.Context, ...string) (string, error)) (string, error) {
	out, err := command(ctx, "node", "list", "-o", "json")
	if err != nil {
		return "", err
	}
	var nodes []struct {
		Connected bool
		Session   *struct{ Transport string }
	}
	if err := json.Unmarshal([]byte(out), &nodes); err != nil || len(nodes) != 1 {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	switch {
	case nodes[0].Session != nil:
		return "here", nil
	case nodes[0].Connected:
		return "elsewhere", nil
	}
	return "nowhere", nil
}

func wantAt(ctx context.Context, want string, command func(context.Context, ...string) (string, error)) error {
	got, err := nodeAt(ctx, command)
	if err == nil && got != want {
		err = fmt.Errorf("the node is %s, want it %s", got, want)
	}
	return err
}

// atTheOtherBroker: the API server's broker is not the node's.
func (s *suite) atTheOtherBroker(t *testing.T) {
	must(t, wantAt(s.ctx, "here", s.platform.SecondBrokerCommand))
	must(t, wantAt(s.ctx, "elsewhere", s.platform.BrokerCommand))
}

// foreignNodeNotFound: what another tenant has at another broker is answered like what nobody has.
func (s *suite) foreignNodeNotFound(t *testing.T) {
	answer := func(node string) string {
		conn, said, err := s.globex.Connect(s.ctx, node+":10250")
		must(t, err)
		if conn != nil {
			conn.Close()
			t.Fatalf("globex reached %s", node)
		}
		text, _, _ := strings.Cut(strings.ReplaceAll(string(said), node, "NODE"), "(dial ") // names each dial
		return text
	}
	if got, want := answer("edge-1"), answer("edge-9"); got != want || !strings.Contains(got, "404") {
		t.Errorf("another tenant's node: %q; want %q, as for one that nobody has", got, want)
	}
}

// ownerKilled: kill -9 of the broker that has the node. Who has a command running gets an error (the end of logs -f looks
// clean to kubectl whatever ended it: the API server makes it so), and the node is reached again, by the other broker, without a hand on anything.
func (s *suite) ownerKilled(t *testing.T) {
	n := s.nodes[0]
	before := n.processes()
	var out lineWatch
	command := n.tenant.KubectlCommand(s.ctx, "exec", n.pod(), "--", "sh", "-c", "echo begun; sleep 300")
	command.Stdout, command.Stderr = &out, io.Discard
	must(t, command.Start())
	s.wait(t, "the command to run", 15*time.Second, out.has("begun"))
	s.platform.KillSecondBroker()
	start := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("kubectl exec ended as if the command had")
		}
		s.note("exec ended after %.1f s: %v", time.Since(start).Seconds(), err)
	case <-time.After(time.Minute):
		t.Error("kubectl exec goes on, on a node whose broker is gone")
		_ = command.Process.Kill()
	}
	s.wait(t, "exec", time.Until(start.Add(backLimit)), s.execWorks(n))
	s.note("exec after %.1f s", time.Since(start).Seconds())
	s.wait(t, n.String()+" to be Ready again", time.Until(start.Add(backLimit)), func(ctx context.Context) error {
		return n.tenant.NodeBack(ctx, n.name, start)
	})
	must(t, wantAt(s.ctx, "here", s.platform.BrokerCommand))
	if now := n.processes(); now != before {
		t.Errorf("%s was restarted: %s; before: %s", n, now, before)
	}
}

// back: the broker that was killed comes back and finds the node where it is now.
func (s *suite) back(t *testing.T) {
	must(t, s.platform.StartSecondBroker(s.ctx))
	s.wait(t, "the second broker to know where the node is", 20*time.Second, func(ctx context.Context) error {
		return wantAt(ctx, "elsewhere", s.platform.SecondBrokerCommand)
	})
	must(t, s.execWorks(s.nodes[0])(s.ctx))
}
