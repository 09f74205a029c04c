package broker

import (
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/tracing/tracingtest"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// scrape is /metrics as Prometheus asks for it, exemplars included.
func (r *running) scrape(t *testing.T) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.cfg.HealthAddress+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", resp.Status, err)
	}
	return string(all)
}

// One dial is the same in the spans, in the log and in the metrics; a tenant that is removed leaves none of the last.
func TestDialIsFoundInSpansLogAndMetrics(t *testing.T) {
	collector := tracingtest.Start(t)
	r := startBroker(t, t.TempDir(), func(c *config.Broker) {
		c.HealthAddress = freeAddr(t)
		c.Tracing.Endpoint = "http://" + collector.Addr()
	})
	r.logs.await(t, "spans of egress dials go to the collector")
	r.addTenant(t, "acme")
	r.addTenant(t, "globex")
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	if _, err := b.connect(t, tunnel.TransportQUIC, r.cfg.Front.Listen); err != nil {
		t.Fatal(err)
	}
	r.logs.await(t, `msg="node connected" tenant=acme`)
	if status, said := r.dialNode(t, "acme", "edge-1:10250"); said == "" {
		t.Fatal(status)
	}
	r.dialNode(t, "globex", "edge-1:10250")

	open := collector.Await(t, "the tunnel's", func(s *otlp.Span) bool { return s.Name == "tunnel open" })
	dial := collector.Await(t, "the dial's", func(s *otlp.Span) bool {
		return s.Name == "egress dial" && hex.EncodeToString(s.SpanId) == hex.EncodeToString(open.ParentSpanId)
	})
	if tracingtest.Attribute(dial, "mooring.node") != "edge-1" || tracingtest.Attribute(dial, "mooring.transport") != "quic" {
		t.Errorf("the dial's span: %v", dial)
	}
	id := hex.EncodeToString(dial.TraceId)
	r.logs.await(t, `msg="egress dial accepted" dial=`+id+` tenant=acme target=edge-1:10250 node=edge-1 transport=quic code=ok took=`)
	r.logs.await(t, `msg="egress connection ended" dial=`+id)
	seen := r.scrape(t)
	if !strings.Contains(seen, `mooring_egress_dial_seconds_count{outcome="ok",tenant="acme"} 1`) || !strings.Contains(seen, `# {trace_id="`+id+`"}`) ||
		!strings.Contains(seen, `{outcome="not found",tenant="globex"}`) {
		t.Errorf("the metrics do not tell of dial %s:\n%s", id, seen)
	}

	if err := r.client.RemoveTenant(context.Background(), "globex"); err != nil {
		t.Fatal(err)
	}
	// Once the log says so the others that follow the tenants are being told: the scrape is the only sign that all were.
	for deadline := time.Now().Add(10 * time.Second); strings.Contains(seen, `tenant="globex"`); seen = r.scrape(t) {
		if time.Now().After(deadline) {
			t.Fatalf("the metrics still tell of a tenant that was removed:\n%s", seen)
		}
	}
	if !strings.Contains(seen, `{outcome="ok",tenant="acme"}`) {
		t.Error("the metrics of the other tenant are gone as well")
	}
}

// With a collector that is away dials go on, and the broker's end waits for it no longer than a few seconds.
func TestCollectorAwayHarmsNobody(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r := startBroker(t, t.TempDir(), func(c *config.Broker) { c.Tracing.Endpoint = "http://" + silent.Addr().String() })
	r.addTenant(t, "acme")
	e := r.issueEgress(t, "acme")
	for range 20 {
		start := time.Now()
		if status, _ := dialWith(t, e, "edge-1:10250"); !strings.HasPrefix(status, "404 ") || time.Since(start) > 5*time.Second {
			t.Errorf("%s after %s", status, time.Since(start))
		}
	}
	start := time.Now()
	r.stop()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the broker took %s to stop", took)
	}
	if !strings.Contains(r.logs.String(), "spans are lost") {
		t.Error("the log says nothing of the spans that were lost")
	}
}
