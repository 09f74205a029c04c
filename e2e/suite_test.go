// Package e2e shows on real control planes and real kubelets what the product promises: nodes behind
// NAT join, everything that kubectl does reaches the right one, nothing else leaves a site, and killing
// any part costs seconds.
//
// Each transport gets the whole of it, from an empty machine. See README.md for how to run and read it.
package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
	"github.com/mooring-edge/mooring/e2e/internal/begin"
)

func TestTunnelQUIC(t *testing.T) { runSuite(t, "quic") }

func TestTunnelTCP(t *testing.T) { runSuite(t, "tcp") }

// node is one edge node of the suite.
type node struct {
	tenant *harness.Tenant
	box    *harness.Box
	name   string // the node's, in its tenant
}

// String tells it from the others: two tenants have an edge-1.
func (n *node) String() string { return n.tenant.Name + "/" + n.name }

// pod is the node's test pod.
func (n *node) pod() string { return "probe-" + n.name }

type suite struct {
	ctx       context.Context
	name      string // heads its table
	transport string
	// egressMode is how the API servers reach the broker; empty = by themselves, over mTLS.
	egressMode string
	env        *harness.Env
	platform   *harness.Platform

	acme, globex *harness.Tenant
	nodes        []*node // acme/edge-1, acme/edge-2, globex/edge-1

	appCA string // of the pod that serves, in PEM and base64

	start time.Time
	rows  []row
}

// row is a line of the table at the end.
type row struct {
	name, result string
	took         time.Duration
	notes        []string
}

// acmeOnlyAddress is a second address of acme/edge-2, which no other node has.
const acmeOnlyAddress = "192.168.77.2"

func runSuite(t *testing.T, transport string) {
	s := newSuite(t, transport)
	s.transport = transport
	s.runCases(t, cases)
}

// newSuite takes a run, which ends with the test; name heads its table.
func newSuite(t *testing.T, name string) *suite {
	s := &suite{name: name, start: time.Now()}
	s.ctx, s.env = begin.Suite(t, harness.Missing(), s.logf, s.printTable)
	return s
}

// runCases runs cases in their order.
func (s *suite) runCases(t *testing.T, cases []testCase) {
	for _, c := range cases {
		if !s.run(t, c) && c.vital {
			t.Fatalf("%s failed: the rest would have no meaning", c.name)
		}
		if s.ctx.Err() != nil {
			t.Fatal(context.Cause(s.ctx))
		}
	}
}

// testCase is one line of the promise. Later cases rely on vital ones.
type testCase struct {
	name  string
	vital bool
	run   func(*suite, *testing.T)
}

// cases in their order: each finds the world as those before it left it.
var cases = []testCase{
	{"ControlPlanesAndSites", true, (*suite).controlPlanesAndSites},
	{"WrongCAHashRefusedBeforeToken", false, (*suite).wrongCAHash},
	{"NodesReadyWithin60s", true, (*suite).nodesReady},
	{"UsedTokenRefused", false, (*suite).usedToken},
	{"AgentSizeAndIdleMemory", false, (*suite).footprint},
	{"PodsRun", true, (*suite).podsRun},
	{"Logs", false, (*suite).logs},
	{"LogsFollow", false, (*suite).logsFollow},
	{"Exec200MBEachWay", false, (*suite).execBulk},
	{"Cp", false, (*suite).cp},
	{"Attach", false, (*suite).attach},
	{"PortForward", false, (*suite).portForward},
	{"KubectlThroughTheFront", false, (*suite).kubectlThroughTheFront},
	{"NodeProxyMetrics", false, (*suite).metrics},
	{"KubeletCertificatesVerified", false, (*suite).kubeletCertificates},
	{"WrongKubeletCARefused", false, (*suite).wrongKubeletCA},
	{"OtherTenantsNodesNotFound", false, (*suite).otherTenant},
	{"DialIDInBothLogs", false, (*suite).dialIDInBothLogs},
	{"BrokerKilled", false, (*suite).brokerKilled},
	{"BrokerRestarted", false, (*suite).brokerRestarted},
	{"AgentKilled", false, (*suite).agentKilled},
	{"AgentRestarted", false, (*suite).agentRestarted},
	{"NodeRebooted", false, (*suite).nodeRebooted},
	{"NothingElseLeftTheSites", false, (*suite).nothingElseLeft},
}

func (s *suite) run(t *testing.T, c testCase) bool {
	s.logf("=== %s", c.name)
	s.rows = append(s.rows, row{name: c.name})
	start := time.Now()
	ok := t.Run(c.name, func(t *testing.T) { c.run(s, t) })
	r := &s.rows[len(s.rows)-1]
	r.took, r.result = time.Since(start), "ok"
	if !ok {
		r.result = "FAILED"
	}
	return ok
}

// note adds a measured figure to the current case's line of the table.
func (s *suite) note(format string, args ...any) {
	r := &s.rows[len(s.rows)-1]
	text := fmt.Sprintf(format, args...)
	r.notes = append(r.notes, text)
	s.logf("    %s", text)
}

func (s *suite) logf(format string, args ...any) {
	fmt.Printf("[%s %6.1f] %s\n", s.name, time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}

func (s *suite) printTable() {
	fmt.Printf("\n%s\n", s.name)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, r := range s.rows {
		fmt.Fprintf(w, "  %s\t%s\t%6.1f s\t%s\n", r.name, r.result, r.took.Seconds(), strings.Join(r.notes, "; "))
	}
	_ = w.Flush()
	fmt.Printf("  in all %s\n\n", time.Since(s.start).Round(time.Second))
}

// wait is Env.Wait that ends the case when it fails.
func (s *suite) wait(t *testing.T, what string, limit time.Duration, ready func(context.Context) error) time.Duration {
	t.Helper()
	took, err := s.env.Wait(s.ctx, what, limit, ready)
	if err != nil {
		t.Fatal(err)
	}
	return took
}

// exec runs a shell line in the node's pod.
func (s *suite) exec(ctx context.Context, n *node, line string) (string, error) {
	return n.tenant.Kubectl(ctx, "exec", n.pod(), "--", "sh", "-c", line)
}

// must ends the case on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
