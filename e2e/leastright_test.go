package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTenantAccess shows, with a real API server, that the broker can do no more at a tenant than it needs, and that
// neither it nor a stolen token nor a hostile node can be talked into another node's identity. One tenant's worth of
// attacks, one transport; the cases build on each other.
func TestTenantAccess(t *testing.T) {
	t.Parallel() // with those that mostly wait
	s := newSuite(t, "tenant access")
	s.transport = "quic"
	s.runCases(t, []testCase{
		{"ControlPlanesAndSites", true, (*suite).controlPlanesAndSites},
		{"NodesReadyWithin60s", true, (*suite).nodesReady},
		{"PodsRun", true, (*suite).podsRun},
		{"Fault24TokenReadByPodAfterJoin", false, (*suite).tokenReadByPod},
		{"Fault25TokenForAnotherNodeOrGroups", false, (*suite).tokenForAnother},
		{"Fault28CSRFloodByOneNode", false, (*suite).csrFlood},
		{"Fault29StatusAddressesSpoofed", false, (*suite).spoofedAddresses},
		{"LeastRight", false, (*suite).leastRight},
		{"AdministratorsKubeconfigNotKept", false, (*suite).adminNotKept},
		{"TenantUpdatedUnderLoad", false, (*suite).tenantUpdated},
	})
}

// thief is a pod that reads the machine's disk.
const thief = `apiVersion: v1
kind: Pod
metadata: {name: thief}
spec:
  nodeSelector: {kubernetes.io/hostname: %s}
  terminationGracePeriodSeconds: 1
  containers:
  - name: thief
    image: mooring.test/busybox:1
    imagePullPolicy: Never
    command: [sleep, "3600"]
    volumeMounts: [{name: etc, mountPath: /stolen, readOnly: true}]
  volumes: [{name: etc, hostPath: {path: /etc/mooring}}]
`

// tokenReadByPod: the enrolment token that is still on the machine lets no other key in, and no bootstrap token is
// left at the tenant once the kubelets are in.
func (s *suite) tokenReadByPod(t *testing.T) {
	n, other := s.nodes[0], s.nodes[1]
	must(t, n.tenant.Apply(s.ctx, fmt.Sprintf(thief, n.name)))
	s.waitPod(t, n, "thief")
	bundle, err := n.tenant.Kubectl(s.ctx, "exec", "thief", "--", "cat", "/stolen/join.yaml")
	must(t, err)
	if !strings.Contains(bundle, "token: ") {
		t.Fatalf("the pod read no token, so this shows nothing:\n%s", bundle)
	}
	must(t, other.box.Write("/run/stolen.yaml", bundle))
	must(t, other.box.Write("/run/again-agent.yaml", secondAgent))
	out, err := other.box.Run(s.ctx, "timeout", "20", "edge-agent", "join", "--config", "/run/again-agent.yaml", "--bundle", "/run/stolen.yaml")
	if err == nil || !strings.Contains(lastLine(out), "not accepted") {
		t.Errorf("the stolen token with another key: %v, want a refusal:\n%s", err, out)
	}
	_, err = other.box.Run(s.ctx, "rm", "-rf", "/run/again", "/run/again-kubelet")
	must(t, err)
	if uses := s.tokenUses(t, n.String()); uses != 1 {
		t.Errorf("the token has %d uses, want 1", uses)
	}
	for _, tenant := range []*node{s.nodes[0], s.nodes[2]} {
		left, err := tenant.tenant.Kubectl(s.ctx, "get", "secrets", "-n", "kube-system", "--field-selector", "type=bootstrap.kubernetes.io/token", "-o", "name")
		must(t, err)
		if left != "" {
			t.Errorf("bootstrap tokens are left at %s:\n%s", tenant.tenant.Name, left)
		}
	}
	_, err = n.tenant.Kubectl(s.ctx, "delete", "pod", "thief", "--wait=false")
	must(t, err)
}

// brokersData are the files of the broker's data directory.
func (s *suite) brokersData(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(filepath.Join(s.env.Dir(), "broker"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
			return nil
		}
		if err == nil {
			out[path], err = os.ReadFile(path)
		}
		return err
	})
	must(t, err)
	return out
}

var storedKubeconfig = regexp.MustCompile(`\{"name":"([a-z]+)","kubeconfig":"([A-Za-z0-9+/=]+)"`)

