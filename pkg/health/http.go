package health

import (
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Handler serves /livez, /readyz and /metrics (of g; none if nil). It shows nothing secret and changes nothing.
func (t *Tracker) Handler(g prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", t.serveLive)
	mux.HandleFunc("GET /readyz", t.serveReady)
	if g != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	}
	return mux
}

func (t *Tracker) serveLive(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if ok, age := t.Alive(); !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "stuck: the main loop last went round %s ago (limit %s)\n", age.Round(time.Second), t.cfg.BeatLimit)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (t *Tracker) serveReady(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	missing := t.NotReady()
	if len(missing) == 0 {
		fmt.Fprintln(w, "ok")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	for _, c := range missing {
		fmt.Fprintf(w, "not ready: %s: %s (%s since %s)\n", c.Type, c.Message, c.Reason, c.Since.UTC().Format(time.RFC3339))
	}
}

// Collector exposes the conditions as gauges:
//
//	mooring_condition{type="Tunnel"}  1 true, 0 false, -1 unknown
//	mooring_ready                     1 when every condition that readiness needs is true
//	mooring_beat_age_seconds          since the main loop last went round
//
// The caller registers it where it likes.
func (t *Tracker) Collector() prometheus.Collector { return collector{t} }

var (
	condDesc  = prometheus.NewDesc("mooring_condition", "State of a condition: 1 true, 0 false, -1 unknown.", []string{"type"}, nil)
	readyDesc = prometheus.NewDesc("mooring_ready", "1 when every condition that readiness needs is true.", nil, nil)
	beatDesc  = prometheus.NewDesc("mooring_beat_age_seconds", "Seconds since the main loop last went round.", nil, nil)
)

type collector struct{ t *Tracker }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- condDesc
	ch <- readyDesc
	ch <- beatDesc
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	value := map[Status]float64{True: 1, False: 0, Unknown: -1}
	for _, cond := range c.t.Conditions() {
		ch <- prometheus.MustNewConstMetric(condDesc, prometheus.GaugeValue, value[cond.Status], cond.Type)
	}
	ready := 0.0
	if len(c.t.NotReady()) == 0 {
		ready = 1
	}
	ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, ready)
	_, age := c.t.Alive()
	ch <- prometheus.MustNewConstMetric(beatDesc, prometheus.GaugeValue, age.Seconds())
}
