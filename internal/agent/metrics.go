package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// metrics are the agent's own:
//
//	mooring_agent_dials_total{code}          connections that the broker asked for, by answer
//	mooring_agent_api_connections_total{outcome="ok|error"}  connections at the local API endpoint
//	mooring_agent_tunnel_up                  1 while there is a session
//	mooring_agent_certificate_expiry_timestamp_seconds when the node certificate expires, Unix time
type metrics struct {
	dials    *prometheus.CounterVec
	apiConns *prometheus.CounterVec
	up       prometheus.Gauge
	expiry   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		dials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_agent_dials_total", Help: "Connections that the broker asked for, by answer."}, []string{"code"}),
		apiConns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_agent_api_connections_total", Help: "Connections at the local API endpoint, by outcome."}, []string{"outcome"}),
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mooring_agent_tunnel_up", Help: "1 while there is a tunnel session."}),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mooring_agent_certificate_expiry_timestamp_seconds", Help: "When the node certificate expires, in seconds since 1970."}),
	}
	reg.MustRegister(m.dials, m.apiConns, m.up, m.expiry)
	return m
}

func (m *metrics) dial(code wire.Code) { m.dials.WithLabelValues(code.String()).Inc() }

func (m *metrics) api(err error) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.apiConns.WithLabelValues(outcome).Inc()
}
