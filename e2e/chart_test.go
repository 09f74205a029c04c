package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

// TestHelmChart shows that a real API server takes what the Helm chart gives for each of its values files, that the broker
// takes the configuration in it, that nonsense is refused in words, and that its pod runs on a real kubelet from the image
// that `make images` makes: under the restricted Pod Security Standard, on a volume, and again after its pod was deleted.
func TestHelmChart(t *testing.T) {
	t.Parallel() // with those that mostly wait
	s := &chartSuite{suite: newSuite(t, "helm chart")}
	s.transport = "quic"
	s.runCases(t, []testCase{
		{"ControlPlane", true, s.controlPlane},
		{"NonsenseRefused", false, s.nonsense},
		{"BrokerTakesConfiguration", false, s.configuration},
		{"APIServerTakesObjects", true, s.dryRun},
		{"KamajisRights", false, s.rights},
		{"PodRuns", true, s.podRuns},
		{"PodComesBack", false, s.podComesBack},
		{"TwoOnEtcd", false, s.onEtcd},
	})
}

type chartSuite struct {
	*suite
	chart *harness.Chart
	edge  *node
}

// controlPlane is one tenant with one node, which joins while the first cases run: the chart does not mind that the
// node it runs on is an edge node itself.
func (s *chartSuite) controlPlane(_ *suite, t *testing.T) {
	var err error
	s.platform, err = s.env.StartPlatform(s.ctx)
	must(t, err)
	must(t, s.platform.StartBroker(s.ctx))
	s.acme, err = s.platform.NewTenant(s.ctx, "acme")
	must(t, err)
	must(t, s.acme.Admit(s.ctx))
	must(t, s.acme.Start(s.ctx))
	must(t, s.acme.SetKubeletConfig(s.ctx))
	site, err := s.platform.AddSite("site-1")
	must(t, err)
	box, err := site.NewBox("edge-1")
	must(t, err)
	s.edge = &node{tenant: s.acme, box: box, name: "edge-1"}
	must(t, box.ConfigureAgent(s.transport))
	must(t, box.PowerOn(s.ctx))
	bundle, err := s.acme.Token(s.ctx)
	must(t, err)
	must(t, box.Hand(bundle))
	must(t, box.StartAgent())
	s.chart, err = s.env.NewChart(s.ctx)
	must(t, err)
}

// nonsense: what can't work is refused before there is an object, and the message says what to do. (All of them
// were seen rendered with broker.check empty and without the schema.)
func (s *chartSuite) nonsense(_ *suite, t *testing.T) {
	for _, c := range []struct {
		set, want string
	}{
		{"config.front.publicEndpoint=", "config.front.publicEndpoint is required"},
		{"replicas=3", "set etcd.endpoints to an external etcd, or replicas to 1"},
		{"replicas=0", "minimum"},
		{"replica=3", "additional properties 'replica' not allowed"},
		{"ports.front=443", "minimum"},
		{"ports.egress=8443", "each has to be another one"},
		{"etcd.endpoints={https://a:2379}", "etcd.secretName is required with https endpoints"},
		{"etcd.endpoints={a:2379}", "does not match pattern"},
		{"etcd.endpoints={http://a:2379},persistence.existingClaim=old", "persistence.existingClaim is the embedded store's"},
		{"drain.spreadSeconds=5", "on the embedded store there is none"},
		{"etcd.endpoints={http://a:2379},drain.spreadSeconds=60", "drain.graceSeconds (60) must be more than drain.spreadSeconds (60)"},
		{"config.dataDir=/data", "config.dataDir is set by the chart; its value for that is persistence"},
		{"config.front.listen=:443", "its value for that is ports.front"},
		{"config.egress.listen=:443", "its value for that is ports.egress"},
		{"config.drain.grace=1h", "config.drain is set by the chart"},
		{"config.kamaji.enabled=true", "its value for that is kamaji.enabled"},
		{"kamaji.enabled=true,serviceAccount.create=false", "kamaji.enabled gives rights to a ServiceAccount"},
		{"frontService.type=ClusterIP,frontService.nodePort=30000", "not ClusterIP"},
		{"image.digest=latest", "does not match pattern"},
	} {
		_, err := s.chart.Render(s.ctx, "-f", s.chart.Value("embedded"), "--set", c.set)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("--set %s: %v, want %q", c.set, err, c.want)
		}
	}
}

// eachValues renders the chart for each of its values files.
func (s *chartSuite) eachValues(t *testing.T, do func(t *testing.T, rendered string)) {
	files, err := s.chart.Values()
	must(t, err)
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), "-values.yaml"), func(t *testing.T) {
			rendered, err := s.chart.Render(s.ctx, "-f", f)
			must(t, err)
			do(t, rendered)
		})
	}
}

