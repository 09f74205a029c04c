package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mooring-edge/mooring/e2e/harness"
)

// onEtcd: two brokers of the chart share an external etcd, so they have one CA; and another configuration rolls them. (Seen
// failing with the annotation checksum/config left out: the old pods stay.)
func (s *chartSuite) onEtcd(_ *suite, t *testing.T) {
	must(t, s.edge.box.StartEtcd())
	must(t, s.acme.Apply(s.ctx, "{apiVersion: v1, kind: Namespace, metadata: {name: mooring-ha, labels: {pod-security.kubernetes.io/enforce: restricted}}}"))
	apply := func(more string) []string {
		repository, tag, _ := strings.Cut(s.chart.Image, ":")
		rendered, err := s.chart.Render(s.ctx, "-n", "mooring-ha", "-f", s.chart.Value("etcd"),
			"--set", fmt.Sprintf("replicas=2,etcd.endpoints={http://%s:2379},etcd.secretName=%s", harness.NodeAddress, more),
			"--set", "image.pullPolicy=Never,image.repository="+repository+",image.tag="+tag)
		must(t, err)
		_, err = s.acme.KubectlWith(s.ctx, []byte(rendered), "apply", "--server-side", "-f", "-")
		must(t, err)
		out, err := s.acme.Kubectl(s.ctx, "rollout", "status", "-n", "mooring-ha", "deployment/mooring-broker", "--timeout=120s")
		if err != nil {
			pods, _ := s.acme.Kubectl(s.ctx, "describe", "pods", "-n", "mooring-ha")
			t.Fatalf("%v %s\n%s", err, out, pods)
		}
		// One that is on its way out is none any more.
		out, err = s.acme.Kubectl(s.ctx, "get", "pods", "-n", "mooring-ha", "-o",
			`go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}`)
		must(t, err)
		return strings.Fields(out)
	}
	first := apply("")
	if len(first) != 2 {
		t.Fatalf("pods %q, want two", first)
	}
	var cas []string
	for _, pod := range first {
		out, err := s.acme.Kubectl(s.ctx, "exec", "-n", "mooring-ha", pod, "--", "broker", "ca", "status", "-o", "json")
		must(t, err)
		cas = append(cas, out)
	}
	if cas[0] != cas[1] || !strings.Contains(cas[0], "sha256:") {
		t.Errorf("the two have other CAs:\n%s\n%s", cas[0], cas[1])
	}
	second := apply(",config.log.level=debug")
	if len(second) != 2 || slices.Contains(second, first[0]) || slices.Contains(second, first[1]) {
		t.Errorf("pods %q after another configuration, before it %q: want two new ones", second, first)
	}
}
