package egress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/internal/tracing"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// call is a dial that somebody asks for, however that came.
type call struct {
	id     pki.Identity
	source string     // where it came from, for the audit log
	target string     // what is to be dialled
	parent wire.Trace // how the caller names it; may be zero
}

// verdict is what becomes of a call: a connection to a node, or why there is none.
type verdict struct {
	trace wire.Trace   // the dial's name
	log   *slog.Logger // names it
	node  net.Conn

	code wire.Code
	err  error
}

// carry joins the caller's connection, whose answer was sent, with the node's until both directions have ended. err is why
// there is none.
func (v verdict) carry(client net.Conn, err error) {
	if err != nil {
		v.log.Error("egress connection lost before its answer", "err", err)
		v.node.Close()
		return
	}
	started := time.Now()
	toNode, toClient, err := splice.Splice(client, v.node)
	v.log.Debug("egress connection ended", "toNode", toNode, "toAPIServer", toClient, "after", time.Since(started), "err", err)
}

// way is what is known of a dial while it goes on. It has one name from the request to the node: in the logs of both
// ends, in the answer if it is refused, in the audit log, in spans.
type way struct {
	span            *tracing.Span
	open            *tracing.Span // nil until a node was found
	node, transport string        // empty until then
}

// errAsksAnother ends the span of an attempt at a node that did not take the dial.
var errAsksAnother = errors.New("the node did not take it, another is asked")

// found is called by the switchboard for each node that it is about to ask.
func (d *way) found(ctx context.Context, node string, transport tunnel.Transport) context.Context {
	d.node, d.transport = node, string(transport)
	if d.open != nil {
		d.open.End(errAsksAnother)
	}
	d.open = d.span.Child("tunnel open")
	d.open.Set("mooring.node", d.node)
	d.open.Set("mooring.transport", d.transport)
	return tunnel.WithTrace(ctx, d.open.Trace())
}

// dial connects to the node that is asked for, or says why not.
func (s *Server) dial(ctx context.Context, c call) verdict {
	started := time.Now()
	d := &way{span: s.cfg.Tracer.Start(c.parent, "egress dial")}
	node, err := s.connect(ctx, c, d)
	took := time.Since(started)
	if d.open != nil {
		d.open.End(err)
	}

	code, trace := tunnel.CodeOf(err), d.span.Trace()
	s.requests.observe(c.id.Tenant, code, took, trace)
	for _, a := range [][2]string{
		{"mooring.tenant", c.id.Tenant}, {"mooring.target", c.target}, {"mooring.outcome", code.String()},
		{"mooring.node", d.node}, {"mooring.transport", d.transport},
	} {
		d.span.Set(a[0], a[1])
	}
	d.span.End(err)

	log := s.cfg.Logger.With("dial", trace.String(), "tenant", c.id.Tenant, "target", c.target)
	if d.node != "" {
		log = log.With("node", d.node, "transport", d.transport)
	}
	if err != nil {
		log.Info("egress dial refused", "code", code.String(), "took", took, "err", err)
		s.refusals.record(c, code, err, trace)
	} else {
		log.Debug("egress dial accepted", "code", code.String(), "took", took)
	}
	return verdict{trace: trace, log: log, node: node, code: code, err: err}
}

func (s *Server) connect(ctx context.Context, c call, d *way) (net.Conn, error) {
	end, err := s.requests.begin(c.id.Tenant)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout)
	defer cancel()
	ctx = switchboard.OnFound(tunnel.WithTrace(ctx, d.span.Trace()), d.found)
	return s.cfg.Dialer.Dial(ctx, c.id.Tenant, c.target)
}

// forbid is for a call whose certificate does not speak for a tenant. Why not is not for its sender.
func (s *Server) forbid(c call, err error) verdict {
	trace := wire.NewTrace()
	if c.parent.Valid() {
		trace.ID = c.parent.ID
	}
	s.cfg.Logger.Warn("egress request refused: its certificate does not speak for a tenant's API server",
		"dial", trace.String(), "tenant", c.id.Tenant, "remote", c.source, "err", err)
	s.refusals.record(c, wire.Denied, err, trace)
	return verdict{trace: trace, code: wire.Denied, err: errors.New("a client certificate of an API server is needed: see `broker egress issue`")}
}

// newDials makes the histogram of dials.
func newDials() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "mooring_egress_dial_seconds",
		Help:    "Time from an API server's request for a connection, by CONNECT or by its sidecar, to the answer, by tenant and outcome.",
		Buckets: []float64{.005, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 20},
	}, []string{"tenant", "outcome"})
}
