package switchboard

import "github.com/prometheus/client_golang/prometheus"

var sessionsDesc = prometheus.NewDesc("mooring_sessions",
	"Nodes connected to this broker now, by tenant and transport.", []string{"tenant", "transport"}, nil)

// collector counts the live sessions when it is asked to: no gauge that could drift from the truth.
type collector struct{ board *Board }

func (c *collector) Describe(out chan<- *prometheus.Desc) { out <- sessionsDesc }

func (c *collector) Collect(out chan<- prometheus.Metric) {
	for key, n := range c.board.count() {
		out <- prometheus.MustNewConstMetric(sessionsDesc, prometheus.GaugeValue, float64(n), key[0], key[1])
	}
}

func (b *Board) count() map[[2]string]int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	n := map[[2]string]int{}
	for tenant, nodes := range b.sessions {
		for _, s := range nodes {
			n[[2]string{tenant, string(s.Transport())}]++
		}
	}
	for tenant, nodes := range b.agents {
		for _, of := range nodes {
			n[[2]string{tenant, string(of[len(of)-1].Transport())}]++
		}
	}
	return n
}
