package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"github.com/quic-go/quic-go"
)

// fakeBroker is what a client under test dials.
type fakeBroker struct {
	mu       sync.Mutex // guards the following
	sessions []*Session // the broker's ends
	fail     int        // how many dials are to fail
}

func (f *fakeBroker) dial(ctx context.Context, _ *Dialer) (*Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail > 0 {
		f.fail--
		return nil, errors.New("nobody there")
	}
	agent, broker, _, err := memSessions(ctx, Config{}, Config{})
	if err == nil {
		f.sessions = append(f.sessions, broker)
	}
	return agent, err
}

func (f *fakeBroker) last() *Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[len(f.sessions)-1]
}

// runClient runs f beside a client in a bubble, then stops the client.
func runClient(t *testing.T, fb *fakeBroker, cfg ClientConfig, f func(t *testing.T, c *Client)) {
	synctest.Test(t, func(t *testing.T) {
		cfg.Dialer = func() *Dialer { return &Dialer{} }
		cfg.dial = fb.dial
		c := NewClient(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		f(t, c)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		for _, s := range fb.sessions {
			s.wait()
		}
	})
}

// TestClientPace: what a session ended for may ask for more patience than the backoff has.
func TestClientPace(t *testing.T) {
	fb := &fakeBroker{}
	var ends []error
	cfg := ClientConfig{
		jitter: func(time.Duration) time.Duration { return 0 },
		Pace: func(err error) time.Duration {
			ends = append(ends, err)
			return time.Hour
		},
	}
	runClient(t, fb, cfg, func(t *testing.T, c *Client) {
		s, err := c.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		began := time.Now()
		_ = fb.last().Close(wire.Quarantined, "two of you")
		<-s.Done()
		if _, err := c.Session(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d < time.Hour || d > time.Hour+time.Minute {
			t.Errorf("came back after %s", d)
		}
	})
	var closed *ClosedError
	if len(ends) != 1 || !errors.As(ends[0], &closed) || closed.Code != wire.Quarantined {
		t.Errorf("asked about %v", ends)
	}
}

func TestClientReconnects(t *testing.T) {
	fb := &fakeBroker{}
	var ups, downs int
	cfg := ClientConfig{
		OnUp:   func(*Session) { ups++ },
		OnDown: func(err error) { downs++ },
	}
	runClient(t, fb, cfg, func(t *testing.T, c *Client) {
		for i := range 5 {
			s, err := c.Session(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if ups != i+1 || downs != i {
				t.Errorf("round %d: up %d times, down %d", i, ups, downs)
			}
			_ = fb.last().Close(wire.Shutdown, "restart")
			<-s.Done()
			wantClosed(t, s.Err(), wire.Shutdown, true)
		}
	})
	if downs != 5 {
		t.Errorf("down %d times, want 5", downs)
	}
}

func TestClientBackoff(t *testing.T) {
	var spans []time.Duration
	fb := &fakeBroker{fail: 10}
	cfg := ClientConfig{jitter: func(d time.Duration) time.Duration {
		spans = append(spans, d)
		return d
	}}
	runClient(t, fb, cfg, func(t *testing.T, c *Client) {
		first, err := c.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ms := time.Millisecond
		want := []time.Duration{500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 8000 * ms, 16000 * ms, 32000 * ms, 60000 * ms, 60000 * ms, 60000 * ms}
		if !slices.Equal(spans, want) {
			t.Errorf("waited %v, want %v", spans, want)
		}
		// A session that did not last does not make it start again.
		_ = fb.last().Close(wire.Internal, "")
		<-first.Done()
		second, _ := c.Session(t.Context())
		if got := spans[len(spans)-1]; got != time.Minute {
			t.Errorf("waited %s after a session that was cut at once, want 1m", got)
		}
		time.Sleep(time.Hour)
		_ = fb.last().Close(wire.Internal, "")
		<-second.Done()
		if _, err := c.Session(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := spans[len(spans)-1]; got != 500*ms {
			t.Errorf("waited %s after a session that lasted, want 500ms", got)
		}
	})
}

func TestClientHeedsDrain(t *testing.T) {
	fb := &fakeBroker{}
	var asked time.Duration
	cfg := ClientConfig{jitter: func(d time.Duration) time.Duration { asked = d; return d }}
	runClient(t, fb, cfg, func(t *testing.T, c *Client) {
		s, _ := c.Session(t.Context())
		if err := fb.last().Drain(7 * time.Second); err != nil {
			t.Fatal(err)
		}
		<-s.Draining()
		_ = fb.last().Close(wire.Draining, "")
		<-s.Done()
		if _, err := c.Session(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if asked != 7*time.Second {
			t.Errorf("waited up to %s, want the 7s that the broker named", asked)
		}
	})
}

// TestClientTicks: in each state the loop ticks, unless it is stuck.
func TestClientTicks(t *testing.T) {
	var ticks atomic.Int64
	fb := &fakeBroker{fail: 8}
	var stuck chan struct{} // made in the bubble
	cfg := ClientConfig{
		Tick: func() { ticks.Add(1) }, TickInterval: 10 * time.Second,
		jitter: func(d time.Duration) time.Duration { return d },
		OnUp:   func(*Session) { <-stuck },
	}
	runClient(t, fb, cfg, func(t *testing.T, c *Client) {
		stuck = make(chan struct{})
		time.Sleep(60*time.Second + time.Millisecond)
		synctest.Wait()
		if n := ticks.Load(); n < 6 {
			t.Errorf("%d ticks in a minute of backoff, want one each 10 s", n)
		}
		if _, err := c.Session(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		before := ticks.Load()
		time.Sleep(time.Minute)
		synctest.Wait()
		if ticks.Load() != before {
			t.Error("ticked although the loop was stuck in OnUp")
		}
		close(stuck)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := ticks.Load() - before; n < 6 {
			t.Errorf("%d ticks in a minute with the session up", n)
		}
	})
}

func TestClientSessionWaits(t *testing.T) {
	c := NewClient(ClientConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Session(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := c.Run(t.Context()); err == nil {
		t.Error("Run without a dialer worked")
	}
}

// TestJitterIsFull: each wait up to the span must be possible, 0 included.
func TestJitterIsFull(t *testing.T) {
	c := NewClient(ClientConfig{})
	low, high := time.Duration(1<<62), time.Duration(0)
	for range 1000 {
		d := c.cfg.jitter(time.Second)
		low, high = min(low, d), max(high, d)
	}
	if low > 50*time.Millisecond || high < 950*time.Millisecond || high > time.Second {
		t.Errorf("waits from %s to %s for a span of 1s", low, high)
	}
}

// TestClientWake: a wait whose cause is gone is ended; a session that is up, and the wait after it, are not.
func TestClientWake(t *testing.T) {
	fb := &fakeBroker{fail: 1}
	runClient(t, fb, ClientConfig{jitter: func(time.Duration) time.Duration { return time.Hour }}, func(t *testing.T, c *Client) {
		synctest.Wait()
		began := time.Now()
		c.Wake()
		first, err := c.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("came back %s after it was woken", d)
		}
		synctest.Wait()
		c.Wake()
		synctest.Wait()
		if first.Err() != nil {
			t.Errorf("the session that was up: %v", first.Err())
		}
		began = time.Now()
		_ = fb.last().Close(wire.Internal, "")
		<-first.Done()
		if _, err := c.Session(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d < time.Hour {
			t.Errorf("after a session that was woken in vain it came back in %s", d)
		}
	})
}

// TestTurnedAwayComesBackSoon: a broker over its limits is asked again within seconds, however often; one that is away is not.
func TestTurnedAwayComesBackSoon(t *testing.T) {
	refused := &quic.TransportError{Remote: true, ErrorCode: quic.ConnectionRefused}
	for name, tc := range map[string]struct {
		err  error
		most time.Duration
	}{
		"closed at the port":         {fmt.Errorf("dial: %w", errors.Join(context.Canceled, explainHandshake(io.EOF))), turnedAwayMax},
		"reset at the port":          {fmt.Errorf("dial: %w", explainHandshake(syscall.ECONNRESET)), turnedAwayMax},
		"refused over QUIC":          {fmt.Errorf("dial: %w", errors.Join(fmt.Errorf("quic: %w", refused), syscall.ECONNREFUSED)), turnedAwayMax},
		"nobody there":               {fmt.Errorf("dial: %w", syscall.ECONNREFUSED), defaultBackoffMax},
		"another error of this side": {&quic.TransportError{ErrorCode: quic.ConnectionRefused}, defaultBackoffMax},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var longest time.Duration
				c := NewClient(ClientConfig{
					Dialer: func() *Dialer { return &Dialer{} },
					jitter: func(d time.Duration) time.Duration { longest = max(longest, d); return d },
				})
				c.cfg.dial = func(context.Context, *Dialer) (*Session, error) { return nil, tc.err }
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				if err := c.Run(ctx); err != nil {
					t.Error(err)
				}
				if longest != tc.most {
					t.Errorf("waited for up to %s, want %s", longest, tc.most)
				}
			})
		})
	}
}
