package e2e

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

// TestSidecar shows that a real API server works through its sidecar (`broker egress-proxy`) in both protocols that the egress
// selector speaks over a unix socket: all that kubectl does, first by konnectivity's gRPC, then by HTTP CONNECT, on one and the same
// platform; without a sidecar TestTunnelQUIC and TestTunnelTCP do the same over mTLS.
func TestSidecar(t *testing.T) {
	s := newSuite(t, "sidecar")
	s.transport, s.egressMode = "quic", harness.ModeSidecarGRPC
	s.runCases(t, slices.Concat([]testCase{
		{"ControlPlanesAndSites", true, (*suite).controlPlanesAndSites},
		{"NodesReadyWithin60s", true, (*suite).nodesReady},
		{"PodsRun", true, (*suite).podsRun},
	}, throughSidecar("GRPC", "grpc"), []testCase{
		{"SwitchToHTTPConnect", true, (*suite).switchToHTTPConnect},
	}, throughSidecar("HTTPConnect", "http-connect"), []testCase{
		{"TenantRemovedCutsItsSidecar", false, (*suite).sidecarCut},
	}))
}

// throughSidecar is what is shown of each protocol.
func throughSidecar(name, protocol string) []testCase {
	cases := []testCase{
		{"Logs", true, (*suite).logs},
		{"LogsFollow", false, (*suite).logsFollow},
		{"Exec200MBEachWay", false, (*suite).execBulkOne},
		{"Cp", false, (*suite).cp},
		{"Attach", false, (*suite).attach},
		{"PortForward", false, (*suite).portForward},
		{"NodeProxyMetrics", false, (*suite).metrics},
		{"KubeletCertificatesVerified", false, (*suite).kubeletCertificates},
		{"WrongKubeletCARefused", false, (*suite).wrongKubeletCA},
		{"OtherTenantsNodesNotFound", false, (*suite).otherTenant},
		{"DialIDInBothLogs", false, (*suite).dialIDInBothLogs},
		{"IdentityRotated", false, (*suite).identityRotated},
		{"SidecarKilled", false, (*suite).sidecarKilled},
		{"BrokerKilled", false, (*suite).brokerKilled},
		{"ItWasTheSidecar", false, func(s *suite, t *testing.T) { s.wasTheSidecar(t, protocol) }},
	}
	for i := range cases {
		cases[i].name = name + cases[i].name
	}
	return cases
}

// wasTheSidecar: the API servers' dials went by the protocol that is meant, and none of them to the broker's egress port.
func (s *suite) wasTheSidecar(t *testing.T, protocol string) {
	for _, tenant := range []*harness.Tenant{s.acme, s.globex} {
		log, err := tenant.SidecarLog()
		must(t, err)
		n := strings.Count(log, `msg="dial accepted"`)
		by := 0
		for line := range strings.Lines(log) {
			if strings.Contains(line, `msg="dial accepted"`) && strings.Contains(line, "protocol="+protocol) {
				by++
			}
		}
		if by < 5 {
			t.Errorf("%s: %d of %d dials by %s", tenant.Name, by, n, protocol)
		}
		s.note("%s %d dials by %s", tenant.Name, by, protocol)
	}
	out, err := s.platform.BrokerCommand(s.ctx, "status", "-o", "json")
	must(t, err)
	if !strings.Contains(out, `"sidecars": 2`) {
		t.Errorf("the broker does not know of two sidecars: %s", out)
	}
}

// identityRotated: a certificate that is put in place of the one in use is taken without a restart of API server or sidecar,
// and what runs goes on.
func (s *suite) identityRotated(t *testing.T) {
	n := s.nodes[0]
	server, sidecar := n.tenant.APIServer().PID, n.tenant.Sidecar.PID
	before, err := n.tenant.SidecarLog()
	must(t, err)
	var out lineWatch
	cmd := n.tenant.KubectlCommand(s.ctx, "exec", "-i", n.pod(), "--", "sh", "-c", `echo begun; read word; echo "heard $word"`)
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stop := background(t, cmd, &out)
	defer stop()
	s.wait(t, "a command to run", 15*time.Second, out.has("begun"))
	start := time.Now()
	must(t, n.tenant.IssueEgress(s.ctx))
	s.wait(t, "the session to be replaced", 20*time.Second, func(context.Context) error {
		now, err := n.tenant.SidecarLog()
		if err == nil && !strings.Contains(now[len(before):], "moving to another session") {
			err = fmt.Errorf("the sidecar says nothing of it")
		}
		return err
	})
	s.note("taken after %.1f s", time.Since(start).Seconds())
	s.wait(t, "exec on "+n.String(), time.Second, s.execWorks(n))
	now, err := n.tenant.SidecarLog()
	must(t, err)
	if strings.Contains(now[len(before):], "the tunnel is down") {
		t.Errorf("the tunnel went down for it:\n%s", now[len(before):])
	}
	_, err = io.WriteString(stdin, "it goes on\n")
	must(t, err)
	s.wait(t, "the command that ran all the time to answer", 15*time.Second, out.has("heard it goes on"))
	if s, c := n.tenant.APIServer().PID, n.tenant.Sidecar.PID; s != server || c != sidecar {
		t.Errorf("API server %d, sidecar %d; before: %d, %d", s, c, server, sidecar)
	}
}

// sidecarKilled: kill -9 costs what runs, and no more: the API server goes on, and finds the next sidecar at the same socket.
func (s *suite) sidecarKilled(t *testing.T) {
	for _, tenant := range []*harness.Tenant{s.acme, s.globex} {
		server := tenant.APIServer().PID
		tenant.Sidecar.Kill()
		n := s.nodes[0]
		if tenant != n.tenant {
			n = s.nodes[2]
		}
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
		if out, err := s.exec(ctx, n, "cat /site"); err == nil {
			t.Errorf("exec on %s works without a sidecar: %q", n, out)
		}
		cancel()
		must(t, tenant.StartSidecar(s.ctx))
		start := time.Now()
		s.wait(t, "exec on "+n.String(), 15*time.Second, s.execWorks(n))
		s.note("%s back after %.1f s", n, time.Since(start).Seconds())
		if now := tenant.APIServer().PID; now != server {
			t.Errorf("the API server was restarted: %d, before %d", now, server)
		}
	}
}

// switchToHTTPConnect has the API servers start again with the other protocol; their sidecars run on.
func (s *suite) switchToHTTPConnect(t *testing.T) {
	for _, tenant := range []*harness.Tenant{s.acme, s.globex} {
		tenant.EgressMode = harness.ModeSidecarHTTP
		must(t, tenant.IssueEgress(s.ctx))
		must(t, tenant.RestartAPIServer(s.ctx))
	}
	for _, n := range s.nodes {
		s.wait(t, "exec on "+n.String(), time.Minute, s.execWorks(n))
	}
}

// sidecarCut: with a tenant's removal its sidecar has no session any more, and says why; another's goes on.
func (s *suite) sidecarCut(t *testing.T) {
	_, err := s.platform.BrokerCommand(s.ctx, "tenant", "remove", "globex")
	must(t, err)
	s.wait(t, "globex's sidecar to be cut", 10*time.Second, func(context.Context) error {
		log, err := s.globex.SidecarLog()
		if err == nil && !strings.Contains(log, "does not speak for a tenant's API server") {
			err = fmt.Errorf("it says nothing of it")
		}
		return err
	})
	must(t, s.execWorks(s.nodes[0])(s.ctx))
}
