package tunnel

import (
	"errors"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what sessions do. A nil *Metrics counts nothing.
type Metrics struct {
	sessions    *prometheus.GaugeVec     // transport
	sessionEnds *prometheus.CounterVec   // transport, code
	opens       *prometheus.CounterVec   // transport, direction, kind, code
	openSeconds *prometheus.HistogramVec // transport
	bytes       *prometheus.CounterVec   // transport, direction
	roundTrips  *prometheus.HistogramVec // transport
	dials       *prometheus.CounterVec   // transport, result
	moves       *prometheus.CounterVec   // transport, reason
}

// NewMetrics makes the metrics and registers them with reg, if that is not nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	buckets := []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 15}
	m := &Metrics{
		sessions: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mooring_tunnel_sessions", Help: "Live sessions.",
		}, []string{"transport"}),
		sessionEnds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_tunnel_session_ends_total", Help: "Sessions ended, by the code they ended with.",
		}, []string{"transport", "code"}),
		opens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_tunnel_opens_total", Help: "Streams opened by this end (out) or the other (in), by the code of the answer.",
		}, []string{"transport", "direction", "kind", "code"}),
		openSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mooring_tunnel_open_seconds", Help: "Time from the open of a stream by this end to its answer.", Buckets: buckets,
		}, []string{"transport"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_tunnel_stream_bytes_total", Help: "Bytes read from (in) and written to (out) streams.",
		}, []string{"transport", "direction"}),
		roundTrips: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mooring_tunnel_round_trip_seconds", Help: "Round trips of heartbeats.", Buckets: buckets,
		}, []string{"transport"}),
		dials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_tunnel_dials_total", Help: "Attempts to connect, by result: ok, failed, lost (the other transport was faster).",
		}, []string{"transport", "result"}),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_tunnel_moves_total", Help: "Sessions that took over from one that was up, by their transport and the reason: upgrade (QUIC works again), drain (the broker is about to stop).",
		}, []string{"transport", "reason"}),
	}
	if reg != nil {
		reg.MustRegister(m.sessions, m.sessionEnds, m.opens, m.openSeconds, m.bytes, m.roundTrips, m.dials, m.moves)
	}
	return m
}

// meter is Metrics as one session sees it: what is counted per read and write is looked up once.
type meter struct {
	m         *Metrics
	transport string
	in, out   prometheus.Counter
}

func (m *Metrics) meter(t Transport) meter {
	if m == nil {
		return meter{}
	}
	return meter{
		m: m, transport: string(t),
		in:  m.bytes.WithLabelValues(string(t), "in"),
		out: m.bytes.WithLabelValues(string(t), "out"),
	}
}

func (m *meter) read(n int) {
	if m.m != nil {
		m.in.Add(float64(n))
	}
}

func (m *meter) wrote(n int) {
	if m.m != nil {
		m.out.Add(float64(n))
	}
}

func (m *meter) sessionStarted() {
	if m.m != nil {
		m.m.sessions.WithLabelValues(m.transport).Inc()
	}
}

func (m *meter) sessionEnded(code wire.Code) {
	if m.m != nil {
		m.m.sessions.WithLabelValues(m.transport).Dec()
		m.m.sessionEnds.WithLabelValues(m.transport, codeLabel(code)).Inc()
	}
}

// moved counts a session of this end that took over from one that was up.
func (m *meter) moved(to Transport, why string) {
	if m.m != nil {
		m.m.moves.WithLabelValues(string(to), why).Inc()
	}
}

// opened counts an open of this end. How it failed is told by a code, too.
func (m *meter) opened(kind wire.Kind, err error, took time.Duration) {
	if m.m == nil {
		return
	}
	var (
		code    wire.Code
		refused *RefusedError
		closed  *ClosedError
	)
	switch {
	case err == nil:
		m.m.openSeconds.WithLabelValues(m.transport).Observe(took.Seconds())
	case errors.As(err, &refused):
		code = refused.Code
	case errors.As(err, &closed):
		code = wire.Unavailable
	default:
		code = wire.Canceled
	}
	m.m.opens.WithLabelValues(m.transport, "out", kindLabel(kind), codeLabel(code)).Inc()
}

// served counts an open of the other side.
func (m *meter) served(kind wire.Kind, code wire.Code) {
	if m.m != nil {
		m.m.opens.WithLabelValues(m.transport, "in", kindLabel(kind), codeLabel(code)).Inc()
	}
}

func (m *meter) roundTrip(d time.Duration) {
	if m.m != nil {
		m.m.roundTrips.WithLabelValues(m.transport).Observe(d.Seconds())
	}
}

// dialled counts an attempt to connect.
func (m *Metrics) dialled(t Transport, result string) {
	if m != nil {
		m.dials.WithLabelValues(string(t), result).Inc()
	}
}

// kindLabel and codeLabel keep what a peer makes up out of the labels.
func kindLabel(k wire.Kind) string {
	switch k {
	case wire.KindDial, wire.KindAPI, wire.KindForward:
		return k.String()
	}
	return "other"
}

func codeLabel(c wire.Code) string {
	if c > wire.Quarantined {
		return "other"
	}
	return c.String()
}
