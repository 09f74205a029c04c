package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

// TestKamaji shows, beside the real Kamaji v1.0.0 with its webhooks, what a label does to a TenantControlPlane, and that it
// is undone. What Kamaji makes of it is looked at in its Deployment; there is no node to run that, so the control plane's API server
// runs as a process, with the certificates that Kamaji made and at its Service's name. The broker has the rights of
// docs/kamaji.md and no others. The last cases have the CRDs of Kamaji 26.8 in their place. The cases build on each other.
func TestKamaji(t *testing.T) {
	t.Parallel() // with those that mostly wait
	s := &kamajiSuite{suite: newSuite(t, "kamaji")}
	s.runCases(t, []testCase{
		{"Management", true, s.start},
		{"KamajiMakesControlPlane", true, s.made},
		{"LabelWaitsForAPIServer", true, s.waits},
		{"Connected", true, s.connected},
		{"TenLooksChangeNothing", false, s.converge},
		{"IdentityRotatedWithoutRollout", false, s.rotated},
		{"TenantNameTaken", false, s.nameTaken},
		{"KonnectivityRefusedUntouched", false, s.konnectivity},
		{"UsersFlagRefusedUntouched", false, s.usersFlag},
		{"OldKubernetesRefusedUntouched", false, s.oldKubernetes},
		{"KonnectivityAddedLater", false, s.konnectivityLater},
		{"LabelRemovedRestores", true, s.restored},
		{"DeletedWhileBrokerIsDown", false, s.deletedMeanwhile},
		{"SecretsMissing", false, s.secretsMissing},
		{"SchemaLacksField", false, s.schemaLacksField},
		{"SchemaOf268", false, s.schemaOf268},
	})
}

type kamajiSuite struct {
	*suite
	m *harness.Management

	before string // acme's spec before it was labelled
}

const tcpResource = "tenantcontrolplanes.kamaji.clastix.io"

// acmeManifest is a user's, with something of his own in most lists.
const acmeManifest = `apiVersion: kamaji.clastix.io/v1alpha1
kind: TenantControlPlane
metadata: {name: %s, namespace: tenants}
spec:
  dataStore: default
  controlPlane:
    deployment:
      replicas: 1
      extraArgs: {apiServer: [--v=1]}
      additionalVolumes: [{name: mine, emptyDir: {}}]
      additionalVolumeMounts: {apiServer: [{name: mine, mountPath: /mine}]}
    service: {serviceType: ClusterIP}
  kubernetes:
    version: %s
    kubelet: {cgroupfs: cgroupfs}
  networkProfile: {port: 6443%s}
  addons: {%s}
`

func manifest(name string) string {
	return fmt.Sprintf(acmeManifest, name, "v1.30.2", "", "coreDNS: {}")
}

func (s *kamajiSuite) start(_ *suite, t *testing.T) {
	var err error
	s.platform, err = s.env.StartPlatform(s.ctx)
	must(t, err)
	s.m, err = s.platform.NewManagement(s.ctx)
	must(t, err)
	must(t, s.m.StartKamaji(s.ctx))
	must(t, s.m.Apply(s.ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: mooring-system}\n---\n"+
		"apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: mooring-broker, namespace: mooring-system}\n"))
	must(t, s.m.Apply(s.ctx, documentedRights(t)))
	kubeconfig, err := s.m.AccountKubeconfig(s.ctx, "mooring-system", "mooring-broker")
	must(t, err)
	s.platform.HostsFile, err = s.m.HostsFile("acme.tenants.svc", "beta.tenants.svc")
	must(t, err)
	s.platform.BrokerExtra = fmt.Sprintf("kamaji: {enabled: true, image: registry.example/broker:v1, kubeconfig: %s, leaderElection: {namespace: mooring-system}}\n", kubeconfig)
	must(t, s.platform.StartBroker(s.ctx))
	s.wait(t, "the lead", 30*time.Second, func(ctx context.Context) error {
		out, err := s.m.Kubectl(ctx, "get", "lease", "-n", "mooring-system", "mooring-broker-kamaji", "-o", "jsonpath={.spec.holderIdentity}")
		if err == nil && out == "" {
			err = errors.New("nobody holds the Lease")
		}
		return err
	})
}

