package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

// TestKonnectivityAgent has upstream's konnectivity agent, unchanged, connect to the broker beside real API servers: by a token and
// by a certificate, and to and from another tenant. Its kubelets are stand-ins; what asks them is kubectl, through kube-apiserver.
//
// Seen failing (the agent was let in) with the comparison of the tenants in ByCertificate taken out, and with that of the ServiceAccount
// in ByToken.
func TestKonnectivityAgent(t *testing.T) {
	s := newSuite(t, "konnectivity agent")
	k := &konnectivitySuite{suite: s, whole: t}
	run := func(name string, vital bool, fn func(*testing.T)) {
		if !t.Run(name, fn) && vital {
			t.Fatalf("%s failed: the rest would have no meaning", name)
		}
	}
	run("ControlPlanes", true, k.controlPlanes)
	run("ByToken", true, k.byToken)
	run("TokensThatDoNotDo", false, k.tokensThatDoNotDo)
	run("ByCertificate", false, k.byCertificate)
	run("OtherTenant", false, k.otherTenant)
	run("Drains", false, k.drains)
	run("TenantRemoved", false, k.tenantRemoved)
}

type konnectivitySuite struct {
	*suite
	whole  *testing.T // what lasts longer than a case ends with it
	ca     string
	agents int
	byPod  *harness.KonnectivityAgent // edge-1 of acme
}

const konnectivityAccount = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: kube-system}\n"

