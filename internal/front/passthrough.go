package front

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/internal/underway"
)

// Upstreams is where names lead; *tenant.Registry.
type Upstreams interface {
	// ByHost returns the tenant to which a server name leads.
	ByHost(name string) (tenant string, ok bool)
	// DialAPIFor connects to a tenant's API server for a client.
	DialAPIFor(ctx context.Context, tenant string, client net.Addr) (net.Conn, error)
}

// Passthrough says where connections lead that ask for a tenant's name. Their peers show themselves to the API server, and never here: they
// are bounded as long as they live.
type Passthrough struct {
	// Upstreams knows the names. nil: no name leads anywhere.
	Upstreams Upstreams
	// Enter is asked for each connection, like Config.Enter; leave is called at its end. nil: no bound.
	Enter func(remote net.Addr) (leave func(), err error)
	// MaxPerTenant bounds the connections to one tenant; 0 = none.
	MaxPerTenant int
	// DialTimeout bounds the connecting to the API server. Default 10 s.
	DialTimeout time.Duration
}

const (
	// reserved begins the names of all protocols of ours, also of such as this build does not know.
	reserved = "mooring"
	// helloWriteTimeout bounds the writing of the ClientHello to an API server that has just taken the connection.
	helloWriteTimeout = 10 * time.Second
	// logEvery is the least time between two lines of log about one tenant's bound.
	logEvery = time.Minute
)

var (
	errTenantFull = errors.New("too many connections to this tenant's API server")
	errRemoved    = errors.New("this tenant was removed")
)

// lines are the connections that are passed on.
type lines struct {
	cfg   Passthrough
	log   *slog.Logger
	open  *prometheus.GaugeVec
	total *prometheus.CounterVec
	all   underway.Count

	mu      sync.Mutex // guards the following
	tenants map[string]*tenantLines
}

// tenantLines are those of one tenant, from its first to its last.
type tenantLines struct {
	ctx    context.Context
	cut    context.CancelCauseFunc
	n      int
	logged time.Time // when its bound was last logged
}

func newLines(cfg Passthrough, reg prometheus.Registerer, log *slog.Logger) *lines {
	if cfg.Enter == nil {
		cfg.Enter = func(net.Addr) (func(), error) { return func() {}, nil }
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = 10 * time.Second
	}
	l := &lines{
		cfg: cfg, log: log, tenants: map[string]*tenantLines{},
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mooring_passthrough_connections",
			Help: "Connections that are passed on to a tenant's API server, by SNI.",
		}, []string{"tenant"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_passthrough_connections_total",
			Help: "Connections that asked for a tenant's API server, by what came of it: passed, unreachable (the API server), tenant_limit, limit (in all, or of one source).",
		}, []string{"tenant", "outcome"}),
	}
	if reg != nil {
		reg.MustRegister(l.open, l.total)
	}
	return l
}

// find returns the tenant to which a hello leads.
func (l *lines) find(hello clientHello) (tenant string, ok bool) {
	if l.cfg.Upstreams == nil || hello.serverName == "" || slices.ContainsFunc(hello.protocols, ours) {
		return "", false
	}
	return l.cfg.Upstreams.ByHost(hello.serverName)
}

func ours(protocol string) bool {
	rest, ok := strings.CutPrefix(protocol, reserved)
	return ok && strings.ContainsAny(rest[:min(1, len(rest))], "/-")
}