// documentedRights are the objects that docs/kamaji.md has users apply.
func documentedRights(t *testing.T) string {
	t.Helper()
	root, err := tools.Root()
	must(t, err)
	page, err := os.ReadFile(filepath.Join(root, "docs", "kamaji.md"))
	must(t, err)
	m := regexp.MustCompile("(?s)```yaml\n(apiVersion: rbac[^`]*)```").FindSubmatch(page)
	if m == nil {
		t.Fatal("docs/kamaji.md has no rights")
	}
	return string(m[1])
}

// get reads a part of an object as JSON.
func (s *kamajiSuite) get(t *testing.T, kind, name, path string) string {
	t.Helper()
	out, err := s.m.Kubectl(s.ctx, "get", kind, "-n", "tenants", name, "-o", "json", "--show-managed-fields")
	must(t, err)
	var v any
	must(t, json.Unmarshal([]byte(out), &v))
	for _, p := range strings.Split(path, ".") {
		if o, ok := v.(map[string]any); ok {
			v = o[p]
		} else {
			return "null"
		}
	}
	out2, err := json.MarshalIndent(v, "", " ")
	must(t, err)
	return string(out2)
}

func (s *kamajiSuite) label(t *testing.T, name, label string) {
	t.Helper()
	_, err := s.m.Kubectl(s.ctx, "label", tcpResource, "-n", "tenants", name, "mooring.dev/broker"+label)
	must(t, err)
}

// patch changes an object as a user.
func (s *kamajiSuite) patch(t *testing.T, name, merge string) {
	t.Helper()
	_, err := s.m.Kubectl(s.ctx, "patch", tcpResource, "-n", "tenants", name, "--type=merge", "-p", merge)
	must(t, err)
}

// awaitReason waits for the object's status, and wants an Event that says the same.
func (s *kamajiSuite) awaitReason(t *testing.T, name, state, reason string) string {
	t.Helper()
	var message string
	s.wait(t, name+" to be "+reason, 90*time.Second, func(ctx context.Context) error {
		out, err := s.m.Kubectl(ctx, "get", tcpResource, "-n", "tenants", name, "-o", `jsonpath={.metadata.annotations.mooring\.dev/status}`)
		if err != nil {
			return err
		}
		var status struct{ State, Reason, Message string }
		if err := json.Unmarshal([]byte(out), &status); err != nil || status.State != state || status.Reason != reason {
			return fmt.Errorf("it says %q", out)
		}
		message = status.Message
		return nil
	})
	s.wait(t, "an Event of "+reason, 15*time.Second, func(ctx context.Context) error {
		out, err := s.m.Kubectl(ctx, "get", "events.v1.events.k8s.io", "-n", "tenants", "-o", `jsonpath={range .items[*]}{.regarding.name} {.reason} {.note}{"\n"}{end}`)
		if err == nil && !strings.Contains(out, name+" "+reason+" "+message) {
			err = fmt.Errorf("the events are\n%s", out)
		}
		return err
	})
	return message
}

// made: Kamaji makes a control plane that is none of ours, and nothing of it is touched.
func (s *kamajiSuite) made(_ *suite, t *testing.T) {
	must(t, s.m.Apply(s.ctx, manifest("acme")))
	took := s.wait(t, "acme's Deployment", 90*time.Second, func(ctx context.Context) error {
		_, err := s.m.Kubectl(ctx, "get", "deployment", "-n", "tenants", "acme")
		return err
	})
	s.before = s.get(t, tcpResource, "acme", "spec")
	if s.get(t, tcpResource, "acme", "metadata.annotations.mooring") != "null" {
		t.Error("it was touched")
	}
	s.note("Kamaji made it in %.0f s", took.Seconds())
}

// waits: as long as the API server does not answer, the object is told so, and not changed.
func (s *kamajiSuite) waits(_ *suite, t *testing.T) {
	s.label(t, "acme", "=enabled")
	s.awaitReason(t, "acme", "Waiting", "APIServerUnreachable")
	if got := s.get(t, tcpResource, "acme", "spec"); got != s.before {
		t.Errorf("the spec was touched: %s", got)
	}
}

