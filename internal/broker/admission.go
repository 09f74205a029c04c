package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// condClones is True while no two boxes are known to use one identity.
const condClones = "Clones"

const (
	// probeTimeout is how long a node's older session has to show that it is alive.
	probeTimeout = 6 * time.Second
	// eventTimeout bounds the writing of an event at a tenant.
	eventTimeout = 20 * time.Second
)

// Why a session is not let in, or does not go on.
var (
	errQuarantined = errors.New("two boxes use this node's identity (a cloned disk?): an operator must say which one keeps it (broker node show, broker node resolve)")
	errSuperseded  = errors.New("a newer session of this node took over")
	errHandedOver  = errors.New("a newer session of this node took over, and this one ends with its streams")
	errNotKnown    = errors.New("this node is not known here (removed?): enrol it again with a new token")
	errRevoked     = errors.New("this node's identity was revoked by an operator")
	errNotChecked  = errors.New("the broker can't look this node up for now: try again")
)

// refusal is what a node is told that was not let in. Only a record that is not there, is another key's or revoked,
// and the node's own past, are the node's matter.
func refusal(err error) (wire.Code, string) {
	switch {
	case errors.Is(err, errQuarantined):
		return wire.Quarantined, errQuarantined.Error()
	case errors.Is(err, errSuperseded):
		return wire.Superseded, errSuperseded.Error()
	case errors.Is(err, errHandedOver):
		return wire.Draining, errHandedOver.Error()
	case errors.Is(err, enroll.ErrRevoked):
		return wire.Revoked, errRevoked.Error()
	case errors.Is(err, enroll.ErrNotAuthorized):
		return wire.Revoked, errNotKnown.Error()
	}
	return wire.Unavailable, errNotChecked.Error()
}

// serveSession lets a node's session in, to live on the switchboard, or a sidecar's. It does not wait for its end.
func (b *broker) serveSession(ctx context.Context, s *tunnel.Session) {
	if isSidecar(s.ConnectionState()) {
		b.serveSidecar(s)
		return
	}
	enter := b.gate.arrive(s)
	id, line, err := b.admit(ctx, s)
	enter(err)
	if err != nil {
		b.log.Warn("session refused", "tenant", id.Tenant, "node", id.Name, "remote", s.RemoteAddr().String(), "err", err)
		code, told := refusal(err)
		if code != wire.Unavailable {
			b.audit.Record(audit.Event{
				Event: "session", Outcome: audit.Refused, Actor: actorOf(id, line), Tenant: id.Tenant, Node: id.Name,
				Source: s.RemoteAddr().String(), Reason: err.Error(), Detail: map[string]string{"instance": line.Instance},
			})
		}
		s.Close(code, told)
		return
	}
	s.Admitted()
	b.admitted.Add(1)
	s.OnEnd(b.holders.enter(s, id))
	detach := func() {}
	if b.peers != nil {
		detach = b.peers.dir.Attach(id.Tenant, id.Name, s.PeerHello().Addresses)
		s.OnEnd(detach)
	}
	s.OnEnd(b.networks.enter(s, id))
	b.board.Enter(s, id.Tenant, id.Name, func() (wire.Code, error) {
		code, told := wire.OK, ""
		if err := b.stillAdmitted(ctx, s, line); err != nil {
			code, told = refusal(err)
			if code == wire.Draining { // it has moved to another broker, and must not be looked for here while its streams go on
				detach()
			}
			return code, errors.New(told)
		}
		return code, nil
	})
}

func actorOf(id pki.Identity, line enroll.Lineage) string {
	if id.Tenant != "" {
		return id.String()
	}
	return "key " + line.SPKI
}

// admit authorizes a session, and judges its box by its past.
func (b *broker) admit(ctx context.Context, s *tunnel.Session) (pki.Identity, enroll.Lineage, error) {
	line := lineageOf(s)
	id, err := b.authorize(ctx, s)
	if err != nil {
		return id, line, err
	}
	res, err := b.nodes.Admit(ctx, id.Tenant, id.Name, line, func() bool {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		return b.board.Probe(ctx, id.Tenant, id.Name, s)
	})
	if err != nil {
		return id, line, err
	}
	if res.Restarted {
		b.log.Warn("node's past sessions are not known to it any more", "tenant", id.Tenant, "node", id.Name, "remote", line.Remote)
		b.audit.Record(audit.Event{
			Event: "session", Outcome: audit.OK, Actor: id.String(), Tenant: id.Tenant, Node: id.Name, Source: line.Remote,
			Reason: "lineage restarted: " + res.Reason, Detail: map[string]string{"instance": line.Instance},
		})
	}
	if res.Clone {
		b.cloned(id, res.Lines)
	}
	return id, line, verdictErr(res)
}

// stillAdmitted judges a session that was let in anew.
func (b *broker) stillAdmitted(ctx context.Context, s *tunnel.Session, line enroll.Lineage) error {
	id, err := b.authorize(ctx, s)
	if err != nil {
		return err
	}
	res, err := b.nodes.StillAdmitted(ctx, id.Tenant, id.Name, line)
	if err != nil {
		return err
	}
	return verdictErr(res)
}

func verdictErr(res enroll.AdmitResult) error {
	switch res.Verdict {
	case enroll.Accepted:
		return nil
	case enroll.Superseded:
		return fmt.Errorf("%w: %s", errSuperseded, res.Reason)
	case enroll.HandedOver:
		return fmt.Errorf("%w: %s", errHandedOver, res.Reason)
	case enroll.Quarantined:
		return fmt.Errorf("%w: %s", errQuarantined, res.Reason)
	}
	return fmt.Errorf("undecided: %s", res.Reason)
}

