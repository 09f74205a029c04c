package broker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// handOver opens another session of a node that has one.
func (b *box) handOver(t *testing.T, r *running, transport tunnel.Transport, l line) *tunnel.Session {
	t.Helper()
	s, err := b.connectWith(t, transport, r.cfg.Front.Listen, wire.Hello{
		Version: "test", Node: b.enrol.Node, Instance: l.instance, Ancestors: l.ancestors, Generation: l.generation, Handover: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	awaitAccepted(t, s)
	return s
}

// echoes wants a connection to a node to give back what it is sent.
func echoes(c io.ReadWriter, words string) error {
	if _, err := io.WriteString(c, words); err != nil {
		return err
	}
	got := make([]byte, len(words))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != words {
		return fmt.Errorf("%q came back for %q", got, words)
	}
	return nil
}

func wantEcho(t *testing.T, c io.ReadWriter, words string) {
	t.Helper()
	if err := echoes(c, words); err != nil {
		t.Fatal(err)
	}
}

// TestHandover: a session that the node hands over from opens no more streams, and keeps those that it has, at the same broker
// and at another. At most one is kept, and what bars a node cuts it too. Mechanism: Hello.Handover (Board.put,
// lineageRecord.current). Seen failing with each of the two taken out, and with a Recheck of the newest session alone.
func TestHandover(t *testing.T) {
	pair := startPair(t)
	pair[0].addTenant(t, "acme")
	pair[1].logs.await(t, `msg="tenant changed" tenant=acme`)
	b := newBox(t, pair[0].bundle(t, "acme", 1), "edge-1")
	egress := pair[0].issueEgress(t, "acme")

	one := b.connectAs(t, pair[0], line{instance(1), nil, 1})
	awaitAccepted(t, one)
	old, status, err := connectBy(egress, "edge-1:"+echoPort)
	if err != nil {
		t.Fatal(status, err)
	}
	defer old.Close()
	wantEcho(t, old, "by the first session")

	two := b.handOver(t, pair[0], tunnel.TransportQUIC, line{instance(2), []string{instance(1)}, 2})
	within(t, one.Draining(), "the first session to be drained")
	next, status, err := connectBy(egress, "edge-1:"+echoPort)
	if err != nil {
		t.Fatal(status, err)
	}
	defer next.Close()
	wantEcho(t, next, "by the second")
	if n := two.Stats().OpenStreams; n != 1 {
		t.Errorf("%d streams on the second session", n)
	}
	wantEcho(t, old, "by the first, still")

	// At the other broker: the first one hears of it by the store.
	three := b.handOver(t, pair[1], tunnel.TransportTCP, line{instance(3), []string{instance(2), instance(1)}, 3})
	within(t, two.Draining(), "the second session to be drained")
	wantEcho(t, next, "by the second, still")
	wantEcho(t, old, "by the first, still")

	// A third at the second broker: two of its sessions are kept, but not the one before these.
	four := b.handOver(t, pair[1], tunnel.TransportTCP, line{instance(4), []string{instance(3), instance(2), instance(1)}, 4})
	within(t, three.Draining(), "the third session to be drained")
	five := b.handOver(t, pair[1], tunnel.TransportTCP, line{instance(5), []string{instance(4), instance(3), instance(2), instance(1)}, 5})
	wantEnd(t, three, wire.Superseded, "the one before the one before")
	within(t, four.Draining(), "the fourth session to be drained")

	if _, err := pair[0].client.RevokeNode(t.Context(), "acme", "edge-1", admin.RevokeRequest{}); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*tunnel.Session{"first": one, "second": two, "fourth": four, "fifth": five} {
		wantEnd(t, s, wire.Revoked, name)
	}
}

func within(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
}

// TestDrainLetsStreamsFinish: a broker that is told to stop lets in nobody new, and goes once what API servers have open has ended,
// without waiting for what nodes have open. Mechanism: broker.drain. Seen failing with drain.grace 0s (the stream is cut), and
// with a WaitIdle that returns at once.
func TestDrainLetsStreamsFinish(t *testing.T) {
	r := startBroker(t, t.TempDir(), func(c *config.Broker) { c.Drain.Grace.Duration = time.Minute })
	r.addTenant(t, "acme")
	bundle := r.bundle(t, "acme", 2)
	b, late := newBox(t, bundle, "edge-1"), newBox(t, bundle, "edge-2")
	s := b.connectAs(t, r, line{instance(1), nil, 1})
	awaitAccepted(t, s)
	c, status, err := connectBy(r.issueEgress(t, "acme"), "edge-1:"+echoPort)
	if err != nil {
		t.Fatal(status, err)
	}
	defer c.Close()
	wantEcho(t, c, "before")
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	r.logs.await(t, "draining before the end")
	wantEcho(t, c, "meanwhile")
	if status, said := r.dialNode(t, "acme", "edge-1:10250"); !strings.HasPrefix(status, "200") || said == "" {
		t.Errorf("a dial meanwhile: %s %q; there is no other broker that could be asked", status, said)
	}
	for _, tr := range []tunnel.Transport{tunnel.TransportTCP, tunnel.TransportQUIC} {
		if _, err := late.connect(t, tr, r.cfg.Front.Listen); err == nil {
			t.Errorf("a node was let in over %s", tr)
		}
	}
	select {
	case <-stopped:
		t.Fatal("stopped while a stream was open")
	default:
	}
	wantEcho(t, c, "to the end")
	_ = c.(*answered).CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("the stream ended with %q, %v", rest, err)
	}
	c.Close()
	within(t, stopped, "the broker to stop")
	wantEnd(t, s, wire.Shutdown, "the session")
}

// TestDrainGraceEnds: a stream that does not end is cut when the grace is over, and a node that takes no bytes holds nobody up.
func TestDrainGraceEnds(t *testing.T) {
	r := startBroker(t, t.TempDir(), func(c *config.Broker) { c.Drain.Grace.Duration = 300 * time.Millisecond })
	r.addTenant(t, "acme")
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	s := b.connectAs(t, r, line{instance(1), nil, 1})
	awaitAccepted(t, s)
	c, status, err := connectBy(r.issueEgress(t, "acme"), "edge-1:"+echoPort)
	if err != nil {
		t.Fatal(status, err)
	}
	defer c.Close()
	wantEcho(t, c, "before")
	r.stop()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a stream that was cut ended cleanly")
	}
	if !strings.Contains(r.logs.String(), "cut=1") {
		t.Error("the log does not say what was cut")
	}
}

