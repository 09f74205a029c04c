package switchboard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func cidrs(texts ...string) (out []netip.Prefix) {
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// refuses is a node that takes nothing.
func refuses(code wire.Code) tunnel.Handler {
	return func(_ context.Context, _ *tunnel.Session, r *tunnel.Request) { _ = r.Refuse(code, "not here") }
}

// attach connects a node, which answers with its name and what it was asked for, or by handler.
func attach(t *testing.T, b *Board, tenant, node string, handler tunnel.Handler, addrs ...string) *tunnel.Session {
	t.Helper()
	hello := wire.Hello{Version: "test", Node: node}
	for _, a := range addrs {
		hello.Addresses = append(hello.Addresses, netip.MustParseAddr(a))
	}
	if handler == nil {
		handler = func(_ context.Context, _ *tunnel.Session, r *tunnel.Request) {
			if s, err := r.Accept(); err == nil {
				_, _ = io.WriteString(s, node+" "+r.Target)
				_ = s.Close()
			}
		}
	}
	attached := make(chan struct{})
	s := connectWith(t, hello, handler, func(s *tunnel.Session) {
		b.Enter(s, tenant, node, func() (wire.Code, error) { return wire.OK, nil })
		close(attached)
	})
	<-attached
	return s
}

// ask dials, and returns who answered or the refusal's code and message.
func ask(t *testing.T, b *Board, tenant, addr string) (said string, code wire.Code) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := b.Dial(ctx, tenant, addr)
	if e, ok := errors.AsType[*tunnel.RefusedError](err); ok {
		return e.Message, e.Code
	}
	if err != nil {
		t.Fatalf("%s: %v", addr, err)
	}
	defer c.Close()
	all, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%s: %v", addr, err)
	}
	return string(all), wire.OK
}

// setNode changes one of acme's nodes.
func setNode(b *Board, name string, n Node) {
	all := map[string]Node{}
	if c := b.clusters["acme"]; c != nil {
		maps.Copy(all, c.nodes)
	}
	all[name] = n
	b.SetNodes("acme", all)
}

func wantAnswer(t *testing.T, b *Board, addr, node string) {
	t.Helper()
	if said, code := ask(t, b, "acme", addr); code != wire.OK || said != node+" "+addr {
		t.Errorf("%s: %s %q; want %s to answer", addr, code, said, node)
	}
}

func wantRefusal(t *testing.T, b *Board, addr string, want wire.Code, words ...string) {
	t.Helper()
	said, code := ask(t, b, "acme", addr)
	if code != want {
		t.Errorf("%s: %s %q; want %s", addr, code, said, want)
	}
	for _, w := range words {
		if !strings.Contains(said, w) {
			t.Errorf("%s: %q does not name %q", addr, said, w)
		}
	}
}

// The node that a pod's address leads to is the one that the API server says; nodes' own addresses stay theirs.
func TestPodAddresses(t *testing.T) {
	b := New(Config{})
	attach(t, b, "acme", "edge-1", nil, "192.168.1.10", "10.244.1.1")
	attach(t, b, "acme", "edge-2", nil, "192.168.1.11")
	b.SetNodes("acme", map[string]Node{
		"edge-1": {PodCIDRs: cidrs("10.244.1.0/24", "fd00:244:1::/64")}, "edge-2": {PodCIDRs: cidrs("10.244.2.0/24", "fd00:244:2::/64")},
		"edge-3": {PodCIDRs: cidrs("10.244.3.0/24")}, "edge-4": {},
	})
	wantAnswer(t, b, "10.244.1.7:8443", "edge-1")
	wantAnswer(t, b, "10.244.2.255:80", "edge-2")
	wantAnswer(t, b, "[fd00:244:1::7]:8443", "edge-1")
	wantAnswer(t, b, "[fd00:244:2:0:ffff::1]:1", "edge-2")
	wantAnswer(t, b, "192.168.1.11:10250", "edge-2")
	wantAnswer(t, b, "10.244.1.1:10250", "edge-1") // its address, in its own podCIDR

	// A node that is not connected, no node's range, and no range at all have the one answer that there is.
	for _, host := range []string{"10.244.3.7", "10.244.4.7", "10.245.1.7", "fd00:244:3::7", "fd00:244:1:1::7"} {
		want := fmt.Sprintf("no connected node has the name or address %q", host)
		if said, code := ask(t, b, "acme", net.JoinHostPort(host, "1")); code != wire.NotFound || said != want {
			t.Errorf("%s: %s %q; want %q", host, code, said, want)
		}
	}

	// Changes apply at once, and leave nothing behind.
	setNode(b, "edge-2", Node{PodCIDRs: cidrs("10.244.9.0/25")})
	wantAnswer(t, b, "10.244.9.7:80", "edge-2")
	wantRefusal(t, b, "10.244.9.200:80", wire.NotFound)
	wantRefusal(t, b, "10.244.2.7:80", wire.NotFound)
	setNode(b, "edge-2", Node{})
	wantRefusal(t, b, "10.244.9.7:80", wire.NotFound)
	b.SetNodes("acme", nil)
	wantRefusal(t, b, "10.244.1.7:80", wire.NotFound)
	if c := b.clusters["acme"]; len(c.pods.names) > 0 || len(c.pods.lengths) > 0 {
		t.Errorf("left behind: %v", c.pods)
	}
	b.ForgetCluster("acme")
	wantAnswer(t, b, "192.168.1.10:10250", "edge-1")
}

