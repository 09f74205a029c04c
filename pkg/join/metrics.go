package join

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/enrollapi"
)

// Metrics counts the outcomes of attempts:
//
//	mooring_agent_join_attempts_total{step="enrol|renew|bootstrap", outcome="ok|pending|refused|nameTaken|badRequest|unavailable|overloaded|internal|error"}
//
// A nil *Metrics counts nothing.
type Metrics struct{ attempts *prometheus.CounterVec }

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mooring_agent_join_attempts_total",
		Help: "Attempts at a step of joining, by outcome.",
	}, []string{"step", "outcome"})}
	reg.MustRegister(m.attempts)
	return m
}

func (m *Metrics) outcome(step Step, err error) {
	if m == nil {
		return
	}
	m.attempts.WithLabelValues(string(step), outcome(err)).Inc()
}

// outcome keeps to the known codes: a label that the other side chooses could grow without bound.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	var e *enrollapi.Error
	if errors.As(err, &e) {
		switch e.Code {
		case enrollapi.CodePending, enrollapi.CodeRefused, enrollapi.CodeNameTaken, enrollapi.CodeBadRequest,
			enrollapi.CodeUnavailable, enrollapi.CodeOverloaded, enrollapi.CodeInternal:
			return string(e.Code)
		}
	}
	return "error"
}