// fleetNode is a node that keeps a session to whichever broker a load balancer would send it to.
type fleetNode struct {
	*box
	mu         sync.Mutex // guards the following
	generation uint64
	instances  []string
}

func (n *fleetNode) hello() wire.Hello {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := make([]byte, wire.InstanceLen/2)
	_, _ = rand.Read(b)
	n.generation++
	h := wire.Hello{Version: "test", Node: n.enrol.Node, Generation: n.generation, Instance: hex.EncodeToString(b), Ancestors: n.instances}
	n.instances = append([]string{h.Instance}, n.instances[:min(len(n.instances), wire.MaxAncestors-1)]...)
	return h
}

// TestFault18RollingRestart: two brokers of one store are restarted one after the other, while requests go on through both.
// Whatever is accepted is carried to its end, each node is asked without a break, and none goes down. Mechanism: the
// drain with a spread (broker.drain), Client's move (make before break), and the handover at the broker's side. Seen
// failing with Client heeding no drain (nodes go down), with a drain that does not wait (requests are cut), and with a
// lineageRecord.current that knows no handover (requests are cut).
func TestFault18RollingRestart(t *testing.T) {
	const nodes, pause = 6, 20 * time.Millisecond
	pair := startPairWith(t, func(c *config.Broker) {
		c.Drain = config.BrokerDrain{Spread: config.Duration{Duration: 4 * time.Second}, Grace: config.Duration{Duration: 20 * time.Second}}
	})
	pair[0].addTenant(t, "acme")
	pair[1].logs.await(t, `msg="tenant changed" tenant=acme`)
	bundle := pair[0].bundle(t, "acme", nodes)
	egress := [2]admin.EgressResponse{pair[0].issueEgress(t, "acme"), pair[1].issueEgress(t, "acme")}

	var lb atomic.Int32 // the broker to which new connections go
	var downs atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	var running, load sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for i := range nodes {
		n := &fleetNode{box: newBox(t, bundle, fmt.Sprintf("edge-%d", i))}
		tr := []tunnel.Transport{tunnel.TransportQUIC, tunnel.TransportTCP}[i%2]
		up := make(chan *tunnel.Session, 64)
		c := tunnel.NewClient(tunnel.ClientConfig{
			Dialer: func() *tunnel.Dialer { return n.dialer(t, tr, pair[lb.Load()].cfg.Front.Listen, n.hello) },
			OnUp:   func(s *tunnel.Session) { up <- s },
			OnDown: func(err error) {
				if ctx.Err() == nil {
					downs.Add(1)
					t.Errorf("edge-%d went down: %v", i, err)
				}
			},
		})
		running.Go(func() { _ = c.Run(ctx) })
		awaitAccepted(t, <-up)
	}

	// Each request is open for a while, and tells at its end what went through.
	var asked, cut atomic.Int32
	stopLoad := make(chan struct{})
	request := func(node string) error {
		var err error
		var c net.Conn
		for _, i := range []int32{lb.Load(), 1 - lb.Load()} { // the node is at one of them
			var status string
			if c, status, err = connectBy(egress[i], node+":"+echoPort); err != nil {
				continue
			}
			if !strings.HasPrefix(status, "200") {
				c.Close()
				err = errors.New(status)
				continue
			}
			break
		}
		if err != nil {
			return fmt.Errorf("not to be had at either broker: %w", err)
		}
		defer c.Close()
		asked.Add(1)
		for i := range 20 {
			if err := echoes(c, fmt.Sprintf("%s %d\n", node, i)); err != nil {
				cut.Add(1)
				return fmt.Errorf("cut after %d rounds: %w", i, err)
			}
			time.Sleep(pause) // the request's own work
		}
		return nil
	}
	var failed sync.Map
	for i := range nodes {
		node := fmt.Sprintf("edge-%d", i)
		load.Go(func() {
			for {
				select {
				case <-stopLoad:
					return
				default:
				}
				// Between the brokers there is no way yet: a node that moves while it is looked for is looked for again.
				var err error
				for range 3 {
					if err = request(node); err == nil || strings.HasPrefix(err.Error(), "cut") {
						break
					}
				}
				if err != nil {
					failed.Store(node+": "+err.Error(), nil)
				}
			}
		})
	}
	for i := range pair {
		lb.Store(int32(1 - i))
		before := asked.Load()
		for asked.Load() < before+2*nodes { // the load is on
			time.Sleep(pause)
		}
		pair[i].stop()
		if !strings.Contains(pair[i].logs.String(), "cut=0") {
			t.Errorf("broker %d cut something", i)
		}
		pair[i].start(t)
	}
	close(stopLoad)
	load.Wait()
	failed.Range(func(k, _ any) bool { t.Error(k); return true })
	t.Logf("%d requests, %d cut, nodes down %d times", asked.Load(), cut.Load(), downs.Load())
}