// configuration: the broker that is built from this tree takes what is in the ConfigMap, strictly as ever. (Seen failing
// with a key in templates/_helpers.tpl that it does not know.)
func (s *chartSuite) configuration(_ *suite, t *testing.T) {
	s.eachValues(t, func(t *testing.T, rendered string) {
		config, err := s.acme.KubectlWith(s.ctx, []byte(document(t, rendered, "templates/config.yaml")), "create", "--dry-run=client", "-o", `jsonpath={.data.broker\.yaml}`, "-f", "-")
		must(t, err)
		path := filepath.Join(t.TempDir(), "broker.yaml")
		must(t, os.WriteFile(path, []byte(config), 0o600))
		if out, err := s.platform.BrokerOffline(s.ctx, "config", "validate", path); err != nil {
			t.Errorf("%v\n%s%s", err, out, config)
		}
	})
}

// document is the one object that a template gave.
func document(t *testing.T, rendered, template string) string {
	t.Helper()
	for _, d := range strings.Split(rendered, "\n---\n") {
		if strings.Contains(d, "# Source: mooring-broker/"+template) {
			return d
		}
	}
	t.Fatalf("nothing of %s was rendered", template)
	return ""
}

// chartWorld is what the chart's objects need to be there: namespaces, and the Prometheus operator's kind, of whose schema
// the real one has far more.
const chartWorld = `apiVersion: v1
kind: Namespace
metadata:
  name: mooring
  labels: {pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/warn: restricted}
---
apiVersion: v1
kind: Namespace
metadata: {name: tenants}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  names: {kind: ServiceMonitor, listKind: ServiceMonitorList, plural: servicemonitors, singular: servicemonitor}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [endpoints, selector]
            properties:
              selector: {type: object, properties: {matchLabels: {type: object, additionalProperties: {type: string}}}}
              endpoints:
                type: array
                items:
                  type: object
                  properties: {port: {type: string}, path: {type: string}, interval: {type: string, pattern: "^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$"}}
`

// dryRun: the API server's own validation, with its strict fields, defaults and admission, takes each object; and warns of
// nothing, so the pods keep to the restricted Pod Security Standard. (Seen failing with a misspelt field in
// templates/services.yaml, and with runAsNonRoot taken out of the values.)
func (s *chartSuite) dryRun(_ *suite, t *testing.T) {
	must(t, s.acme.Apply(s.ctx, chartWorld))
	must(t, s.acme.Established(s.ctx, "servicemonitors.monitoring.coreos.com"))
	s.eachValues(t, func(t *testing.T, rendered string) {
		cmd := s.acme.KubectlCommand(s.ctx, "apply", "--server-side", "--dry-run=server", "-f", "-")
		cmd.Stdin = strings.NewReader(rendered)
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), "Warning") {
			t.Fatalf("%v\n%s", err, out)
		}
		if want, got := strings.Count(rendered, "\nkind: "), strings.Count(string(out), "(server dry run)"); got != want {
			t.Errorf("%d objects were taken, want %d:\n%s", got, want, out)
		}
	})
}

// rights: what kamaji.enabled gives is what the controller needs, where it needs it, and no more. (Seen failing with
// list among the verbs for Secrets.)
func (s *chartSuite) rights(_ *suite, t *testing.T) {
	rendered, err := s.chart.Render(s.ctx, "-f", s.chart.Value("kamaji"), "--show-only", "templates/access.yaml")
	must(t, err)
	must(t, s.acme.Apply(s.ctx, rendered))
	for _, c := range []struct {
		verb, group, resource, name, namespace string
		want                                   bool
	}{
		{"update", "kamaji.clastix.io", "tenantcontrolplanes", "", "tenants", true},
		{"watch", "kamaji.clastix.io", "tenantcontrolplanes", "", "tenants", true},
		{"delete", "kamaji.clastix.io", "tenantcontrolplanes", "", "tenants", false},
		{"watch", "kamaji.clastix.io", "tenantcontrolplanes", "", "default", false},
		{"get", "", "secrets", "", "tenants", true},
		{"create", "", "secrets", "", "tenants", true},
		{"list", "", "secrets", "", "tenants", false},
		{"get", "", "secrets", "", "mooring", false},
		{"delete", "", "configmaps", "", "tenants", true},
		{"create", "events.k8s.io", "events", "", "tenants", true},
		{"create", "coordination.k8s.io", "leases", "", "mooring", true},
		{"update", "coordination.k8s.io", "leases", "mooring-broker-kamaji", "mooring", true},
		{"update", "coordination.k8s.io", "leases", "other", "mooring", false},
		{"create", "", "pods", "", "mooring", false},
	} {
		out, err := s.acme.KubectlWith(s.ctx, fmt.Appendf(nil, `apiVersion: authorization.k8s.io/v1
kind: SubjectAccessReview
spec:
  user: system:serviceaccount:mooring:mooring-broker
  resourceAttributes: {verb: %s, group: %q, resource: %s, name: %q, namespace: %s}
`, c.verb, c.group, c.resource, c.name, c.namespace), "create", "-f", "-", "-o", "jsonpath={.status.allowed}")
		must(t, err)
		if got := out == "true"; got != c.want {
			t.Errorf("the broker's account: %s %s %s in %s: %v, want %v", c.verb, c.resource, c.name, c.namespace, got, c.want)
		}
	}
}

