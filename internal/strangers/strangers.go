// Package strangers bounds what those may cost a public port who have not shown yet who they are: how many of their
// connections there are, and how fast new ones come, in all and from one source.
//
// It opens, reads and closes nothing. Who accepts connections asks Door.Enter for each, closes what that refuses, and
// calls leave once the peer is known or gone. A source is an IPv4 address or an IPv6 /64, which is what one site has.
package strangers

import (
	"cmp"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// Limits are a door's bounds; 0 = none.
type Limits struct {
	// Max is how many strangers there may be at once, MaxPerSource how many of one source.
	Max, MaxPerSource int
	// Rate is how many may come in a second, RatePerSource how many of one source.
	Rate, RatePerSource int
	// Burst is how many seconds' worth of a rate may come at once. 0 = 4: a fleet that comes back after a cut is such a burst.
	Burst int
}

const defaultBurst = 4

// maxSources bounds the memory of sources, to some 15 MB. More of them at one time share one account.
const maxSources = 1 << 16

// logEvery is the least time between two lines of log about refusals.
const logEvery = time.Minute

// Why a stranger is refused; the metric's reasons.
var (
	ErrTooMany       = errors.New("too many connections that have not authenticated")
	ErrSourceTooMany = errors.New("too many connections from one source that have not authenticated")
	ErrTooFast       = errors.New("new connections come too fast")
	ErrSourceTooFast = errors.New("new connections come too fast from one source")
)

var reasons = map[error]string{
	ErrTooMany: "total", ErrSourceTooMany: "source", ErrTooFast: "rate", ErrSourceTooFast: "source_rate",
}

// Config is what a Door is made of.
type Config struct {
	// Port names the door in metrics and logs.
	Port string
	// Limits of the door.
	Limits Limits
	// Registerer takes the metrics; nil leaves them out.
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Door counts strangers. Safe for concurrent use.
type Door struct {
	limits  Limits
	log     *slog.Logger
	inside  prometheus.Gauge
	refused *prometheus.CounterVec

	mu      sync.Mutex // guards the following
	total   int
	rate    *rate.Limiter
	sources map[netip.Prefix]*source
	swept   time.Time // when sources was last gone through
	logged  time.Time // when a refusal was last logged
	silent  int       // refusals since
}

// source is one address's account.
type source struct {
	open int
	rate *rate.Limiter
}

// NewDoor makes a Door; it starts nothing.
func NewDoor(cfg Config) *Door {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Limits.Burst = cmp.Or(cfg.Limits.Burst, defaultBurst)
	labels := prometheus.Labels{"port": cfg.Port}
	d := &Door{
		limits:  cfg.Limits,
		log:     cfg.Logger.With("port", cfg.Port),
		rate:    limiter(cfg.Limits.Rate, cfg.Limits.Burst),
		sources: map[netip.Prefix]*source{},
		inside: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mooring_unauthenticated_connections", ConstLabels: labels,
			Help: "Connections whose peer has not shown yet who it is.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_connections_refused_total", ConstLabels: labels,
			Help: "Connections closed at once, over a bound on those that have not authenticated: total, source (too many at a time), rate, source_rate (too fast).",
		}, []string{"reason"}),
	}
	for _, r := range reasons {
		d.refused.WithLabelValues(r)
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(d.inside, d.refused)
	}
	return d
}

func limiter(perSecond, burst int) *rate.Limiter {
	if perSecond <= 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(perSecond), perSecond*burst)
}

// Enter asks for a place for a connection from remote; nil, or an address that is none of IP, stands for a source that
// nobody has proven, which counts in all only. leave gives the place back, once: when the peer has authenticated, or is
// gone; further calls do nothing. The error is one of this package's, and wants the connection closed at once.
func (d *Door) Enter(remote net.Addr) (leave func(), err error) {
	from, known := sourceOf(remote)
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	var s *source
	if known {
		s, from = d.account(from, now)
	}
	if err := d.admit(s, now); err != nil {
		d.refuse(err, remote, now)
		return nil, err
	}
	d.total++
	if s != nil {
		s.open++
	}
	d.inside.Set(float64(d.total))
	return sync.OnceFunc(func() { d.leave(s, from) }), nil
}

// admit takes one of the rates' tokens, the source's first: what one source has too much of costs the others nothing.
// d.mu is held.
func (d *Door) admit(s *source, now time.Time) error {
	switch {
	case s != nil && d.limits.MaxPerSource > 0 && s.open >= d.limits.MaxPerSource:
		return ErrSourceTooMany
	case d.limits.Max > 0 && d.total >= d.limits.Max:
		return ErrTooMany
	case s != nil && !s.rate.AllowN(now, 1):
		return ErrSourceTooFast
	case !d.rate.AllowN(now, 1):
		return ErrTooFast
	}
	return nil
}

func (d *Door) leave(s *source, from netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total--
	d.inside.Set(float64(d.total))
	if s == nil {
		return
	}
	s.open--
	if d.limits.RatePerSource <= 0 && s.open == 0 { // with a rate the account is kept until that is whole again
		delete(d.sources, from)
	}
}

// account is a source's; d.mu is held.
func (d *Door) account(from netip.Prefix, now time.Time) (*source, netip.Prefix) {
	if s := d.sources[from]; s != nil {
		return s, from
	}
	if len(d.sources) >= maxSources {
		d.sweep(now)
	}
	if len(d.sources) >= maxSources {
		from = netip.Prefix{} // the account of those for whom there is no room
		if s := d.sources[from]; s != nil {
			return s, from
		}
	}
	s := &source{rate: limiter(d.limits.RatePerSource, d.limits.Burst)}
	d.sources[from] = s
	return s, from
}

// sweep forgets the sources that a new account would not differ from, once a second at most. d.mu is held.
func (d *Door) sweep(now time.Time) {
	if now.Sub(d.swept) < time.Second {
		return
	}
	d.swept = now
	for from, s := range d.sources {
		if s.open == 0 && s.rate.TokensAt(now) >= float64(s.rate.Burst()) {
			delete(d.sources, from)
		}
	}
}

// refuse counts a refusal, and logs one of many. d.mu is held.
func (d *Door) refuse(err error, remote net.Addr, now time.Time) {
	d.refused.WithLabelValues(reasons[err]).Inc()
	if !d.logged.IsZero() && now.Sub(d.logged) < logEvery {
		d.silent++
		return
	}
	what := "an address not proven"
	if remote != nil {
		what = remote.String()
	}
	d.log.Warn("connections are closed at once: see the limits in the configuration, and the metric mooring_connections_refused_total",
		"remote", what, "err", err, "unauthenticated", d.total, "sinceLastLine", d.silent+1)
	d.logged, d.silent = now, 0
}

// sourceOf is the unit by which sources are counted: an IPv4 address, or an IPv6 /64, of which one host has all.
func sourceOf(a net.Addr) (netip.Prefix, bool) {
	var ip netip.Addr
	switch a := a.(type) {
	case *net.TCPAddr:
		ip = a.AddrPort().Addr()
	case *net.UDPAddr:
		ip = a.AddrPort().Addr()
	}
	if !ip.IsValid() {
		return netip.Prefix{}, false
	}
	ip = ip.Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, err := ip.Prefix(bits)
	return p, err == nil
}
