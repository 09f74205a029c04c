package faults

import (
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/wan"
	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// TestFault05NATIdleNS: a NAT that forgets a mapping after 30 s of silence; here all times are a fifth of that. Mechanism: the
// heartbeat's interval, 25 s, which is the agent's to keep: what it sends is what keeps its mapping. Seen failing with one
// of 60 s: what the broker sends after a silence of 37 s never arrives.
func TestFault05NATIdleNS(t *testing.T) {
	const (
		forgets   = "6"
		heartbeat = 5 * time.Second
		silence   = 7400 * time.Millisecond
	)
	eachTransport(t, func(t *testing.T, tr tunnel.Transport) {
		w := network(t, relay.Settings{})
		must(t, w.NAT())
		for _, key := range []string{"udp_timeout", "udp_timeout_stream", "tcp_timeout_established"} {
			must(t, w.Router.Sysctl("net/netfilter/nf_conntrack_"+key, forgets))
		}
		// A flow that it has not seen from its beginning is none: else the next segment of the agent's would make a mapping anew.
		must(t, w.Router.Sysctl("net/netfilter/nf_conntrack_tcp_loose", "0"))
		timing := wan.Timing{HeartbeatInterval: heartbeat, ProbeTimeout: time.Second, OpenTimeout: 3 * time.Second}
		brk, _ := pair(t, w, wan.BrokerConfig{Timing: timing}, wan.AgentConfig{Transport: tr, Timing: timing})
		for range 3 { // a heartbeat of 12 s would be in step with it once, by chance
			do(t, brk, 10*time.Second, "echo 1 100")
			time.Sleep(silence) // the fault
			do(t, brk, 10*time.Second, "echo 1 100")
		}
		for _, e := range brk.Events() {
			if e.Name == "gone" {
				t.Errorf("the session did not last: %s", e)
			}
		}
	})
}