// Where the API server's word and a node's own, or two nodes' ranges, lead to different nodes, nobody is asked: a node
// that attests the address of another's pod would get what is meant for that. Seen failing with the case of the two in
// owner taken out: edge-2 was asked for edge-1's pod.
func TestFault29PodAddressesSpoofed(t *testing.T) {
	b := New(Config{})
	attach(t, b, "acme", "edge-1", nil, "192.168.1.10")
	attach(t, b, "acme", "edge-2", nil, "192.168.1.11", "10.244.1.7", "10.96.0.10", "fd00:244:1::7")
	b.SetNodes("acme", map[string]Node{
		"edge-1": {PodCIDRs: cidrs("10.244.1.0/24", "fd00:244:1::/64")}, "edge-2": {PodCIDRs: cidrs("10.244.2.0/24")},
	})
	wantRefusal(t, b, "10.244.1.7:8443", wire.BadRequest, "edge-2", "edge-1", "podCIDR")
	wantRefusal(t, b, "[fd00:244:1::7]:8443", wire.BadRequest, "edge-2", "edge-1")
	wantAnswer(t, b, "10.244.1.8:8443", "edge-1")

	// A Service's address is a Service's whatever a node attests.
	b.SetServices("acme", map[netip.Addr]Backends{netip.MustParseAddr("10.96.0.10"): {Nodes: []string{"edge-1"}}})
	wantAnswer(t, b, "10.96.0.10:443", "edge-1")
	b.SetServices("acme", nil)
	wantAnswer(t, b, "10.96.0.10:443", "edge-2") // while nobody knows of Services, it is an address of that node
	b.SetServiceRanges("acme", cidrs("10.96.0.0/16"))
	setNode(b, "edge-1", Node{PodCIDRs: cidrs("10.244.1.0/24"), Ready: true})
	wantAnswer(t, b, "10.96.0.10:443", "edge-1")

	// A range within another's, such as one that a hostile node registers itself with, takes nothing away.
	setNode(b, "edge-2", Node{PodCIDRs: cidrs("10.244.1.8/32")})
	wantRefusal(t, b, "10.244.1.8:8443", wire.BadRequest, "edge-1", "edge-2", "overlap")
	wantAnswer(t, b, "10.244.1.9:8443", "edge-1")
	setNode(b, "edge-2", Node{PodCIDRs: cidrs("10.244.1.0/24", "10.244.1.0/24")})
	wantRefusal(t, b, "10.244.1.9:8443", wire.BadRequest, "edge-1", "edge-2")
	setNode(b, "edge-2", Node{})
	wantAnswer(t, b, "10.244.1.8:8443", "edge-1")
}

