package enroll

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics counts what an operator would alert on. None has a label that a stranger could multiply.
type Metrics struct {
	enrolments *prometheus.CounterVec
	joins      *prometheus.CounterVec
	renewals   *prometheus.CounterVec
	csrs       *prometheus.CounterVec
	pending    prometheus.Gauge
	// accessExpiry has a tenant's series while the tenant is there.
	accessExpiry *prometheus.GaugeVec
}

// NewMetrics registers the package's metrics; reg nil = count and show nobody.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	return &Metrics{
		enrolments: f.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_enrolments_total",
			Help: "Answers to enrolment requests, by outcome: enrolled, again (same key, same node), pending, or why not.",
		}, []string{"outcome"}),
		joins: f.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_joins_total",
			Help: "Answers to requests of enrolled nodes for what their kubelet needs, by outcome.",
		}, []string{"outcome"}),
		renewals: f.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_renewals_total",
			Help: "Answers to nodes that asked for a new certificate with their key, by outcome.",
		}, []string{"outcome"}),
		csrs: f.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_kubelet_csrs_total",
			Help: "Certificate requests of kubelets, by signer (client, serving) and outcome (approved, left).",
		}, []string{"signer", "outcome"}),
		pending: f.NewGauge(prometheus.GaugeOpts{
			Name: "mooring_pending_boxes",
			Help: "Boxes that wait for an operator's approval.",
		}),
		accessExpiry: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mooring_tenant_access_expiry_timestamp_seconds",
			Help: "When the token of the broker's account at the tenant's API server ends; it is renewed at a third of its life.",
		}, []string{"tenant"}),
	}
}
