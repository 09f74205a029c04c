package broker

import (
	"context"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// withPeers lets the brokers of a pair know each other.
func withPeers(t *testing.T) func(*config.Broker) {
	return func(c *config.Broker) { c.Peer.Listen = freeAddr(t) }
}

// dialUntil dials until the status is as wanted; only a failure reaches its end.
func dialUntil(t *testing.T, e admin.EgressResponse, target, want string) {
	t.Helper()
	var status string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if status, _ = dialWith(t, e, target); strings.HasPrefix(status, want) {
			return
		}
	}
	t.Fatalf("dial of %s: %s; want %s", target, status, want)
}

// TestFault19RequestAtAnotherBroker: a node is connected to one broker, and its API server asks the other: it is reached
// there, by name and by its address, and both brokers' operators see it. Then the node's
// broker is drained: the node moves to the other one, a stream that was open by way of both goes on to its end, and the next
// dial finds the node where it is now. Mechanism: routes in the store, and the session between brokers (internal/peers).
// Seen failing without peer.listen (404), and, for the open stream, without drain's wait for what is handed on.
func TestFault19RequestAtAnotherBroker(t *testing.T) {
	pair := startPairWith(t, withPeers(t), func(c *config.Broker) {
		c.Drain.Spread.Duration, c.Drain.Grace.Duration = 200*time.Millisecond, 20*time.Second
	})
	pair[0].addTenant(t, "acme")
	pair[1].logs.await(t, `msg="tenant changed" tenant=acme`)
	egress := [2]admin.EgressResponse{pair[0].issueEgress(t, "acme"), pair[1].issueEgress(t, "acme")}
	b := newBox(t, pair[0].bundle(t, "acme", 1), "edge-1")

	// The node's client goes to the second broker, and once that drains, to the first.
	to := make(chan string, 1)
	to <- pair[1].cfg.Front.Listen
	endpoint := ""
	sessions := make(chan *tunnel.Session, 4)
	generation := uint64(0)
	client := tunnel.NewClient(tunnel.ClientConfig{
		Dialer: func() *tunnel.Dialer {
			select {
			case endpoint = <-to:
			default:
			}
			generation++
			g := generation
			return b.dialer(t, tunnel.TransportTCP, endpoint, func() wire.Hello {
				h := wire.Hello{Version: "test", Node: "edge-1", Instance: instance(int(g)), Generation: g, Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.10")}}
				if g > 1 {
					h.Ancestors = []string{instance(int(g - 1))}
				}
				return h
			})
		},
		OnUp: func(s *tunnel.Session) { sessions <- s },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	<-sessions
	pair[1].logs.await(t, `msg="node connected" tenant=acme node=edge-1`)

	dialUntil(t, egress[0], "edge-1:10250", "200")
	dialUntil(t, egress[0], "192.168.1.10:10250", "200")
	for i, r := range pair {
		nodes, err := r.client.Nodes(ctx, "acme")
		if err != nil || len(nodes) != 1 || !nodes[0].Connected || (nodes[0].Session != nil) != (i == 1) {
			t.Errorf("broker %d shows %+v, %v", i, nodes, err)
		}
	}

	open, status, err := connectBy(egress[0], "edge-1:"+echoPort)
	if err != nil || !strings.HasPrefix(status, "200") {
		t.Fatal(status, err)
	}
	defer open.Close()
	say := func(what string) {
		t.Helper()
		if _, err := io.WriteString(open, what); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(what))
		if _, err := io.ReadFull(open, got); err != nil || string(got) != what {
			t.Fatalf("%q came back, %v", got, err)
		}
	}
	say("before")
	to <- pair[0].cfg.Front.Listen
	stopped := make(chan struct{})
	go func() { pair[1].stop(); close(stopped) }()
	<-sessions
	pair[0].logs.await(t, `msg="node connected" tenant=acme node=edge-1`)
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // five times drain.spread
		say("while the node's first broker is on its way out")
	}
	dialUntil(t, egress[0], "edge-1:10250", "200")
	select {
	case <-stopped:
		t.Error("the broker stopped though something was open by way of it")
	default:
	}
	open.Close()
	<-stopped
	if status, said := dialWith(t, egress[0], "edge-1:10250"); !strings.HasPrefix(status, "200") {
		t.Errorf("after the stop: %s %s", status, said)
	}
}

// TestFault19OwnerGoneMidRequest: the broker that has the node goes away with a stream open by way of it: whoever has that open
// gets an error that is no clean end, a dial says that the node is not connected, and once the node comes to the other
// broker it is found there.
func TestFault19OwnerGoneMidRequest(t *testing.T) {
	pair := startPairWith(t, withPeers(t), func(c *config.Broker) { c.Drain.Grace.Duration = 0 })
	pair[0].addTenant(t, "acme")
	pair[1].logs.await(t, `msg="tenant changed" tenant=acme`)
	egress := pair[0].issueEgress(t, "acme")
	b := newBox(t, pair[0].bundle(t, "acme", 1), "edge-1")
	s := b.connectAs(t, pair[1], line{instance: instance(1), generation: 1})
	awaitAccepted(t, s)
	dialUntil(t, egress, "edge-1:10250", "200")
	open, status, err := connectBy(egress, "edge-1:"+echoPort)
	if err != nil || !strings.HasPrefix(status, "200") {
		t.Fatal(status, err)
	}
	defer open.Close()
	pair[1].stop()
	if n, err := open.Read(make([]byte, 1)); n > 0 || err == nil || err == io.EOF {
		t.Errorf("of a stream whose broker is gone: %d bytes, %v; want an error that is no clean end", n, err)
	}
	dialUntil(t, egress, "edge-1:10250", "404")
	s = b.connectAs(t, pair[0], line{instance: instance(2), ancestors: []string{instance(1)}, generation: 2})
	defer s.Close(wire.Shutdown, "the test is over")
	awaitAccepted(t, s)
	dialUntil(t, egress, "edge-1:10250", "200")
}

// TestHandedOverToAnotherBroker: a node moves to another broker while something is open by way of the first. Both brokers reach
// it where it is now, the first too, and the route stays with the second. Seen failing with the older session still the
// one that is asked (503), and with its route still claimed.
func TestHandedOverToAnotherBroker(t *testing.T) {
	pair := startPairWith(t, withPeers(t))
	pair[0].addTenant(t, "acme")
	pair[1].logs.await(t, `msg="tenant changed" tenant=acme`)
	egress := [2]admin.EgressResponse{pair[0].issueEgress(t, "acme"), pair[1].issueEgress(t, "acme")}
	b := newBox(t, pair[0].bundle(t, "acme", 1), "edge-1")
	hello := func(g int) wire.Hello {
		h := wire.Hello{Version: "test", Node: "edge-1", Instance: instance(g), Generation: uint64(g), Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.10")}}
		if g > 1 {
			h.Ancestors, h.Handover = []string{instance(g - 1)}, true
		}
		return h
	}
	first, err := b.connectWith(t, tunnel.TransportTCP, pair[1].cfg.Front.Listen, hello(1))
	if err != nil {
		t.Fatal(err)
	}
	awaitAccepted(t, first)
	dialUntil(t, egress[1], "edge-1:10250", "200")
	open, status, err := connectBy(egress[1], "edge-1:"+echoPort)
	if err != nil || !strings.HasPrefix(status, "200") {
		t.Fatal(status, err)
	}
	defer open.Close()
	second, err := b.connectWith(t, tunnel.TransportTCP, pair[0].cfg.Front.Listen, hello(2))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close(wire.Shutdown, "the test is over")
	awaitAccepted(t, second)
	dialUntil(t, egress[0], "edge-1:10250", "200")
	dialUntil(t, egress[1], "edge-1:10250", "200")
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) { // three times what a claim may stand
		for i, e := range egress {
			if status, _ := dialWith(t, e, "192.168.1.10:10250"); !strings.HasPrefix(status, "200") {
				t.Fatalf("asked of broker %d: %s", i, status)
			}
		}
	}
	if _, err := io.WriteString(open, "still there"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("still there"))
	if _, err := io.ReadFull(open, got); err != nil {
		t.Errorf("what was open by way of the first broker: %v", err)
	}
	if first.Err() != nil {
		t.Errorf("the older session: %v", first.Err())
	}
}

func TestAdvertisedAddress(t *testing.T) {
	for _, c := range []struct{ listen, said, want string }{
		{"10.0.0.1:8134", "", "10.0.0.1:8134"},
		{":8134", "10.0.0.1:8134", "10.0.0.1:8134"},
		{"[::]:8134", "[fd00::1]:8134", "[fd00::1]:8134"},
		{":8134", "[10.0.0.1]:8134", "10.0.0.1:8134"},
		{":8134", "", ""}, {"0.0.0.0:8134", "", ""}, {"[::]:8134", "", ""}, {"127.0.0.1:0", "", ""}, {":8134", "10.0.0.1", ""}, {":8134", ":8134", ""},
	} {
		got, err := advertised(c.listen, c.said)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("listen %q, said %q: %q, %v; want %q", c.listen, c.said, got, err, c.want)
		}
	}
	if v := os.Getenv(peerAdvertiseEnv); v != "" {
		t.Skip("the environment says " + v)
	}
}