// storedKubeconfigs are all that the broker has ever stored of a tenant, with the token of the last.
func (s *suite) storedKubeconfigs(t *testing.T, tenant string) (all []string, token string) {
	t.Helper()
	for path, data := range s.brokersData(t) {
		for _, m := range storedKubeconfig.FindAllSubmatch(data, -1) {
			if string(m[1]) != tenant {
				continue
			}
			text, err := base64.StdEncoding.DecodeString(string(m[2]))
			must(t, err)
			all = append(all, string(text))
			if i := strings.Index(string(text), "token: "); i >= 0 && filepath.Ext(path) == ".wal" { // in the order of writing
				token = strings.Fields(string(text)[i:])[1]
			}
		}
	}
	if token == "" {
		t.Fatalf("no stored kubeconfig of %s was found", tenant)
	}
	return all, token
}

// right is a rule of RBAC, as a SelfSubjectRulesReview and `broker tenant show` tell it, in one line.
func right(group, resource string, names, verbs []string) string {
	slices.Sort(names)
	slices.Sort(verbs)
	return fmt.Sprintf("%s/%s %v %v", group, resource, names, verbs)
}

// rights are what an account may do in a namespace, by the API server's word.
func (s *suite) rights(t *testing.T, token, namespace string) []string {
	t.Helper()
	out, err := s.acme.KubectlAs(s.ctx, []string{"--token", token}, fmt.Appendf(nil,
		`{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectRulesReview","spec":{"namespace":%q}}`, namespace), "create", "--validate=false", "-f", "-", "-o", "json")
	must(t, err)
	var review struct {
		Status struct {
			Incomplete    bool
			ResourceRules []struct{ APIGroups, Resources, ResourceNames, Verbs []string }
		}
	}
	must(t, json.Unmarshal([]byte(out), &review))
	var all []string
	for _, r := range review.Status.ResourceRules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				all = append(all, right(group, resource, r.ResourceNames, r.Verbs))
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// leastRight: by the API server's own word, the account in the broker's store may do what `broker tenant show` says
// and nothing else; and what is not said is refused when tried.
func (s *suite) leastRight(t *testing.T) {
	_, token := s.storedKubeconfigs(t, "acme")
	anybody, err := s.acme.Kubectl(s.ctx, "create", "token", "default") // an account without any right of its own
	must(t, err)
	shown, err := s.platform.BrokerCommand(s.ctx, "tenant", "show", "acme", "-o", "json")
	must(t, err)
	var tenant struct {
		Access struct {
			Account  string
			Warnings []string
			Rights   []struct {
				Namespace, APIGroup, Resource string
				Names, Verbs                  []string
			}
		}
	}
	must(t, json.Unmarshal([]byte(shown), &tenant))
	if tenant.Access.Account != "system:serviceaccount:kube-system:mooring-broker" || len(tenant.Access.Warnings) > 0 {
		t.Errorf("account %q, warnings %q", tenant.Access.Account, tenant.Access.Warnings)
	}
	for _, namespace := range []string{"kube-system", "default", "kube-public"} {
		var want []string
		for _, r := range tenant.Access.Rights {
			if r.Namespace == "" || r.Namespace == namespace {
				want = append(want, right(r.APIGroup, r.Resource, r.Names, r.Verbs))
			}
		}
		slices.Sort(want)
		everybodys := s.rights(t, strings.TrimSpace(anybody), namespace)
		got := slices.DeleteFunc(s.rights(t, token, namespace), func(r string) bool { return slices.Contains(everybodys, r) })
		if !slices.Equal(got, want) {
			t.Errorf("in %s the broker may\n  %s\nwant\n  %s", namespace, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
		s.note("%s: %d rights", namespace, len(got))
	}
	s.refusals(t, []string{"--token", token})
}

// opaque and bootstrap are Secrets that the policy is tried with.
const (
	opaque    = `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"mooring-try","namespace":"kube-system"}}`
	bootstrap = `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"bootstrap-token-%s","namespace":"kube-system"},"type":"bootstrap.kubernetes.io/token",
		"stringData":{"token-id":"%[1]s","token-secret":"0123456789abcdef","usage-bootstrap-authentication":"true","auth-extra-groups":"%s"%s}}`
	ends   = `,"expiration":"2099-01-01T00:00:00Z"`
	groups = "system:bootstrappers:mooring,system:bootstrappers:mooring:0123456789abcdef0123456789abcdef"
)

func (s *suite) refusals(t *testing.T, broker []string) {
	const rbac, policy = "forbidden", "ValidatingAdmissionPolicy 'mooring-broker'"
	_, err := s.acme.KubectlWith(s.ctx, []byte(opaque), "create", "-f", "-")
	must(t, err)
	defer s.acme.Kubectl(s.ctx, "delete", "secret", "-n", "kube-system", "mooring-try")
	for _, c := range []struct {
		want  string // in the error; "" = allowed
		stdin string
		args  string
	}{
		{"", "", "get nodes"},
		{"", "", "get csr"},
		{"", "", "get configmap kubelet-config -n kube-system"},
		{"", fmt.Sprintf(bootstrap, "aaaaa1", groups, ends), "create --validate=false -f - --dry-run=server"},
		{rbac, "", "get secrets -n kube-system"},
		{rbac, "", "get secret mooring-try -n kube-system"},
		{rbac, "", "get secrets -A"},
		{rbac, "", "get pods -A"},
		{rbac, "", "get configmap extension-apiserver-authentication -n kube-system"},
		{rbac, strings.ReplaceAll(opaque, "kube-system", "default"), "create --validate=false -f - --dry-run=server"},
		{rbac, "", "run x --image=x --dry-run=server"},
		{rbac, "", "get pods --as=system:admin --as-group=system:masters"},
		{rbac, "", "delete node edge-1 --dry-run=server"},
		{rbac, "", "create clusterrolebinding x --clusterrole=cluster-admin --user=x --dry-run=server"},
		{rbac, "", "create token default -n kube-system"},
		{rbac, "", "delete validatingadmissionpolicy mooring-broker --dry-run=server"},
		{policy, strings.ReplaceAll(opaque, "mooring-try", "mooring-other"), "create --validate=false -f - --dry-run=server"},
		{policy, fmt.Sprintf(bootstrap, "aaaaa2", "system:bootstrappers:kubeadm:default-node-token", ends), "create --validate=false -f - --dry-run=server"},
		{policy, fmt.Sprintf(bootstrap, "aaaaa3", groups+",system:bootstrappers:x", ends), "create --validate=false -f - --dry-run=server"},
		{policy, fmt.Sprintf(bootstrap, "aaaaa4", groups, ""), "create --validate=false -f - --dry-run=server"},
		{policy, "", "delete secret mooring-try -n kube-system --dry-run=server"},
	} {
		out, err := s.acme.KubectlAs(s.ctx, broker, []byte(c.stdin), strings.Fields(c.args)...)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("the broker can't do its work: %v", err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("kubectl %s (%.120s) with the broker's token: %s, %v; want %q", c.args, c.stdin, out, err, c.want)
		}
	}
}

// adminNotKept: nothing of the administrator's key, by which the tenants were added, is in the broker's files, its log
// or its audit log.
func (s *suite) adminNotKept(t *testing.T) {
	conf, err := os.ReadFile(s.acme.Kubeconfig())
	must(t, err)
	m := regexp.MustCompile(`client-key-data: (\S+)`).FindSubmatch(conf)
	if m == nil {
		t.Fatal("the administrator has no key")
	}
	pem, err := base64.StdEncoding.DecodeString(string(m[1]))
	must(t, err)
	secrets := [][]byte{m[1], []byte(strings.Split(string(pem), "\n")[1])}
	data := s.brokersData(t)
	data["log"], err = os.ReadFile(s.platform.Broker.Log)
	must(t, err)
	for path, content := range data {
		for _, secret := range secrets {
			if bytes.Contains(content, secret) {
				t.Errorf("%s holds the administrator's key", path)
			}
		}
	}
	all, _ := s.storedKubeconfigs(t, "acme")
	for _, stored := range all {
		if strings.Contains(stored, "client-key") || strings.Contains(stored, "client-certificate") {
			t.Errorf("the store holds a kubeconfig with a key:\n%s", stored)
		}
	}
	s.note("%d files, %d stored kubeconfigs", len(data), len(all))
}

// tenantUpdated: a new access is made while the old one works, and nobody notices.
func (s *suite) tenantUpdated(t *testing.T) {
	n := s.nodes[0]
	var out lineWatch
	stop := background(t, n.tenant.KubectlCommand(s.ctx, "logs", "-f", n.pod()), &out)
	defer stop()
	s.wait(t, "the first line of logs -f", 15*time.Second, out.has("started on "+n.name))
	_, before := s.storedKubeconfigs(t, "acme")
	said, err := s.platform.BrokerCommand(s.ctx, "tenant", "update", "acme", "--kubeconfig", s.acme.Kubeconfig())
	must(t, err)
	if !strings.Contains(said, "tenant acme updated") {
		t.Errorf("said %q", said)
	}
	if _, after := s.storedKubeconfigs(t, "acme"); after == before {
		t.Error("the token is the same")
	}
	status, err := s.platform.BrokerCommand(s.ctx, "status")
	must(t, err)
	if !strings.Contains(status, "TenantAccess") {
		t.Errorf("status says nothing of the access:\n%s", status)
	}
	must(t, s.execWorks(n)(s.ctx))
	stdin := n.tenant.KubectlCommand(s.ctx, "attach", "-i", n.pod())
	stdin.Stdin = strings.NewReader("after the update\n")
	_ = stdin.Run()
	s.wait(t, "a line of logs -f after the update", 15*time.Second, out.has(n.site()+" heard after the update"))
}