// boundPod is a pod on a node that nobody runs: it is what a token is bound to, and whose logs are asked for.
const boundPod = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: kube-system}
spec:
  nodeName: %s
  serviceAccountName: konnectivity-agent
  tolerations: [{operator: Exists}]
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: none.test/none}]
`

func (k *konnectivitySuite) controlPlanes(t *testing.T) {
	var err error
	k.platform, err = k.env.StartPlatform(k.ctx)
	must(t, err)
	k.platform.Konnectivity = true
	must(t, k.platform.StartBroker(k.ctx))
	for i, name := range []string{"acme", "globex"} {
		tenant, err := k.platform.NewTenant(k.ctx, name)
		must(t, err)
		must(t, tenant.Admit(k.ctx))
		must(t, tenant.Start(k.ctx))
		must(t, tenant.Apply(k.ctx, fmt.Sprintf(konnectivityAccount, "konnectivity-agent")))
		must(t, tenant.Apply(k.ctx, fmt.Sprintf(konnectivityAccount, "other")))
		for n, node := range []string{"edge-1", "edge-2"} {
			address := fmt.Sprintf("127.0.%d.%d:10250", i+1, n+1)
			stop, err := tenant.StandInKubelet(k.ctx, node, address)
			must(t, err)
			k.whole.Cleanup(stop)
			must(t, tenant.MakeNode(k.ctx, node, address))
			must(t, tenant.Apply(k.ctx, fmt.Sprintf(boundPod, "agent-"+node, node)))
		}
		if name == "acme" {
			k.acme = tenant
		} else {
			k.globex = tenant
		}
	}
	k.ca = filepath.Join(k.acme.EgressDir(), "ca.crt") // the broker's CA, which is one for all
}

// start starts an agent that connects to a tenant's name with a token.
func (k *konnectivitySuite) start(t *testing.T, to, token string, flags ...string) *harness.KonnectivityAgent {
	t.Helper()
	k.agents++
	path := filepath.Join(k.env.Dir(), fmt.Sprintf("token-%d", k.agents))
	if token != "" {
		must(t, os.WriteFile(path, []byte(token), 0o600))
		flags = append(flags, "--service-account-token-path="+path)
	}
	a, err := k.platform.StartKonnectivityAgent(k.ctx, k.agents, to, k.ca, flags...)
	must(t, err)
	return a
}

// connected are the nodes that are here by an agent.
func (k *konnectivitySuite) connected(ctx context.Context) (names []string, err error) {
	out, err := k.platform.BrokerCommand(ctx, "node", "list", "-o", "json")
	if err != nil {
		return nil, err
	}
	var nodes []struct {
		Tenant, Name string
		Session      *struct{ Transport string }
	}
	if err := json.Unmarshal([]byte(out), &nodes); err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if n.Session != nil && n.Session.Transport == "konnectivity" {
			names = append(names, n.Tenant+"/"+n.Name)
		}
	}
	return names, nil
}

func (k *konnectivitySuite) await(t *testing.T, want string) {
	t.Helper()
	_, err := k.env.Wait(k.ctx, "the agents "+want, 30*time.Second, func(ctx context.Context) error {
		names, err := k.connected(ctx)
		if got := strings.Join(names, " "); err == nil && got != want {
			err = fmt.Errorf("connected are: %s", got)
		}
		return err
	})
	must(t, err)
}

// logs asks a node's kubelet by way of its API server.
func (k *konnectivitySuite) logs(tenant *harness.Tenant, node string) (string, error) {
	return tenant.Kubectl(k.ctx, "logs", "-n", "kube-system", "agent-"+node)
}

func (k *konnectivitySuite) wantLogs(t *testing.T, tenant *harness.Tenant, node string) {
	t.Helper()
	out, err := k.logs(tenant, node)
	want := fmt.Sprintf("%s/%s /containerLogs/kube-system/agent-%s/main\n", tenant.Name, node, node)
	if err != nil || out != want {
		t.Errorf("kubectl logs of %s/%s: %v, %q, want %q", tenant.Name, node, err, out, want)
	}
}

// byToken: an agent is the node that its token's pod is on, whatever it says of itself.
func (k *konnectivitySuite) byToken(t *testing.T) {
	if _, err := k.logs(k.acme, "edge-1"); err == nil || !strings.Contains(err.Error(), "no connected node") {
		t.Fatalf("kubectl logs without an agent: %v", err)
	}
	token, err := k.acme.BoundToken(k.ctx, "konnectivity-agent", "Pod", "agent-edge-1")
	must(t, err)
	k.byPod = k.start(t, "acme", token, "--agent-identifiers=host=edge-2&ipv4=127.0.1.2", "--agent-id=edge-2")
	k.await(t, "acme/edge-1")
	k.wantLogs(t, k.acme, "edge-1")
	if out, err := k.logs(k.acme, "edge-2"); err == nil {
		t.Errorf("edge-2 answers by an agent that only says that it is there: %q", out)
	}
	conn, answer, err := k.acme.Connect(k.ctx, "edge-1:22")
	if must(t, err); conn != nil || !strings.Contains(string(answer), "403") {
		t.Errorf("a port that is not the kubelet's: %s", answer)
	}
}

// tokensThatDoNotDo: each is a good token of the cluster, and none lets an agent in.
func (k *konnectivitySuite) tokensThatDoNotDo(t *testing.T) {
	for name, tc := range map[string]struct {
		account, kind, object, said string
	}{
		"no node":         {"konnectivity-agent", "", "", "names no node"},
		"another account": {"other", "Node", "edge-2", "want system:serviceaccount:kube-system:konnectivity-agent"},
	} {
		token, err := k.acme.BoundToken(k.ctx, tc.account, tc.kind, tc.object)
		must(t, err)
		k.refused(t, name, k.start(t, "acme", token), tc.said)
	}
	token, err := k.acme.Kubectl(k.ctx, "create", "token", "konnectivity-agent", "-n", "kube-system", "--bound-object-kind=Pod", "--bound-object-name=agent-edge-2")
	must(t, err)
	k.refused(t, "the API server's audience", k.start(t, "acme", strings.TrimSpace(token)), "does not accept the token")
	k.refused(t, "nothing", k.start(t, "acme", ""), "neither a client certificate")
}

// refused waits until the broker has turned an agent away for a reason, and ends the agent.
func (k *konnectivitySuite) refused(t *testing.T, what string, a *harness.KonnectivityAgent, why string) {
	t.Helper()
	_, err := k.env.Wait(k.ctx, "the refusal of "+what, 30*time.Second, func(context.Context) error {
		for line := range strings.Lines(k.platform.Broker.Said()) {
			if strings.Contains(line, "konnectivity agent refused") && strings.Contains(line, why) {
				return nil
			}
		}
		return fmt.Errorf("the agent says:\n%s", a.Said())
	})
	if err != nil {
		t.Error(err)
	}
	a.Kill()
	if names, err := k.connected(k.ctx); err != nil || strings.Join(names, " ") != "acme/edge-1" {
		t.Errorf("%s: connected are %v, %v", what, names, err)
	}
}

// byCertificate: the certificate that a node was enrolled with does for its konnectivity agent too.
func (k *konnectivitySuite) byCertificate(t *testing.T) {
	bundle, err := k.acme.Token(k.ctx)
	must(t, err)
	mooring, err := k.platform.NewLooseAgent(1, "tcp", bundle)
	must(t, err)
	must(t, mooring.Start(0))
	key, cert := filepath.Join(mooring.Dir, "state", "node.key"), filepath.Join(k.env.Dir(), "node.crt")
	_, err = k.env.Wait(k.ctx, "the node's certificate", 30*time.Second, func(context.Context) error {
		f, err := os.Open(filepath.Join(mooring.Dir, "state", "identity.json"))
		if err != nil {
			return err
		}
		defer f.Close()
		var id struct{ Certificate string }
		if err := json.NewDecoder(f).Decode(&id); err != nil {
			return err
		}
		return os.WriteFile(cert, []byte(id.Certificate), 0o600)
	})
	must(t, err)
	mooring.Proc.Stop() // of what it leaves, the key and certificate are used
	const node, address = "loose-1", "127.0.1.3:10250"
	stop, err := k.acme.StandInKubelet(k.ctx, node, address)
	must(t, err)
	k.whole.Cleanup(stop)
	must(t, k.acme.MakeNode(k.ctx, node, address))
	must(t, k.acme.Apply(k.ctx, fmt.Sprintf(boundPod, "agent-"+node, node)))
	k.refused(t, "another tenant's name", k.start(t, "globex", "", "--agent-cert="+cert, "--agent-key="+key), "of another tenant than the name")
	k.start(t, "acme", "", "--agent-cert="+cert, "--agent-key="+key)
	k.await(t, "acme/edge-1 acme/"+node)
	k.wantLogs(t, k.acme, node)
	_, err = k.platform.BrokerCommand(k.ctx, "node", "revoke", "acme/"+node, "--reason", "lost")
	must(t, err)
	k.await(t, "acme/edge-1")
	if out, err := k.logs(k.acme, node); err == nil {
		t.Errorf("a revoked node answers: %q", out)
	}
}

// otherTenant: a token of one tenant is nothing at another's name, and an agent is asked for by its own tenant alone.
func (k *konnectivitySuite) otherTenant(t *testing.T) {
	token, err := k.acme.BoundToken(k.ctx, "konnectivity-agent", "Pod", "agent-edge-2")
	must(t, err)
	k.refused(t, "a token at another tenant's name", k.start(t, "globex", token), "does not accept the token")
	// globex has an edge-1 too, and its API server asks for it, and for the address of acme's.
	for _, target := range []string{"edge-1:10250", "127.0.1.1:10250"} {
		conn, answer, err := k.globex.Connect(k.ctx, target)
		must(t, err)
		if conn != nil {
			conn.Close()
			t.Fatalf("globex reached %s by acme's agent", target)
		}
		_, never, err := k.globex.Connect(k.ctx, strings.Replace(strings.Replace(target, "edge-1", "edge-9", 1), "127.0.1.1", "127.0.1.9", 1))
		must(t, err)
		if dialID.ReplaceAllString(string(answer), "") != dialID.ReplaceAllString(strings.NewReplacer("edge-9", "edge-1", "127.0.1.9", "127.0.1.1").Replace(string(never)), "") {
			t.Errorf("what another tenant has is told apart from what nobody has:\n%s\n%s", answer, never)
		}
	}
	token, err = k.globex.BoundToken(k.ctx, "konnectivity-agent", "Pod", "agent-edge-1")
	must(t, err)
	a := k.start(t, "globex", token)
	k.await(t, "acme/edge-1 globex/edge-1")
	k.wantLogs(t, k.globex, "edge-1")
	k.wantLogs(t, k.acme, "edge-1")
	a.Kill()
	k.await(t, "acme/edge-1")
}

// drains: an agent that is told to end is asked for nothing more, what is open goes on, and another of the same node takes over.
func (k *konnectivitySuite) drains(t *testing.T) {
	follow := k.acme.KubectlCommand(k.ctx, "logs", "-n", "kube-system", "-f", "agent-edge-1")
	out, err := follow.StdoutPipe()
	must(t, err)
	must(t, follow.Start())
	defer func() { _ = follow.Process.Kill(); _ = follow.Wait() }()
	lines := bufio.NewScanner(out)
	next := func() {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("what was open ended: %v", lines.Err())
		}
	}
	next()

	k.byPod.Expect()
	must(t, syscall.Kill(k.byPod.PID, syscall.SIGTERM))
	_, err = k.env.Wait(k.ctx, "the agent's drain", 60*time.Second, func(context.Context) error {
		if !strings.Contains(k.platform.Broker.Said(), "konnectivity agent is about to end") {
			return errors.New("the broker has not heard of it")
		}
		return nil
	})
	must(t, err)
	// The API server has connections that it uses again, so it is the broker that is asked for one more.
	connect := func() error {
		conn, answer, err := k.acme.Connect(k.ctx, "edge-1:10250")
		if err == nil && conn == nil {
			err = errors.New(string(answer))
		}
		if conn != nil {
			conn.Close()
		}
		return err
	}
	if err := connect(); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "is about to end") {
		t.Errorf("a connection by an agent that drains: %v", err)
	}
	next()
	token, err := k.acme.BoundToken(k.ctx, "konnectivity-agent", "Node", "edge-1")
	must(t, err)
	k.start(t, "acme", token)
	_, err = k.env.Wait(k.ctx, "the other agent", 30*time.Second, func(context.Context) error { return connect() })
	must(t, err)
	next()
	next()
	k.byPod.Stop() // which is the second SIGTERM
	_, err = k.env.Wait(k.ctx, "kubectl logs by the other agent", 30*time.Second, func(context.Context) error {
		_, err := k.logs(k.acme, "edge-1")
		return err
	})
	must(t, err)
	k.wantLogs(t, k.acme, "edge-1")
}

// tenantRemoved: its agents are cut, and not let in again.
func (k *konnectivitySuite) tenantRemoved(t *testing.T) {
	_, err := k.platform.BrokerCommand(k.ctx, "tenant", "remove", "acme")
	must(t, err)
	k.await(t, "")
}