// A Service is reached by the nodes on which its pods are ready, and where that is not known by Ready ones.
func TestServiceAddresses(t *testing.T) {
	b := New(Config{})
	b.SetServiceRanges("acme", cidrs("10.96.0.0/16", "fd00:96::/108"))
	wantRefusal(t, b, "10.96.0.1:443", wire.NotFound) // no node at all: as ever
	for _, n := range []string{"edge-1", "edge-2", "edge-3"} {
		attach(t, b, "acme", n, nil)
	}
	at := netip.MustParseAddr
	b.SetServices("acme", map[netip.Addr]Backends{
		at("10.96.0.20"): {Nodes: []string{"edge-2"}}, at("fd00:96::20"): {Nodes: []string{"edge-2"}},
		at("10.96.0.21"): {Nodes: []string{"edge-8", "edge-9"}}, at("10.96.0.22"): {Nodes: []string{"edge-9"}, Elsewhere: true},
	})
	b.SetNodes("acme", map[string]Node{"edge-1": {}, "edge-2": {}, "edge-3": {Ready: true}})
	for range 20 { // chance would show
		wantAnswer(t, b, "10.96.0.20:443", "edge-2")
		wantAnswer(t, b, "[fd00:96::20]:443", "edge-2")
		wantAnswer(t, b, "10.96.0.99:443", "edge-3")
		wantAnswer(t, b, "10.96.0.22:443", "edge-3")
	}
	wantRefusal(t, b, "10.96.0.21:443", wire.Unavailable, "10.96.0.21", "edge-8, edge-9")

	b.SetNodes("acme", map[string]Node{"edge-1": {Ready: true}, "edge-2": {Ready: true}, "edge-3": {}})
	seen := map[string]bool{}
	for i := 0; len(seen) < 2; i++ {
		said, _ := ask(t, b, "acme", "10.96.0.99:443")
		node, _, _ := strings.Cut(said, " ")
		seen[node] = true
		if node == "edge-3" {
			t.Fatal("a node that is not Ready was asked though two are")
		}
		if i > 200 {
			t.Fatalf("200 connections all went to %v", seen)
		}
	}
}

// A node that does not take a connection to a Service, and has sent nothing, is stood in for by one other; what the
// Service answers is the answer. Seen failing with `another` returning false: the first refusal came back.
func TestServiceByAnotherNode(t *testing.T) {
	const addr = "10.96.0.20:443"
	for code, want := range map[wire.Code]wire.Code{
		wire.Denied: wire.OK, wire.Draining: wire.OK, wire.Overloaded: wire.OK, wire.Unavailable: wire.OK,
		wire.DialRefused: wire.DialRefused, wire.DialTimeout: wire.DialTimeout, wire.BadRequest: wire.BadRequest,
	} {
		b := New(Config{})
		attach(t, b, "acme", "edge-1", refuses(code))
		attach(t, b, "acme", "edge-2", nil)
		b.SetServiceRanges("acme", cidrs("10.96.0.0/16"))
		b.SetNodes("acme", map[string]Node{"edge-1": {Ready: true}}) // it is asked first
		var asked []string
		ctx := OnFound(t.Context(), func(ctx context.Context, node string, _ tunnel.Transport) context.Context {
			asked = append(asked, node)
			return ctx
		})
		c, err := b.Dial(ctx, "acme", addr)
		got := wire.OK
		if e, ok := errors.AsType[*tunnel.RefusedError](err); ok {
			got = e.Code
		} else if err != nil {
			t.Errorf("%s: %v", code, err)
		} else {
			c.Close()
		}
		wantAsked := []string{"edge-1", "edge-2"}
		if want != wire.OK {
			wantAsked = wantAsked[:1]
		}
		if got != want || !slices.Equal(asked, wantAsked) {
			t.Errorf("the first node refuses with %s: %s, asked %v; want %s, %v", code, got, asked, want, wantAsked)
		}
	}
}

// A node that goes while it is asked is stood in for, too; two that refuse are enough.
func TestServiceNodeGoes(t *testing.T) {
	b := New(Config{})
	attach(t, b, "acme", "edge-1", func(_ context.Context, s *tunnel.Session, _ *tunnel.Request) { _ = s.Close(wire.Shutdown, "killed") })
	attach(t, b, "acme", "edge-2", nil)
	b.SetServiceRanges("acme", cidrs("10.96.0.0/16"))
	b.SetNodes("acme", map[string]Node{"edge-1": {Ready: true}})
	wantAnswer(t, b, "10.96.0.20:443", "edge-2")

	b = New(Config{})
	asked := make(chan string, 9)
	for _, n := range []string{"edge-1", "edge-2", "edge-3"} {
		attach(t, b, "acme", n, func(_ context.Context, _ *tunnel.Session, r *tunnel.Request) {
			asked <- n
			_ = r.Refuse(wire.Denied, "switched off")
		})
	}
	b.SetServiceRanges("acme", cidrs("10.96.0.0/16"))
	wantRefusal(t, b, "10.96.0.20:443", wire.Denied, "switched off")
	if len(asked) != attempts {
		t.Errorf("%d nodes were asked, want %d", len(asked), attempts)
	}
}

// BenchmarkFind is what a look-up takes among 10,000 nodes.
func BenchmarkFind(b *testing.B) {
	board := New(Config{})
	c := board.cluster("acme")
	for i := range 10_000 {
		c.setNode(fmt.Sprintf("edge-%d", i), Node{PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}, Ready: true})
	}
	for _, host := range []string{"10.3.7.9", "10.250.0.1"} {
		b.Run(host, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = board.find("acme", host)
			}
		})
	}
}