// lineageOf is what a session tells of its box.
func lineageOf(s *tunnel.Session) enroll.Lineage {
	h := s.PeerHello()
	l := enroll.Lineage{
		Instance: h.Instance, Ancestors: h.Ancestors, Generation: h.Generation, Volatile: h.Volatile, Handover: h.Handover,
		Remote: s.RemoteAddr().String(), Now: time.Now().UTC().Truncate(time.Second),
	}
	if certs := s.ConnectionState().PeerCertificates; len(certs) > 0 {
		l.SPKI = pki.SPKIHash(certs[0].PublicKey)
	}
	return l
}

// cloned tells all who should know of two boxes with one identity. The sessions are cut by the watch.
func (b *broker) cloned(id pki.Identity, lines []enroll.Line) {
	what := cloneMessage(id.Tenant, id.Name, lines)
	b.log.Error("a node's identity is used by two boxes", "tenant", id.Tenant, "node", id.Name, "what", what)
	detail := map[string]string{}
	for i, l := range lines {
		detail[fmt.Sprintf("id%d", i+1)], detail[fmt.Sprintf("source%d", i+1)] = l.ID, l.Remote
	}
	b.audit.Record(audit.Event{
		Event: "quarantine", Outcome: audit.OK, Actor: "broker", Tenant: id.Tenant, Node: id.Name,
		Source: lines[len(lines)-1].Remote, Reason: "two boxes use this identity", Detail: detail,
	})
	b.events.Go(func() {
		ctx, cancel := context.WithTimeout(b.eventsCtx, eventTimeout)
		defer cancel()
		if err := enroll.WarnAboutNode(ctx, b.clients, id.Tenant, id.Name, "IdentityCloned", what); err != nil {
			b.log.Info("the event about a cloned node could not be written at its tenant", "tenant", id.Tenant, "node", id.Name, "err", err)
			return
		}
		b.log.Debug("event about a cloned node written at its tenant", "tenant", id.Tenant, "node", id.Name)
	})
}

func cloneMessage(tenant, node string, lines []enroll.Line) string {
	msg := fmt.Sprintf("%s/%s is used by %d boxes:", tenant, node, len(lines))
	for i, l := range lines {
		if i > 0 {
			msg += " and"
		}
		msg += fmt.Sprintf(" %s from %s", l.ID, l.Remote)
	}
	return msg + "; none is let in until `broker node resolve " + tenant + "/" + node + " --keep ID`"
}

// watchNodes cuts the sessions of nodes that were revoked, removed, replaced or put in quarantine, here or by another
// broker of this store, and shows the quarantines as a condition.
func (b *broker) watchNodes(ctx context.Context, g *errgroup.Group, st *store.Store) {
	b.eventsCtx = ctx
	// Closing a session may take two seconds, and one must not wait for another's.
	recheck := func(tenant, node string) {
		if b.board.Live(tenant, node) {
			b.events.Go(func() { b.board.Recheck(tenant, node) })
		}
	}
	g.Go(func() error {
		return enroll.WatchNodes(ctx, st, nil, func(tenant, node string, _ bool) { recheck(tenant, node) })
	})
	clones := map[string]string{}
	show := func() {
		if len(clones) == 0 {
			b.health.Set(condClones, health.True, "None", "no identity is known to be used by two boxes")
			return
		}
		b.health.Set(condClones, health.False, "Quarantined", sample(clones))
	}
	g.Go(func() error {
		return enroll.WatchLineages(ctx, st, show, func(tenant, node string, tip enroll.Line, lines []enroll.Line) {
			// Of most changes the cause is the admission of the session that is here: of ten thousand that come back at once,
			// each would be looked up once more for it.
			if len(lines) > 0 || !b.board.Is(tenant, node, tip.Instance, tip.Generation) {
				recheck(tenant, node)
			}
			key := tenant + "/" + node
			before := clones[key]
			delete(clones, key)
			if len(lines) > 0 {
				clones[key] = cloneMessage(tenant, node, lines)
			}
			if clones[key] != before {
				show()
			}
		})
	})
}

// sample is the first few messages, in order.
func sample(clones map[string]string) string {
	const most = 5
	keys := slices.Sorted(maps.Keys(clones))
	var all []string
	for _, k := range keys[:min(most, len(keys))] {
		all = append(all, clones[k])
	}
	if n := len(keys) - most; n > 0 {
		all = append(all, fmt.Sprintf("and %d more: see `broker node list`", n))
	}
	return strings.Join(all, ". ")
}

// gate keeps a session's streams waiting until the session was let in.
type gate struct {
	mu       sync.Mutex // guards the following field
	sessions map[*tunnel.Session]*admission
}

// admission is where a session stands.
type admission struct {
	done chan struct{} // closed once err is set
	err  error
}

func newGate() *gate { return &gate{sessions: map[*tunnel.Session]*admission{}} }

func (g *gate) of(s *tunnel.Session) *admission {
	a := g.sessions[s]
	if a == nil {
		a = &admission{done: make(chan struct{})}
		g.sessions[s] = a
	}
	return a
}

// arrive takes up a session until its end. Call enter once, with why it is not let in.
func (g *gate) arrive(s *tunnel.Session) (enter func(error)) {
	g.mu.Lock()
	a := g.of(s)
	g.mu.Unlock()
	s.OnEnd(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.sessions, s)
	})
	return func(err error) { a.err = err; close(a.done) }
}

// wait returns when the session was let in, or why it was not.
func (g *gate) wait(ctx context.Context, s *tunnel.Session) error {
	g.mu.Lock()
	if err := s.Err(); err != nil { // leave may have been, and nothing must be left behind after it
		g.mu.Unlock()
		return err
	}
	a := g.of(s)
	g.mu.Unlock()
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
