package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/rounds"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	defaultBackoffMin   = 500 * time.Millisecond
	defaultBackoffMax   = 60 * time.Second
	defaultTickInterval = 5 * time.Second
	defaultProbeMin     = time.Minute
	defaultProbeMax     = 30 * time.Minute
	defaultRetire       = time.Hour
	// turnedAwayMax takes the place of BackoffMax where the broker answered that it takes nobody for the moment: a fleet that
	// comes back at once is let in within seconds, and those who are turned away a few times must not wait for minutes.
	turnedAwayMax = 10 * time.Second
	// lastingSession is how long a session must have been up for the backoff to start again.
	lastingSession = 10 * time.Second
)

// ClientConfig is what a Client needs. The zero value of each field means its default.
type ClientConfig struct {
	// Dialer is asked before each attempt. It must be set. With TransportAuto, Dialer.First is the client's to choose.
	Dialer func() *Dialer
	// OnUp is called with each new session, OnDown with the reason each time one
	// ended or could not be made; both from the client's loop, which waits. May be nil.
	// A session that took the place of one that goes on (a handover) is told by OnUp alone.
	OnUp   func(*Session)
	OnDown func(error)
	// Network names the network that this machine is in now; what is learned of transports is remembered by it.
	// nil: there is one.
	Network func() string
	// ProbeMin is how long a session on TCP lives before QUIC is tried again (default 1 min), if the transport is
	// TransportAuto; doubled with each time that it comes to nothing, up to ProbeMax (default 30 min). All with a jitter
	// of half of it. A QUIC that answers takes over, and what runs over TCP goes on there.
	ProbeMin, ProbeMax time.Duration
	// Remembered is what OnRemember was last given, in an earlier life. OnRemember is called from the client's loop,
	// which waits, when there is something new to remember. Both may be nil. Bytes that are no memory are ignored.
	Remembered []byte
	OnRemember func([]byte)
	// RetireTimeout bounds how long a session that another took over from goes on for the sake of its streams. Default 1 h.
	RetireTimeout time.Duration
	// Tick is called from the client's loop about every TickInterval (default
	// 5 s), when the wall clock shows a multiple of it, as long as that loop goes round. May be nil.
	Tick         func()
	TickInterval time.Duration
	// BackoffMin and BackoffMax bound the wait before a new attempt: a random part
	// of a span that starts at BackoffMin (default 0.5 s), doubles with each failure
	// up to BackoffMax (default 60 s; 10 s where the broker turned this one away at its
	// port, over a limit), and starts again after a session that lasted 10 s.
	BackoffMin, BackoffMax time.Duration
	// Pace is told why a session ended or could not be made, and says how long to wait
	// at least before the next attempt. May be nil: no longer than the backoff.
	Pace func(error) time.Duration
	// Logger defaults to discarding.
	Logger *slog.Logger

	dial   func(context.Context, *Dialer) (*Session, error) // tests
	jitter func(time.Duration) time.Duration                // tests
}

// Client keeps a session up: it dials, waits for its end, and dials again.
type Client struct {
	cfg    ClientConfig
	policy *policy // used by Run's goroutine alone

	mu      sync.Mutex // guards the following
	current *Session   // nil: none is up
	changed chan struct{}

	wake  chan struct{} // holds one
	renew chan struct{} // holds one: the session that is up is to be replaced
}

