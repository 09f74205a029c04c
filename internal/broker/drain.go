package broker

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/mooring-edge/mooring/pkg/health"
)

// errDraining turns away who comes while the broker is on its way out.
var errDraining = errors.New("this broker is about to stop")

// enter is asked for each connection to the public port.
func (b *broker) enter(source net.Addr) (leave func(), err error) {
	if b.draining.Load() {
		return nil, errDraining
	}
	return b.door.Enter(source)
}

// drain has the nodes, and the sidecars of API servers, move to other brokers, if drain.spread says that there are any, and returns once nothing is open that
// could still end by itself, or drain.grace is over. Meanwhile nobody new is let in, and /readyz says so. A node that has
// not moved is asked here: until drain.spread is over, or, where there is no other broker, to the end.
//
// What API servers have open counts (logs, exec, port-forward), and what is passed on to them through the front, of which nobody
// can tell whether it would end. Not so the connections of nodes to their API servers over the tunnel: they are kept open for good by
// their clients, and made anew as a matter of course.
func (b *broker) drain(ctx context.Context) {
	grace, spread := b.cfg.Drain.Grace.Duration, b.cfg.Drain.Spread.Duration
	if grace <= 0 {
		return
	}
	began := time.Now()
	b.draining.Store(true)
	b.health.Set(condFront, health.False, "Draining", "this broker is about to stop: nodes move to others")
	sessions := b.board.Count()
	b.log.Info("draining before the end; a second signal ends at once", "sessions", sessions, "sidecars", b.sidecars.Count(), "dials", b.egress.Open(),
		"passedOn", b.front.Passing(), "spread", spread, "grace", grace)
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if spread > 0 {
		b.sidecars.drain(ctx, spread)
		b.board.Drain(ctx, spread)
		moved, stop := context.WithTimeout(ctx, spread)
		b.board.WaitEmpty(moved)
		b.sidecars.waitEmpty(moved)
		stop()
	}
	b.egress.WaitIdle(ctx)
	if b.peers != nil { // what API servers have open by way of another broker
		b.peers.links.WaitIdle(ctx)
	}
	b.front.WaitIdle(ctx)
	b.log.Info("drained", "after", time.Since(began).Round(time.Millisecond), "moved", sessions-b.board.Count(), "cut", b.egress.Open()+b.front.Passing())
}
