package egress

import (
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/bulk"
	"github.com/mooring-edge/mooring/internal/processors"
	"github.com/mooring-edge/mooring/internal/strangers"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// guests is a listener that closes at once what enter refuses.
type guests struct {
	net.Listener
	enter func(net.Addr) (func(), error)
	turns *strangers.Turns
}

// next returns the next one that is let in.
func (l guests) next() (*guest, error) {
	for {
		c, err := l.Accept()
		if err != nil {
			return nil, err
		}
		leave, err := l.enter(c.RemoteAddr())
		if err != nil {
			c.Close()
			continue
		}
		return &guest{Conn: bulk.New(c), leave: leave, turn: l.turns.Join(c.RemoteAddr())}, nil
	}
}

// guest is a connection whose peer nobody knows yet. What is computed for it, a handshake first of all, is by turns with
// the others of its source: from when something was read to when more is wanted, or an answer written.
type guest struct {
	net.Conn
	leave func()
	turn  *strangers.Turn
}

func (c *guest) Read(p []byte) (int, error) {
	c.turn.Give()
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.turn.Take()
	}
	return n, err
}

func (c *guest) Write(p []byte) (int, error) {
	c.turn.Give()
	return c.Conn.Write(p)
}

func (c *guest) Close() error {
	c.known()
	return c.Conn.Close()
}

// known says that nothing needs to be bounded any more.
func (c *guest) known() {
	c.turn.Leave()
	c.leave()
}

// NetConn lets the splice reach the TCP connection below, to reset it.
func (c *guest) NetConn() net.Conn { return c.Conn }

// requests counts what is under way for each tenant, and keeps the metrics of that.
type requests struct {
	max   int
	gauge *prometheus.GaugeVec
	dials *prometheus.HistogramVec

	mu      sync.Mutex
	tenants map[string]*underWay // guarded by mu; none for a tenant of which nothing is
}

type underWay struct {
	active    int  // requests that are not yet answered
	waiting   int  // of these, dials that wait for a node
	forgotten bool // the tenant is gone: the last drops the metrics
}

func newRequests(most int) *requests {
	return &requests{max: most, tenants: map[string]*underWay{}, dials: newDials(), gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "mooring_egress_pending_dials",
		Help: "Dials of API servers that wait for an answer, by tenant. At egress.maxPending more are refused as overloaded.",
	}, []string{"tenant"})}
}

// enter notes a request, leave that it was answered.
func (q *requests) enter(tenant string) (leave func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.tenants[tenant]
	if u == nil {
		u = &underWay{}
		q.tenants[tenant] = u
	}
	u.active++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if u.active--; u.active > 0 {
			return
		}
		delete(q.tenants, tenant)
		if u.forgotten {
			q.drop(tenant)
		}
	}
}

// begin takes a place for one dial of a request that was entered. end gives it back.
func (q *requests) begin(tenant string) (end func(), err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.tenants[tenant]
	if u.waiting >= q.max {
		return nil, &tunnel.RefusedError{Code: wire.Overloaded, Message: fmt.Sprintf("%d dials of this tenant wait for an answer already", q.max)}
	}
	u.waiting++
	q.gauge.WithLabelValues(tenant).Inc()
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		u.waiting--
		q.gauge.WithLabelValues(tenant).Dec()
	}, nil
}

// observe notes how a dial of a request that was entered was answered. The exemplar leads from a slow bucket to the logs.
func (q *requests) observe(tenant string, code wire.Code, took time.Duration, trace wire.Trace) {
	o := q.dials.WithLabelValues(tenant, code.String())
	o.(prometheus.ExemplarObserver).ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": trace.String()})
}

// forget drops a tenant's metrics, now or with the last request that is under way: that would bring them back. Should
// the tenant be added again meanwhile, its counts may begin once more from 0.
func (q *requests) forget(tenant string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if u := q.tenants[tenant]; u != nil {
		u.forgotten = true
		return
	}
	q.drop(tenant)
}

// drop is called with mu held.
func (q *requests) drop(tenant string) {
	of := prometheus.Labels{"tenant": tenant}
	q.dials.DeletePartialMatch(of)
	q.gauge.DeletePartialMatch(of)
}

// handshakesEach is how many handshakes of one source are computed at a time: half of the processors, and two at least, so
// that one which the system has put aside does not hold up the rest.
func handshakesEach() int { return max(2, processors.Most()/2) }
