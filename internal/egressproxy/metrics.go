package egressproxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// The protocols on the socket; the values are the metrics' labels.
const (
	protoGRPC    = "grpc"
	protoConnect = "http-connect"
)

type metrics struct {
	dials  *prometheus.HistogramVec // protocol, outcome
	conns  *prometheus.GaugeVec     // protocol
	expiry prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		dials: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mooring_sidecar_dial_seconds",
			Help:    "Time from the API server's request for a connection to its answer, by protocol and outcome.",
			Buckets: []float64{.001, .005, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"protocol", "outcome"}),
		conns: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mooring_sidecar_connections", Help: "Connections to nodes that are open for the API server, by protocol.",
		}, []string{"protocol"}),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mooring_sidecar_certificate_expiry_timestamp_seconds", Help: "When the sidecar's certificate expires, in seconds since 1970."}),
	}
	reg.MustRegister(m.dials, m.conns, m.expiry)
	return m
}

func (m *metrics) dialled(protocol string, code wire.Code, took time.Duration) {
	m.dials.WithLabelValues(protocol, code.String()).Observe(took.Seconds())
}

// open counts a connection until the returned function is called.
func (m *metrics) open(protocol string) (over func()) {
	g := m.conns.WithLabelValues(protocol)
	g.Inc()
	return g.Dec
}