// pass carries a connection to a tenant's API server, until both have ended, the tenant is removed, or ctx ends.
func (l *lines) pass(ctx context.Context, conn *guest, to destination) {
	defer conn.Close()
	log := l.log.With("tenant", to.tenant, "remote", conn.RemoteAddr().String())
	cut, leave, err := l.enter(to, conn.RemoteAddr())
	if err != nil {
		log.Debug("connection to an API server closed at once", "err", err)
		return
	}
	defer leave()
	// The tenant may have been removed since its name was looked up, and forgotten before its connection was here.
	if now, ok := l.cfg.Upstreams.ByHost(to.name); !ok || now != to.tenant {
		return
	}
	conn.Admitted() // its place is here now
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(cut, func() { cancel(context.Cause(cut)) })()

	api, err := l.dial(ctx, conn, to)
	if err != nil {
		if ctx.Err() == nil {
			l.total.WithLabelValues(to.tenant, "unreachable").Inc()
		}
		log.Debug("connection to an API server closed: it can't be reached", "err", err)
		return
	}
	if ctx.Err() == nil { // else the tenant was removed, and nothing more is counted of it
		l.total.WithLabelValues(to.tenant, "passed").Inc()
	}
	began, client := time.Now(), socket(conn)
	first := int64(len(to.hello))
	to.hello, conn.r = nil, nil // it may be here for days
	defer context.AfterFunc(ctx, func() {
		splice.Abort(client)
		splice.Abort(api)
	})()
	up, down, err := splice.Splice(client, api)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	log.Debug("connection to an API server ended", "sni", to.name, "up", up+first, "down", down, "after", time.Since(began), "err", err)
}

// dial connects to the API server, and gives it the hello.
func (l *lines) dial(ctx context.Context, conn *guest, to destination) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.DialTimeout)
	defer cancel()
	api, err := l.cfg.Upstreams.DialAPIFor(ctx, to.tenant, conn.RemoteAddr())
	if err != nil {
		return nil, err
	}
	_ = api.SetWriteDeadline(time.Now().Add(helloWriteTimeout))
	if _, err := api.Write(to.hello); err != nil {
		api.Close()
		return nil, err
	}
	return api, api.SetWriteDeadline(time.Time{})
}

// socket is the connection beneath all that wraps it: what was read of it has been passed on, and the socket alone can be waited on
// without a buffer.
func socket(c net.Conn) net.Conn {
	for {
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = w.NetConn()
	}
}

// enter gives a connection its place. cut ends when the tenant is removed; leave gives the place back.
func (l *lines) enter(to destination, remote net.Addr) (cut context.Context, leave func(), err error) {
	out, err := l.cfg.Enter(remote)
	if err != nil {
		l.total.WithLabelValues(to.tenant, "limit").Inc()
		return nil, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tenants[to.tenant]
	if t == nil {
		t = &tenantLines{}
		t.ctx, t.cut = context.WithCancelCause(context.Background())
		l.tenants[to.tenant] = t
	}
	if l.cfg.MaxPerTenant > 0 && t.n >= l.cfg.MaxPerTenant {
		out()
		l.total.WithLabelValues(to.tenant, "tenant_limit").Inc()
		if now := time.Now(); now.Sub(t.logged) >= logEvery {
			t.logged = now
			l.log.Warn("connections to a tenant's API server are closed at once: see front.passthrough in the configuration", "tenant", to.tenant, "remote", remote.String(), "open", t.n, "err", errTenantFull)
		}
		return nil, nil, errTenantFull
	}
	t.n++
	end := l.all.Begin()
	l.open.WithLabelValues(to.tenant).Set(float64(t.n))
	leave = sync.OnceFunc(func() { out(); l.leave(to.tenant, t); end() })
	return t.ctx, leave, nil
}

func (l *lines) leave(tenant string, t *tenantLines) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t.n--
	if l.tenants[tenant] == t { // else it is another of the same name by now
		if l.open.WithLabelValues(tenant).Set(float64(t.n)); t.n == 0 {
			l.open.DeleteLabelValues(tenant)
			delete(l.tenants, tenant)
			t.cut(nil)
		}
	}
}

// Forget cuts the connections that are passed on to a tenant, and forgets what was counted of it: it was removed.
func (s *Server) Forget(tenant string) {
	l := s.lines
	l.mu.Lock()
	t := l.tenants[tenant]
	delete(l.tenants, tenant)
	l.open.DeleteLabelValues(tenant)
	l.total.DeletePartialMatch(prometheus.Labels{"tenant": tenant})
	l.mu.Unlock()
	if t != nil {
		t.cut(errRemoved)
	}
}

// Passing is how many connections are passed on.
func (s *Server) Passing() int { return s.lines.all.N() }

// WaitIdle returns when no connection is passed on any more, or ctx has ended.
func (s *Server) WaitIdle(ctx context.Context) { s.lines.all.WaitIdle(ctx) }
