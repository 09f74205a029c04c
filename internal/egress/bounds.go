package egress

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// guests is a listener that closes at once what enter refuses.
type guests struct {
	net.Listener
	enter func(net.Addr) (func(), error)
}

func (l guests) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		leave, err := l.enter(c.RemoteAddr())
		if err != nil {
			c.Close()
			continue
		}
		return &guest{Conn: c, leave: leave}, nil
	}
}

// guest is a connection whose peer nobody knows yet.
type guest struct {
	net.Conn
	leave func()
}

func (c *guest) Close() error {
	c.leave()
	return c.Conn.Close()
}

// NetConn lets the splice reach the TCP connection below, to reset it.
func (c *guest) NetConn() net.Conn { return c.Conn }

type guestKey struct{}

// withGuest keeps a connection's guest where its requests find it; it is an http.Server's ConnContext.
func withGuest(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		if g, ok := t.NetConn().(*guest); ok {
			return context.WithValue(ctx, guestKey{}, g)
		}
	}
	return ctx
}

// admitted says that the peer of a request's connection is known.
func admitted(ctx context.Context) {
	if g, ok := ctx.Value(guestKey{}).(*guest); ok {
		g.leave()
	}
}

// pending counts each tenant's dials that wait for an answer.
type pending struct {
	max   int
	gauge *prometheus.GaugeVec

	mu      sync.Mutex
	tenants map[string]int // guarded by mu
}

func newPending(most int) *pending {
	return &pending{max: most, tenants: map[string]int{}, gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "mooring_egress_pending_dials",
		Help: "Dials of API servers that wait for an answer, by tenant. At egress.maxPending more are refused as overloaded.",
	}, []string{"tenant"})}
}

// begin takes a place for one dial. end gives it back.
func (p *pending) begin(tenant string) (end func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tenants[tenant] >= p.max {
		return nil, &tunnel.RefusedError{Code: wire.Overloaded, Message: fmt.Sprintf("%d dials of this tenant wait for an answer already", p.max)}
	}
	p.tenants[tenant]++
	p.gauge.WithLabelValues(tenant).Inc()
	return func() { p.end(tenant) }, nil
}

func (p *pending) end(tenant string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gauge.WithLabelValues(tenant).Dec()
	if p.tenants[tenant]--; p.tenants[tenant] == 0 {
		delete(p.tenants, tenant)
	}
}
