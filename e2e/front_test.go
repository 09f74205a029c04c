package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mooring-edge/mooring/e2e/harness"
)

// kubectlThroughTheFront: by its name at the broker's port each tenant's API server is reached, and shows its own certificate; kubectl does
// there what it does elsewhere.
func (s *suite) kubectlThroughTheFront(t *testing.T) {
	for _, tenant := range []*harness.Tenant{s.acme, s.globex} {
		cert, err := tenant.FrontCertificate(s.ctx)
		must(t, err)
		if !slices.Contains(cert.DNSNames, tenant.FrontName()) {
			t.Errorf("%s shows a certificate for %v", tenant.FrontName(), cert.DNSNames)
		}
		var want []string
		for _, n := range s.nodes {
			if n.tenant == tenant {
				want = append(want, "node/"+n.name)
			}
		}
		out, err := tenant.KubectlThroughFront(s.ctx, tenant.FrontName(), "get", "nodes", "-o", "name")
		must(t, err)
		if got := strings.Fields(out); !slices.Equal(got, want) {
			t.Errorf("nodes of %s: %q, want %q", tenant.Name, got, want)
		}
		shown, err := s.platform.BrokerCommand(s.ctx, "tenant", "show", tenant.Name)
		must(t, err)
		if url := "https://" + tenant.FrontName() + ":" + harness.BrokerPort; !strings.Contains(shown, url) {
			t.Errorf("`broker tenant show` does not name %s:\n%s", url, shown)
		}
	}
	for _, n := range s.nodes {
		out, err := n.tenant.KubectlThroughFront(s.ctx, n.tenant.FrontName(), "logs", n.pod())
		must(t, err)
		if want := fmt.Sprintf("started on %s at %s\n", n.name, n.site()); !strings.HasPrefix(out, want) {
			t.Errorf("logs of %s: %q, want %q first", n, out, want)
		}
		out, err = n.tenant.KubectlThroughFront(s.ctx, n.tenant.FrontName(), "exec", n.pod(), "--", "sh", "-c", "echo through the front")
		must(t, err)
		if out != "through the front\n" {
			t.Errorf("exec at %s: %q", n, out)
		}
	}
	// By another tenant's name one comes to that tenant's API server, whose certificate is of another CA.
	if out, err := s.acme.KubectlThroughFront(s.ctx, s.globex.FrontName(), "get", "nodes"); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("acme's kubectl at globex's name: %q, %v; want globex's certificate refused", out, err)
	}
}
