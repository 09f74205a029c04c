package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// controlPlanesAndSites raises all but the agents: two tenants, three sites, three machines with the
// same address, of which two also have the same name.
func (s *suite) controlPlanesAndSites(t *testing.T) {
	var err error
	s.platform, err = s.env.StartPlatform(s.ctx)
	must(t, err)
	must(t, s.platform.StartBroker(s.ctx))
	for _, name := range []string{"acme", "globex"} {
		tenant, err := s.platform.NewTenant(s.ctx, name)
		must(t, err)
		tenant.EgressMode = s.egressMode
		must(t, tenant.Admit(s.ctx))
		must(t, tenant.Start(s.ctx))
		must(t, tenant.SetKubeletConfig(s.ctx))
		s.logf("control plane of %s is up", name)
		if name == "acme" {
			s.acme = tenant
		} else {
			s.globex = tenant
		}
	}
	for _, n := range []struct {
		site, name string
		tenant     *harness.Tenant
	}{
		{"acme-1", "edge-1", s.acme},
		{"acme-2", "edge-2", s.acme},
		{"globex-1", "edge-1", s.globex},
	} {
		site, err := s.platform.AddSite(n.site)
		must(t, err)
		box, err := site.NewBox(n.name)
		must(t, err)
		s.nodes = append(s.nodes, &node{tenant: n.tenant, box: box, name: n.name})
	}
	for _, n := range s.nodes {
		var addresses []string
		if n.box.Site.Name == "acme-2" {
			addresses = []string{harness.NodeAddress, acmeOnlyAddress}
			must(t, n.box.Site.LAN.IP("addr add "+acmeOnlyAddress+"/32 dev eth0"))
		}
		must(t, n.box.ConfigureAgent(s.transport, addresses...))
		must(t, n.box.PowerOn(s.ctx))
		s.logf("site %s: machine %s is on, nothing joined", n.box.Site.Name, n.name)
	}
}

var caHash = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// wrongCAHash: with a bundle whose pin does not fit the broker's CA the token is never sent, so that it
// is whole after it. The agent goes on trying: what answers may be a captive portal.
func (s *suite) wrongCAHash(t *testing.T) {
	n := s.nodes[0]
	bundle, err := n.tenant.Token(s.ctx, "--description", "wrong hash")
	must(t, err)
	wrong := caHash.ReplaceAllString(bundle, "sha256:"+strings.Repeat("0", 64))
	if wrong == bundle {
		t.Fatalf("the bundle has no CA hash:\n%s", bundle)
	}
	must(t, n.box.Write("/run/wrong.yaml", wrong))
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	out, err := n.box.Run(ctx, "edge-agent", "join", "--bundle", "/run/wrong.yaml")
	if err == nil {
		t.Fatalf("joined a broker whose CA it was told not to trust:\n%s", out)
	}
	if !strings.Contains(out, "pinned hash") {
		t.Errorf("the refusal does not name the hash:\n%s", out)
	}
	if uses := s.tokenUses(t, "wrong hash"); uses != 0 {
		t.Errorf("the token was used %d times; it must not have left the box", uses)
	}
}

// tokenUses asks the broker how many nodes have used the token of that description.
func (s *suite) tokenUses(t *testing.T, description string) int {
	t.Helper()
	out, err := s.platform.BrokerCommand(s.ctx, "token", "list", "-o", "json")
	must(t, err)
	var tokens []struct {
		Description string
		UsedBy      []string
	}
	must(t, json.Unmarshal([]byte(out), &tokens))
	for _, token := range tokens {
		if token.Description == description {
			return len(token.UsedBy)
		}
	}
	t.Fatalf("no token %q in %s", description, out)
	return 0
}

// nodesReady: every node is Ready within a minute of its agent's start, joined by a token of its own.
func (s *suite) nodesReady(t *testing.T) {
	for _, n := range s.nodes {
		bundle, err := n.tenant.Token(s.ctx, "--description", n.String())
		must(t, err)
		must(t, n.box.Hand(bundle))
	}
	var wg sync.WaitGroup
	took := make([]time.Duration, len(s.nodes))
	errs := make([]error, len(s.nodes))
	for i, n := range s.nodes {
		start := time.Now()
		must(t, n.box.StartAgent())
		wg.Go(func() {
			_, errs[i] = s.env.Wait(s.ctx, n.String()+" to be Ready", time.Minute, func(ctx context.Context) error {
				return n.tenant.NodeReady(ctx, n.name)
			})
			took[i] = time.Since(start)
		})
	}
	wg.Wait()
	for i, n := range s.nodes {
		if errs[i] != nil {
			t.Error(errs[i])
			continue
		}
		s.note("%s %.1f s", n, took[i].Seconds())
		if used := s.tokenUses(t, n.String()); used != 1 {
			t.Errorf("the token of %s was used %d times, want 1", n, used)
		}
	}
	for _, n := range s.nodes {
		s.wait(t, "the serving certificate of "+n.String(), 30*time.Second, func(ctx context.Context) error {
			return servingIssued(ctx, n)
		})
	}
}

// servingIssued returns nil if the node's kubelet has been given a serving certificate; nobody but the
// broker's approver is there to see to it.
func servingIssued(ctx context.Context, n *node) error {
	out, err := n.tenant.Kubectl(ctx, "get", "csr", "-o", `jsonpath={range .items[*]}{.spec.signerName} {.spec.username} `+
		`{.status.conditions[*].type} {.status.certificate}{"\n"}{end}`)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "kubernetes.io/kubelet-serving" && f[1] == "system:node:"+n.name && f[2] == "Approved" {
			return nil
		}
	}
	return fmt.Errorf("no request of it has been granted:\n%s", out)
}