// clusterAdmins is what Kamaji does at an API server that it sees running: the group of admin.svc gets its rights.
const clusterAdmins = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kubeadm:cluster-admins}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "kubeadm:cluster-admins"}]
`

// connected: with its API server there, the object gets all that is promised and nothing else, and Kamaji takes it over.
func (s *kamajiSuite) connected(_ *suite, t *testing.T) {
	admin, err := s.m.HostAPIServer(s.ctx, "tenants", "acme")
	must(t, err)
	_, err = s.m.HostedKubectl(s.ctx, admin, []byte(clusterAdmins), "apply", "-f", "-")
	must(t, err)
	s.awaitReason(t, "acme", "Ready", "Connected")
	got, want := parse(t, s.get(t, tcpResource, "acme", "spec")), parse(t, s.before)
	expect(want)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the spec is\n%s\nwant\n%s", pretty(got), pretty(want))
	}
	s.awaitSidecar(t, "acme", true)
	secret, err := s.m.Secret(s.ctx, "tenants", "acme-mooring")
	must(t, err)
	if keys := slices.Sorted(mapKeys(secret)); !slices.Equal(keys, []string{"broker", "ca.crt", "client.crt", "client.key"}) {
		t.Errorf("the Secret has %q", keys)
	}
	if got := string(secret["broker"]); got != harness.BrokerName+":"+harness.BrokerPort+"\n" {
		t.Errorf("broker is %q", got)
	}
	out, err := s.platform.BrokerCommand(s.ctx, "tenant", "show", "acme", "-o", "json")
	must(t, err)
	for _, want := range []string{"acme.tenants.svc:6443", "TenantControlPlane tenants/acme", "system:serviceaccount:kube-system:mooring-broker"} {
		if !strings.Contains(out, want) {
			t.Errorf("tenant show says nothing of %s:\n%s", want, out)
		}
	}
}

func mapKeys(m map[string][]byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// expect puts into a spec what docs/kamaji.md promises, written out here by hand.
func expect(spec map[string]any) {
	type o = map[string]any
	d := spec["controlPlane"].(o)["deployment"].(o)
	d["extraArgs"] = o{"apiServer": []any{"--v=1",
		"--egress-selector-config-file=/etc/mooring/egress-selector.yaml", "--kubelet-certificate-authority=/etc/kubernetes/pki/ca.crt"}}
	d["additionalVolumes"] = []any{o{"name": "mine", "emptyDir": o{}},
		o{"name": "mooring-identity", "secret": o{"secretName": "acme-mooring"}},
		o{"name": "mooring-config", "configMap": o{"name": "acme-mooring"}},
		o{"name": "mooring-socket", "emptyDir": o{}}}
	d["additionalVolumeMounts"] = o{"apiServer": []any{o{"name": "mine", "mountPath": "/mine"},
		o{"name": "mooring-config", "mountPath": "/etc/mooring", "readOnly": true}, o{"name": "mooring-socket", "mountPath": "/run/mooring"}}}
	d["additionalContainers"] = []any{o{
		"name": "mooring-egress", "image": "registry.example/broker:v1", "imagePullPolicy": "IfNotPresent",
		"args":            []any{"egress-proxy", "--dir", "/etc/mooring/identity", "--socket", "/run/mooring/egress.sock"},
		"resources":       o{"requests": o{"cpu": "10m", "memory": "32Mi"}},
		"securityContext": o{"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": o{"drop": []any{"ALL"}}},
		"volumeMounts": []any{o{"name": "mooring-identity", "mountPath": "/etc/mooring/identity", "readOnly": true},
			o{"name": "mooring-socket", "mountPath": "/run/mooring"}},
	}}
	meta, _ := d["podAdditionalMetadata"].(o)
	if meta == nil {
		meta = o{}
	}
	meta["annotations"] = o{"mooring.dev/egress-config": "HASH"}
	d["podAdditionalMetadata"] = meta
	spec["kubernetes"].(o)["kubelet"].(o)["preferredAddressTypes"] = []any{"Hostname", "InternalIP"}
	spec["networkProfile"].(o)["certSANs"] = []any{"acme." + harness.BrokerName} // front.domain
}

var configHash = regexp.MustCompile(`("mooring.dev/egress-config": )"[0-9a-f]{16}"`)

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	must(t, json.Unmarshal(configHash.ReplaceAll([]byte(text), []byte(`$1"HASH"`)), &v))
	return v
}

func pretty(v any) string {
	out, _ := json.MarshalIndent(v, "", " ")
	return string(out)
}

// awaitSidecar waits until Kamaji's Deployment has our part, all of it, or nothing of it.
func (s *kamajiSuite) awaitSidecar(t *testing.T, name string, there bool) {
	t.Helper()
	s.wait(t, "Kamaji to take it over", 60*time.Second, func(ctx context.Context) error {
		out, err := s.m.Kubectl(ctx, "get", "deployment", "-n", "tenants", name, "-o", "jsonpath={.spec.template}")
		if err != nil {
			return err
		}
		for _, part := range []string{`"name":"mooring-egress"`, "--egress-selector-config-file=/etc/mooring/egress-selector.yaml",
			"--kubelet-certificate-authority=/etc/kubernetes/pki/ca.crt", "--kubelet-preferred-address-types=Hostname,InternalIP",
			`"mountPath":"/run/mooring"`, `"mooring.dev/egress-config"`, `"secretName":"` + name + `-mooring"`} {
			if has := strings.Contains(out, part); has != there && (there || !strings.Contains(part, "preferred")) {
				return fmt.Errorf("the pods' template has %s: %v, want %v", part, has, there)
			}
		}
		return nil
	})
}

// metric reads one of the broker's.
func (s *kamajiSuite) metric(ctx context.Context, name string) (int, error) {
	all, err := s.platform.BrokerMetrics(ctx)
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(all)
	if m == nil {
		return 0, fmt.Errorf("no metric %s", name)
	}
	f, err := strconv.ParseFloat(m[1], 64)
	return int(f), err
}

// generations are those of the control plane and its Deployment: they rise with each change of what is wanted.
func (s *kamajiSuite) generations(t *testing.T, name string) string {
	t.Helper()
	return s.get(t, tcpResource, name, "metadata.generation") + " " + s.get(t, "deployment", name, "metadata.generation")
}

// poke has both controllers look at an object, by an annotation that means nothing, and returns when both have. kamaji says
// whether Kamaji runs.
func (s *kamajiSuite) poke(t *testing.T, name string, n int, kamaji bool) {
	t.Helper()
	looks, err := s.metric(s.ctx, "mooring_kamaji_looks_total")
	must(t, err)
	theirs := 0
	if kamaji {
		theirs, err = s.m.Reconciled(name)
		must(t, err)
	}
	_, err = s.m.Kubectl(s.ctx, "annotate", "--overwrite", tcpResource, "-n", "tenants", name, fmt.Sprintf("e2e/poke=%d", n))
	must(t, err)
	s.wait(t, "both controllers to look", 30*time.Second, func(ctx context.Context) error {
		now, err := s.metric(ctx, "mooring_kamaji_looks_total")
		if err != nil || now == looks {
			return fmt.Errorf("the broker has looked %d times (%w)", now, err)
		}
		if !kamaji {
			return nil
		}
		if now, err := s.m.Reconciled(name); err != nil || now == theirs {
			return fmt.Errorf("Kamaji has been through %d times (%w)", now, err)
		}
		return nil
	})
}

// converge: ten looks of both at the object change neither it nor the Deployment, and we write nothing. (Seen failing with a record
// that holds the time.)
func (s *kamajiSuite) converge(_ *suite, t *testing.T) {
	s.poke(t, "acme", 0, true) // what Kamaji has still to do
	before := s.generations(t, "acme")
	writes, err := s.metric(s.ctx, "mooring_kamaji_writes_total")
	must(t, err)
	for i := range 10 {
		s.poke(t, "acme", i+1, true)
	}
	if after := s.generations(t, "acme"); after != before {
		t.Errorf("the generations of object and Deployment are %s, were %s", after, before)
	}
	if now, err := s.metric(s.ctx, "mooring_kamaji_writes_total"); err != nil || now != writes {
		t.Errorf("%d writes, were %d (%v)", now, writes, err)
	}
	s.note("generations %s", before)
}

// rotated: with the CA rotated, the API server's identity is another, no pod is rolled, and the old CA can be retired: nobody
// had to be asked for a certificate. (Seen failing with the CA in the hash on the pods.)
func (s *kamajiSuite) rotated(_ *suite, t *testing.T) {
	before := s.generations(t, "acme")
	old, err := s.m.Secret(s.ctx, "tenants", "acme-mooring")
	must(t, err)
	_, err = s.platform.BrokerCommand(s.ctx, "ca", "rotate")
	must(t, err)
	took := s.wait(t, "another identity", 30*time.Second, func(ctx context.Context) error {
		now, err := s.m.Secret(ctx, "tenants", "acme-mooring")
		if err == nil && string(now["client.crt"]) == string(old["client.crt"]) {
			err = errors.New("it is the old one")
		}
		return err
	})
	_, err = s.platform.BrokerCommand(s.ctx, "ca", "retire")
	must(t, err)
	s.poke(t, "acme", 20, true)
	if after := s.generations(t, "acme"); after != before {
		t.Errorf("the generations of object and Deployment are %s, were %s", after, before)
	}
	s.note("after %.1f s", took.Seconds())
}
