package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/internal/tracing"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

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
func (s *Server) dial(r *http.Request, id pki.Identity) verdict {
	started := time.Now()
	d := &way{span: s.cfg.Tracer.Start(traceparent(r.Header), "egress dial")}
	node, err := s.connect(r, id.Tenant, d)
	took := time.Since(started)
	if d.open != nil {
		d.open.End(err)
	}

	code, trace := codeOf(err), d.span.Trace()
	s.requests.observe(id.Tenant, code, took, trace)
	for _, a := range [][2]string{
		{"mooring.tenant", id.Tenant}, {"mooring.target", r.Host}, {"mooring.outcome", code.String()},
		{"mooring.node", d.node}, {"mooring.transport", d.transport},
	} {
		d.span.Set(a[0], a[1])
	}
	d.span.End(err)

	log := s.cfg.Logger.With("dial", trace.String(), "tenant", id.Tenant, "target", r.Host)
	if d.node != "" {
		log = log.With("node", d.node, "transport", d.transport)
	}
	if err != nil {
		log.Info("egress dial refused", "code", code.String(), "took", took, "err", err)
		s.refusals.record(id, r.RemoteAddr, r.Host, code, err, trace)
	} else {
		log.Debug("egress dial accepted", "code", code.String(), "took", took)
	}
	return verdict{trace: trace, log: log, node: node, code: code, err: err}
}

func (s *Server) connect(r *http.Request, tenant string, d *way) (net.Conn, error) {
	end, err := s.requests.begin(tenant)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.DialTimeout)
	defer cancel()
	ctx = switchboard.OnFound(tunnel.WithTrace(ctx, d.span.Trace()), d.found)
	return s.cfg.Dialer.Dial(ctx, tenant, r.Host)
}

// forbid is for a request whose certificate does not speak for a tenant. Why not is not for its sender.
func (s *Server) forbid(r *http.Request, id pki.Identity, err error) verdict {
	trace := wire.NewTrace()
	s.cfg.Logger.Warn("egress request refused: its certificate does not speak for a tenant's API server",
		"dial", trace.String(), "tenant", id.Tenant, "remote", r.RemoteAddr, "err", err)
	s.refusals.record(id, r.RemoteAddr, r.Host, wire.Denied, err, trace)
	return verdict{trace: trace, code: wire.Denied, err: errors.New("a client certificate of an API server is needed: see `broker egress issue`")}
}

func codeOf(err error) wire.Code {
	var refused *tunnel.RefusedError
	switch {
	case err == nil:
		return wire.OK
	case errors.As(err, &refused):
		return refused.Code
	case errors.Is(err, context.DeadlineExceeded):
		return wire.DialTimeout
	case errors.Is(err, context.Canceled):
		return wire.Canceled
	}
	return wire.Unavailable
}

// shownID is how many digits of a dial's id the person at kubectl sees: enough to find it in the logs.
const shownID = 16

// refuse answers with the reason in the status line too: kube-apiserver puts that line, and not the
// body, into the error that the person at kubectl reads.
func refuse(w http.ResponseWriter, v verdict) {
	reason := fmt.Sprintf("%s (dial %.*s)", oneLine(v.err.Error()), shownID, v.trace.String())
	conn, _, hijackErr := http.NewResponseController(w).Hijack()
	if hijackErr != nil {
		http.Error(w, reason, v.code.HTTPStatus())
		return
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(headerTimeout))
	fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		v.code.HTTPStatus(), reason, len(reason), reason)
}

// newDials makes the histogram of dials.
func newDials() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "mooring_egress_dial_seconds",
		Help:    "Time from an API server's CONNECT request to its answer, by tenant and outcome.",
		Buckets: []float64{.005, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 20},
	}, []string{"tenant", "outcome"})
}
