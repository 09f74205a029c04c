package faults

import (
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/wan"
	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// TestFault09CaptivePortal: the router takes all TCP for itself and drops UDP, until somebody has agreed to its terms. It
// learns nothing of the agent's, not its certificate nor a hello; the agent says what is wrong; and is back by itself.
//
// Mechanism: the broker's chain is verified before a byte of the agent's own is sent (seen failing with a Verify that takes
// anybody: the rogue gets a certificate, and a hello), and explainHandshake (seen failing without it: "first record does not
// look like a TLS handshake", "EOF").
func TestFault09CaptivePortal(t *testing.T) {
	t.Parallel()
	w := network(t, relay.Settings{})
	brk, err := w.Broker(wan.BrokerConfig{})
	must(t, err)
	portal, err := w.Portal()
	must(t, err)
	quick := wan.AgentConfig{Transport: tunnel.TransportTCP, Timing: wan.Timing{HandshakeTimeout: 3 * time.Second}}
	for is, says := range map[string]string{
		"tls":    "captive portal, or a proxy that opens TLS",
		"rogue":  "captive portal, or a proxy that opens TLS",
		"http":   "captive portal whose page",
		"close":  "closed without an answer",
		"silent": "no answer within 3s",
	} {
		do(t, portal, 5*time.Second, "be %s", is)
		agent, err := w.Agent(w.Site, quick)
		must(t, err)
		down := await(t, agent, 20*time.Second, "down")
		t.Logf("%s: %s", is, down.Err)
		if !strings.Contains(down.Err, says) || down.Values["hellos"] != 0 {
			t.Errorf("%s: %s; want an error that says %q, and no hello", is, down, says)
		}
		must(t, agent.Close())
		_, err = portal.Await(10*time.Second, "the agent to have called", func(e wan.Event) bool { return e.Name == "caller" && e.Text == is })
		must(t, err)
	}
	for _, e := range portal.Events() {
		if e.Name == "caller" && (e.Values["certificates"] != 0 || e.Bytes != 0) {
			t.Errorf("the portal was told something: %s", e)
		}
	}

	agent, err := w.Agent(w.Site, wan.AgentConfig{})
	must(t, err)
	down := await(t, agent, 20*time.Second, "down")
	if !strings.Contains(down.Err, "no answer by UDP") {
		t.Errorf("with transport auto: %s", down)
	}
	must(t, w.OpenPortal())
	up := await(t, agent, 20*time.Second, "up")
	await(t, brk, 5*time.Second, "session")
	t.Logf("over %s once the portal is open", up.Transport)
}