// volume is a disk of the node. A kubelet sets the pod's group on it, as it does on a claim's volume anywhere.
const volume = `apiVersion: v1
kind: PersistentVolume
metadata: {name: broker}
spec:
  capacity: {storage: 2Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: disk
  local: {path: /var/lib/disk}
  nodeAffinity:
    required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [edge-1]}]}]}
`

// podRuns: the chart's pod, from the image, becomes ready on a real kubelet in a namespace that enforces the restricted
// standard, with all four Services leading to it, and takes a command by kubectl exec.
func (s *chartSuite) podRuns(_ *suite, t *testing.T) {
	s.wait(t, "edge-1 to be Ready", time.Minute, func(ctx context.Context) error { return s.acme.NodeReady(ctx, "edge-1") })
	must(t, s.chart.ImportImage(s.ctx, s.edge.box))
	_, err := s.edge.box.Run(s.ctx, "mkdir", "-p", "/var/lib/disk")
	must(t, err)
	must(t, s.acme.Apply(s.ctx, volume))
	repository, tag, _ := strings.Cut(s.chart.Image, ":")
	rendered, err := s.chart.Render(s.ctx, "-f", s.chart.Value("embedded"), "--set", "persistence.storageClass=disk,image.pullPolicy=Never",
		"--set", "image.repository="+repository, "--set", "image.tag="+tag)
	must(t, err)
	_, err = s.acme.KubectlWith(s.ctx, []byte(rendered), "apply", "--server-side", "-f", "-")
	must(t, err)
	s.note("ready %.1f s after apply", s.chartReady(t).Seconds())
	for service, want := range map[string]string{
		"mooring-broker": "8443/TCP 8443/UDP", "mooring-broker-egress": "8132/TCP", "mooring-broker-metrics": "9641/TCP", "mooring-broker-peers": "8134/TCP",
	} {
		s.wait(t, "Service "+service+" to lead to the pod", 30*time.Second, func(ctx context.Context) error {
			out, err := s.acme.Kubectl(ctx, "get", "endpointslices", "-n", "mooring", "-l", "kubernetes.io/service-name="+service,
				"-o", `jsonpath={range .items[*].ports[*]}{.port}/{.protocol} {end}{.items[*].endpoints[*].conditions.ready}`)
			if err == nil && !sameWords(out, want+" true") {
				err = fmt.Errorf("its endpoints are %q, want %s", out, want)
			}
			return err
		})
	}
}

func sameWords(a, b string) bool {
	count := map[string]int{}
	for _, w := range strings.Fields(a) {
		count[w]++
	}
	for _, w := range strings.Fields(b) {
		count[w]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// chartReady waits until the pod is ready by its own probe.
func (s *chartSuite) chartReady(t *testing.T) time.Duration {
	t.Helper()
	return s.wait(t, "the chart's pod to be ready", 2*time.Minute, func(ctx context.Context) error {
		out, err := s.acme.Kubectl(ctx, "get", "pods", "-n", "mooring", "-o",
			`jsonpath={range .items[*]}{.metadata.deletionTimestamp}{.status.conditions[?(@.type=="Ready")].status} {.status.containerStatuses[*].state} {.status.conditions[?(@.type=="PodScheduled")].message}{end}`)
		if err == nil && !strings.HasPrefix(out, "True ") {
			err = errors.New("pods: " + out)
		}
		return err
	})
}

// inBroker runs a subcommand in the chart's pod.
func (s *chartSuite) inBroker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.acme.Kubectl(s.ctx, append([]string{"exec", "-n", "mooring", "statefulset/mooring-broker", "--", "broker"}, args...)...)
	must(t, err)
	return out
}

// podComesBack: the pod ends by itself well within its grace period when it is deleted, and the next one has the same CA,
// from the volume. (Seen failing with persistence.enabled=false: another CA.)
func (s *chartSuite) podComesBack(_ *suite, t *testing.T) {
	before := s.inBroker(t, "ca", "status", "-o", "json")
	if !strings.Contains(before, "sha256:") {
		t.Fatalf("no CA in %s", before)
	}
	start := time.Now()
	_, err := s.acme.Kubectl(s.ctx, "delete", "pod", "-n", "mooring", "mooring-broker-0", "--wait=true")
	must(t, err)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("the pod took %s to end, its grace period is 25 s", took.Round(time.Second))
	} else {
		s.note("ended in %.1f s", took.Seconds())
	}
	s.note("another ready %.1f s later", s.chartReady(t).Seconds())
	if after := s.inBroker(t, "ca", "status", "-o", "json"); after != before {
		t.Errorf("its CA is another one:\n%s\nbefore:\n%s", after, before)
	}
	mode, err := s.edge.box.Run(s.ctx, "stat", "-c", "%a %u", "/var/lib/disk/data")
	must(t, err)
	if got := strings.TrimSpace(mode); got != "700 65532" && got != "2700 65532" {
		t.Errorf("the store's directory, which holds the CA's key, has mode and owner %s", got)
	}
}