// usedToken: a token that is used up, and a token of another tenant, are refused with the same answer,
// and the operator's log says which it was.
func (s *suite) usedToken(t *testing.T) {
	n := s.nodes[1]
	used, err := os.ReadFile(s.nodes[0].box.Path(harness.JoinPath))
	if os.IsNotExist(err) {
		t.Skip("the agent removed its bundle after use")
	}
	must(t, err)
	fresh, err := s.globex.Token(s.ctx, "--description", foreignToken)
	must(t, err)
	foreign := strings.Replace(fresh, "tenant: globex", "tenant: acme", 1)
	if foreign == fresh {
		t.Fatalf("the bundle names no tenant:\n%s", fresh)
	}
	answers := map[string]bool{}
	for what, bundle := range map[string]string{"used up": string(used), "other tenant": foreign} {
		must(t, n.box.Write("/run/again.yaml", bundle))
		must(t, n.box.Write("/run/again-agent.yaml", secondAgent))
		ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
		out, err := n.box.Run(ctx, "edge-agent", "join", "--config", "/run/again-agent.yaml", "--bundle", "/run/again.yaml")
		cancel()
		if err == nil {
			t.Errorf("a token (%s) let a second box in:\n%s", what, out)
		}
		if !strings.Contains(lastLine(out), "not accepted") {
			t.Errorf("a token (%s): want a refusal, got:\n%s", what, out)
		}
		answers[lastLine(out)] = true
		_, err = n.box.Run(s.ctx, "rm", "-rf", "/run/again", "/run/again-kubelet")
		must(t, err)
		log, err := os.ReadFile(s.platform.Broker.Log)
		must(t, err)
		if !strings.Contains(string(log), what) {
			t.Errorf("the operator's log does not say %q", what)
		}
	}
	if len(answers) != 1 {
		t.Errorf("the answers tell a used token from another tenant's: %q", slices.Collect(maps.Keys(answers)))
	}
	if uses := s.tokenUses(t, foreignToken); uses != 0 {
		t.Errorf("a request for another tenant consumed the token (%d uses)", uses)
	}
}

// foreignToken describes globex's token that is tried on acme.
const foreignToken = "tried on acme"

// secondAgent is the configuration of another agent on the same machine, as another box would be.
const secondAgent = `apiVersion: mooring.dev/v1alpha1
kind: AgentConfiguration
stateDir: /run/again
socket: /run/again.sock
apiAddress: 127.0.0.1:7443
healthAddress: ""
kubelet: {mode: none, rootDir: /run/again-kubelet}
`

// lastLine is the last line of what a command said: its error.
func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1]
}

const (
	maxBinary = 18_000_000
	maxRSS    = 30_000_000
)

// footprint: the agent as shipped is small, and stays so while it only keeps the tunnel.
func (s *suite) footprint(t *testing.T) {
	st, err := os.Stat(s.env.Product("edge-agent"))
	must(t, err)
	s.note("binary %.1f MB", float64(st.Size())/1e6)
	if st.Size() > maxBinary {
		t.Errorf("edge-agent is %d bytes, want at most %d", st.Size(), maxBinary)
	}
	// Idle: the join is over and nobody has asked for anything.
	samples := map[*node][]int64{}
	for range 10 {
		for _, n := range s.nodes {
			rss, err := host.RSS(n.box.Agent().PID)
			must(t, err)
			samples[n] = append(samples[n], rss)
		}
		select {
		case <-s.ctx.Done():
			t.Fatal(s.ctx.Err())
		case <-time.After(500 * time.Millisecond):
		}
	}
	for _, n := range s.nodes {
		highest := slices.Max(samples[n])
		s.note("%s idle %.1f MB RSS", n, float64(highest)/1e6)
		if highest > maxRSS {
			t.Errorf("the agent of %s idles at %d bytes RSS, want at most %d", n, highest, maxRSS)
		}
	}
}

// probe writes where it really runs: /etc/site is a file of the machine, nobody tells the API server.
const probe = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeSelector: {kubernetes.io/hostname: %[2]s}
  terminationGracePeriodSeconds: 1
  containers:
  - name: probe
    image: mooring.test/busybox:1
    imagePullPolicy: Never
    stdin: true
    command:
    - sh
    - -c
    - |
      mkdir -p /www /data; cp /site /www/index.html; httpd -p 8080 -h /www
      echo "started on $NODE_NAME at $(cat /site)"
      while read line; do echo "$(cat /site) heard $line"; done
    env:
    - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    readinessProbe: {exec: {command: [test, -f, /www/index.html]}, periodSeconds: 1}
    volumeMounts:
    - {name: site, mountPath: /site, readOnly: true}
  volumes:
  - {name: site, hostPath: {path: /etc/site, type: File}}
`

func (s *suite) podsRun(t *testing.T) {
	for _, n := range s.nodes {
		must(t, n.tenant.Apply(s.ctx, fmt.Sprintf(probe, n.pod(), n.name)))
	}
	for _, n := range s.nodes {
		s.wait(t, "the pod of "+n.String(), time.Minute, func(ctx context.Context) error {
			return n.tenant.PodRunning(ctx, n.pod())
		})
	}
}
