package kamaji

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
)

// metrics are those of the broker that leads; the others show none.
type metrics struct {
	looks   prometheus.Counter
	updates prometheus.Counter
	planes  *prometheus.GaugeVec
	leading prometheus.Gauge

	mu     sync.Mutex // guards the following field
	states map[types.NamespacedName]string
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		looks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mooring_kamaji_looks_total", Help: "Times that a TenantControlPlane was looked at, labelled or not.",
		}),
		updates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mooring_kamaji_writes_total", Help: "Objects of the management cluster that were written for Kamaji's control planes.",
		}),
		planes: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mooring_kamaji_control_planes", Help: "Labelled TenantControlPlanes by how they stand: Ready, Waiting, Failed.",
		}, []string{"state"}),
		leading: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mooring_kamaji_leading", Help: "1 while this broker is the one that looks after Kamaji's control planes.",
		}),
		states: map[types.NamespacedName]string{},
	}
	if r != nil {
		r.MustRegister(m.looks, m.updates, m.planes, m.leading)
	}
	return m
}

func (m *metrics) set(key types.NamespacedName, state string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.states[key] = state
	m.tell()
}

func (m *metrics) forget(key types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.states, key)
	m.tell()
}

// lead says whether this broker leads; what was known of the control planes is forgotten with the lead.
func (m *metrics) lead(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leading.Set(0)
	if yes {
		m.leading.Set(1)
		return
	}
	clear(m.states)
	m.planes.Reset()
}

// tell sets the gauges; m.mu is held.
func (m *metrics) tell() {
	count := map[string]int{StateReady: 0, StateWaiting: 0, StateFailed: 0}
	for _, s := range m.states {
		count[s]++
	}
	for s, n := range count {
		m.planes.WithLabelValues(s).Set(float64(n))
	}
}
