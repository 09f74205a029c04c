package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// fleet is all nodes.
type fleet struct {
	endpoint string
	nodes    []*node
	// heartbeat and silence are the nodes' HeartbeatInterval and HeartbeatTimeout; 0: the tunnel's defaults.
	heartbeat, silence time.Duration

	mu      sync.Mutex     // guards the following
	up      int            // nodes with a session that the broker has let in
	ends    map[string]int // why sessions ended or were not made, see reason
	since   time.Time      // when mark was called last
	back    map[*node]time.Duration
	changed chan struct{} // closed and replaced when up or back changes
}

// newFleet makes a fleet of which no node is on; transports are given to its nodes in turn.
func newFleet(endpoint string, ids []*identity, transports ...tunnel.Transport) *fleet {
	f := &fleet{endpoint: endpoint, ends: map[string]int{}, back: map[*node]time.Duration{}, changed: make(chan struct{})}
	for i, id := range ids {
		// Sites reuse addresses; that these are different shows nothing, but takes as much memory.
		at := netip.AddrFrom4([4]byte{192, 168, byte(i / 250), byte(1 + i%250)})
		f.nodes = append(f.nodes, &node{fleet: f, id: id, transport: transports[i%len(transports)], address: at})
	}
	return f
}

// start switches all nodes on, and goes on only as long as fewer than so many of them wait for their session; 0 is all
// at once.
func (f *fleet) start(ctx context.Context, connecting int) error {
	for i, n := range f.nodes {
		if connecting > 0 {
			if err := f.await(ctx, func(s state) bool { return i-s.up < connecting }); err != nil {
				return err
			}
		}
		n.start()
	}
	return ctx.Err()
}

// stop switches all nodes off.
func (f *fleet) stop() {
	var wg sync.WaitGroup
	for _, n := range f.nodes {
		wg.Go(n.stop)
	}
	wg.Wait()
}

// mark begins the count of nodes that come back anew.
func (f *fleet) mark() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.since = time.Now()
	clear(f.back)
	clear(f.ends)
}

func (f *fleet) letIn(n *node, more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if more {
		f.up++
	}
	if _, again := f.back[n]; !again {
		f.back[n] = time.Since(f.since)
	}
	f.notify()
}

func (f *fleet) out() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.up--
	f.notify()
}

func (f *fleet) ended(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends[reason(err)]++
}

// notify wakes those who await something. f.mu is held.
func (f *fleet) notify() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// state is what is to be seen of a fleet at one moment.
type state struct {
	up, back, nodes int
}

// await returns once done says so, which is asked at each change.
func (f *fleet) await(ctx context.Context, done func(state) bool) error {
	for {
		f.mu.Lock()
		s := state{up: f.up, back: len(f.back), nodes: len(f.nodes)}
		changed := f.changed
		f.mu.Unlock()
		if done(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d nodes have a session, %d came back; %w", s.up, s.nodes, s.back, context.Cause(ctx))
		}
	}
}

func allUp(s state) bool   { return s.up == s.nodes }
func allBack(s state) bool { return s.back == s.nodes && s.up == s.nodes }

// returns are the times since mark at which nodes came back, in order, and why sessions ended or were not made since.
func (f *fleet) returns() ([]time.Duration, map[string]int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []time.Duration
	for _, d := range f.back {
		all = append(all, d)
	}
	slices.Sort(all)
	ends := map[string]int{}
	for k, v := range f.ends {
		ends[k] = v
	}
	return all, ends
}

// sleep waits, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