// NewClient makes a Client. It starts nothing.
func NewClient(c ClientConfig) *Client {
	setDefault(&c.TickInterval, defaultTickInterval)
	setDefault(&c.BackoffMin, defaultBackoffMin)
	setDefault(&c.BackoffMax, defaultBackoffMax)
	c.BackoffMax = max(c.BackoffMax, c.BackoffMin)
	setDefault(&c.ProbeMin, defaultProbeMin)
	setDefault(&c.ProbeMax, defaultProbeMax)
	c.ProbeMax = max(c.ProbeMax, c.ProbeMin)
	setDefault(&c.RetireTimeout, defaultRetire)
	if c.OnUp == nil {
		c.OnUp = func(*Session) {}
	}
	if c.OnDown == nil {
		c.OnDown = func(error) {}
	}
	if c.Network == nil {
		c.Network = func() string { return "" }
	}
	if c.OnRemember == nil {
		c.OnRemember = func([]byte) {}
	}
	if c.Tick == nil {
		c.Tick = func() {}
	}
	if c.Pace == nil {
		c.Pace = func(error) time.Duration { return 0 }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.dial == nil {
		c.dial = func(ctx context.Context, d *Dialer) (*Session, error) { return d.Dial(ctx) }
	}
	if c.jitter == nil {
		c.jitter = func(d time.Duration) time.Duration { return rand.N(d + 1) }
	}
	p := newPolicy(c.ProbeMin, c.ProbeMax)
	p.restore(c.Remembered)
	return &Client{cfg: c, policy: p, changed: make(chan struct{}), wake: make(chan struct{}, 1), renew: make(chan struct{}, 1)}
}

// Open opens a stream on the session that is up, or waits for one. One that takes no more streams is
// not asked again: the next is waited for. Errors are those of Session.Open, or ctx's.
func (c *Client) Open(ctx context.Context, kind wire.Kind, target string) (*Stream, error) {
	for {
		s, changed, err := c.await(ctx)
		if err != nil {
			return nil, err
		}
		st, err := s.Open(ctx, kind, target)
		var refused *RefusedError
		if err == nil || !errors.As(err, &refused) || refused.Code != wire.Draining {
			return st, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// Session returns the session that is up, or waits for one. One that is
// draining counts as up until it has ended: its open streams go on.
func (c *Client) Session(ctx context.Context) (*Session, error) {
	s, _, err := c.await(ctx)
	return s, err
}

// await also returns a channel that is closed when the session is no longer the one that is up.
func (c *Client) await(ctx context.Context) (*Session, <-chan struct{}, error) {
	for {
		c.mu.Lock()
		s, changed := c.current, c.changed
		c.mu.Unlock()
		if s != nil && s.Err() == nil {
			return s, changed, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("wait for the tunnel to be up: %w", context.Cause(ctx))
		}
	}
}

// Wake ends the wait for the next attempt, if there is one; an attempt that is under way is followed by
// another at once, should it fail. It is for when the cause of a failure is known to be gone. It
// does nothing to a session that is up.
func (c *Client) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Renew has the session that is up replaced by a new one, as Dialer makes it then, with its certificate of then: the new one is
// made first, and what runs on the old one goes on there (a handover). It is tried again until it comes about. Where no session is up
// it does nothing: the next attempt asks Dialer anyway.
func (c *Client) Renew() {
	select {
	case c.renew <- struct{}{}:
	default:
	}
}

// unrenew forgets a Renew: what is dialled from now on is new.
func (c *Client) unrenew() {
	select {
	case <-c.renew:
	default:
	}
}

// unwake forgets a Wake that was about something before.
func (c *Client) unwake() {
	select {
	case <-c.wake:
	default:
	}
}

func (c *Client) setCurrent(s *Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = s
	close(c.changed)
	c.changed = make(chan struct{})
}

// Run keeps a session up until ctx ends, then closes it and returns nil when
// nothing of it runs any more.
func (c *Client) Run(ctx context.Context) error {
	if c.cfg.Dialer == nil {
		return errors.New("tunnel client: no dialer")
	}
	l := &clientLoop{Client: c, ticks: time.NewTimer(rounds.Until(c.cfg.TickInterval))}
	defer l.ticks.Stop()
	c.cfg.Tick()
	for ctx.Err() == nil {
		wait := l.once(ctx)
		l.pause(ctx, wait)
	}
	l.tickWhile(l.past.Wait)
	return nil
}

// clientLoop is the state of a running Client.
type clientLoop struct {
	*Client
	ticks    *time.Timer
	failures int            // attempts in a row that led to no lasting session
	choosing bool           // the transport of the last attempt was the policy's choice
	network  string         // it was made in, if so
	since    time.Time      // when the session that is up came up
	past     sync.WaitGroup // sessions that ended and whose handlers are on their way out
}

// once dials a session, stays until it and those that took over from it have ended, and returns how long to wait.
func (c *clientLoop) once(ctx context.Context) time.Duration {
	c.unwake()
	c.unrenew()
	s, err := c.connect(ctx)
	if ctx.Err() != nil {
		if s != nil {
			c.hangUp(s)
		}
		return 0
	}
	if err != nil {
		wait := max(c.backoff(err), c.cfg.Pace(err))
		c.cfg.Logger.Warn("the broker can not be reached; trying again", "err", err, "wait", wait)
		c.cfg.OnDown(err)
		return wait
	}
	for next := s; next != nil; {
		s = next
		c.up(s)
		next = c.stay(ctx, s)
	}
	c.unwake() // else all nodes that have renewed since would come back at once when a broker restarts
	c.setCurrent(nil)
	if ctx.Err() != nil {
		c.hangUp(s)
		c.cfg.OnDown(s.Err())
		return 0
	}
	return c.down(s)
}

// up makes s the session that is up.
func (c *clientLoop) up(s *Session) {
	c.since = time.Now()
	c.cfg.Logger.Info("the tunnel is up", "transport", string(s.Transport()), "remote", s.RemoteAddr().String())
	c.setCurrent(s)
	c.cfg.OnUp(s)
}

// down takes leave of s, which has ended, and returns how long to wait.
func (c *clientLoop) down(s *Session) time.Duration {
	c.past.Go(s.wait)
	lasted := time.Since(c.since)
	if lasted >= lastingSession {
		c.failures = 0
	}
	var closed *ClosedError
	if errors.As(s.Err(), &closed) && c.choosing {
		c.policy.down(c.network, s.Transport(), closed.Code, lasted)
	}
	wait := max(c.backoff(nil), c.cfg.Pace(s.Err()))
	if delay, asked := s.leaving.asks(); asked && delay > 0 {
		wait = c.cfg.jitter(delay)
	}
	c.cfg.Logger.Warn("the tunnel is down; connecting again", "transport", string(s.Transport()), "err", s.Err(), "wait", wait)
	c.cfg.OnDown(s.Err())
	return wait
}

// connect dials beside the loop, so that that goes on ticking.
func (c *clientLoop) connect(ctx context.Context) (s *Session, err error) {
	d := c.dialer()
	c.tickWhile(func() { s, err = c.cfg.dial(ctx, d) })
	c.learn(s, err)
	return s, err
}

// dialer makes the next attempt's, with the transport that the policy has first.
func (c *clientLoop) dialer() *Dialer {
	own := *c.cfg.Dialer() // a copy: what is set here is of this attempt
	d := &own
	c.choosing = d.chooses()
	if c.choosing {
		c.network = c.cfg.Network()
		d.First = c.policy.first(c.network, time.Now())
	}
	return d
}

// learn takes note of what came of an attempt with both transports.
func (c *clientLoop) learn(s *Session, err error) {
	switch {
	case !c.choosing:
		return
	case err != nil:
		c.policy.failed()
		return
	}
	c.policy.up(c.network, s.Transport(), time.Now())
	c.remember()
}

// remember hands on what is new to be kept.
func (c *clientLoop) remember() {
	if b := c.policy.remembers(); b != nil {
		c.cfg.OnRemember(b)
	}
}

func (c *clientLoop) hangUp(s *Session) {
	c.tickWhile(func() {
		_ = s.Close(wire.Shutdown, "the agent is stopping")
		s.wait()
	})
}

// backoff returns the next wait: full jitter over a span that doubles. err is why there was no session; nil: there was one.
func (c *clientLoop) backoff(err error) time.Duration {
	span := c.span(c.failures)
	c.failures++
	if turnedAway(err) {
		span = min(span, turnedAwayMax)
	}
	return c.cfg.jitter(span)
}

// span is what a wait is a random part of, after so many failures.
func (c *clientLoop) span(failures int) time.Duration {
	if failures < 30 && c.cfg.BackoffMin<<failures < c.cfg.BackoffMax {
		return c.cfg.BackoffMin << failures
	}
	return c.cfg.BackoffMax
}

// pause waits for d or a Wake, ticking.
func (c *clientLoop) pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	c.tickUntil(ctx, c.wake)
}

// tick shows that the loop goes round, and waits for the next time to.
func (c *clientLoop) tick() {
	c.cfg.Tick()
	c.ticks.Reset(rounds.Until(c.cfg.TickInterval))
}

// tickUntil ticks until ctx or done ends.
func (c *clientLoop) tickUntil(ctx context.Context, done <-chan struct{}) {
	for {
		select {
		case <-c.ticks.C:
			c.tick()
		case <-done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// tickWhile ticks while f runs.
func (c *clientLoop) tickWhile(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	c.tickUntil(context.Background(), done)
}
