package tunnel

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestCancelOpen(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		seen, left := make(chan struct{}), make(chan error, 1)
		p.handle(func(ctx context.Context, _ *Session, r *Request) {
			close(seen)
			<-ctx.Done() // only the opener's giving up ends it
			if _, err := r.Accept(); err == nil {
				t.Error("Accept of what was given up worked")
			}
			left <- context.Cause(ctx)
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("the user went away")
		go func() { <-seen; cancel(why) }()
		if _, err := p.opener.Open(ctx, wire.KindDial, "node:1"); !errors.Is(err, why) {
			t.Errorf("Open: %v, want the context's cause", err)
		}
		wantRefused(t, within(t, 5*time.Second, left, "handler to be told"), wire.Canceled)
		p.handle(echo)
		st := p.open(t) // the session is none the worse
		_ = st.Close()
	})
}

func TestCancelledOpens(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		for i := range 600 {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				for range i {
					runtime.Gosched()
				}
				cancel()
			}()
			st, err := p.opener.Open(ctx, wire.KindDial, "node:1")
			if err == nil {
				_ = st.Close()
				continue
			}
			var r *RefusedError // the backlog is full of those given up before
			if !errors.Is(err, context.Canceled) && !(errors.As(err, &r) && r.Code == wire.Overloaded) {
				t.Fatalf("Open: %v, want context.Canceled", err)
			}
		}
		waitFor(t, func() bool {
			st, err := p.opener.Open(t.Context(), wire.KindDial, "node:1")
			if err == nil {
				_ = st.Close()
			}
			return err == nil
		}, "an open to work again")
		waitFor(t, func() bool { return p.opener.Stats().OpenStreams+p.acceptor.Stats().OpenStreams == 0 }, "streams to be gone")
		if m, ok := p.opener.l.mux.(*yamuxMux); ok {
			waitFor(t, func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.live) == 1 && len(m.unacked) == 0 }, "yamux to be clean")
		}
	})
}

func TestRefusals(t *testing.T) {
	codes := []wire.Code{wire.NotFound, wire.Denied, wire.DialRefused, wire.DialTimeout, wire.Overloaded, wire.Draining, wire.BadRequest, wire.Internal, wire.Unavailable}
	conform(t, Config{}, func(t *testing.T, p *pair) {
		for _, code := range codes {
			refused := make(chan struct{}) // Refuse returns a moment after its answer has arrived
			p.handle(func(_ context.Context, _ *Session, r *Request) {
				defer close(refused)
				if r.Kind != wire.KindDial || r.Target != "other:10250" {
					t.Errorf("got %s %q", r.Kind, r.Target)
				}
				if err := r.Refuse(code, "because of\n"+code.String()); err != nil {
					t.Errorf("Refuse: %v", err)
				}
				if _, err := r.Accept(); err == nil {
					t.Error("Accept after Refuse worked")
				}
			})
			_, err := p.opener.Open(t.Context(), wire.KindDial, "other:10250")
			wantRefused(t, err, code)
			within(t, 10*time.Second, refused, "Refuse to return")
			if want := `"other:10250": ` + code.String() + ": because of?" + code.String(); !strings.Contains(err.Error(), want) {
				t.Errorf("error %q does not contain %q", err, want)
			}
		}
		p.handle(func(context.Context, *Session, *Request) {})
		_, err := p.opener.Open(t.Context(), wire.KindAPI, "")
		wantRefused(t, err, wire.Internal)
		_, err = p.opener.Open(t.Context(), wire.KindDial, strings.Repeat("x", wire.MaxTarget+1))
		wantRefused(t, err, wire.BadRequest)
		_, err = p.opener.Open(t.Context(), wire.KindControl, "")
		wantRefused(t, err, wire.BadRequest)
		if n := p.opener.Stats().OpenStreams + p.acceptor.Stats().OpenStreams; n != 0 {
			t.Errorf("%d streams open after refusals only", n)
		}
	})
}

// TestTraceTravels: what one side calls a stream is what the other side calls it.
func TestTraceTravels(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		got := make(chan wire.Trace, 1)
		p.handle(func(_ context.Context, _ *Session, r *Request) {
			got <- r.Trace
			_ = r.Refuse(wire.NotFound, "")
		})
		trace := wire.NewTrace()
		trace.Flags = wire.FlagSampled
		for want, ctx := range map[wire.Trace]context.Context{
			trace: WithTrace(t.Context(), trace), {}: t.Context(),
		} {
			_, err := p.opener.Open(ctx, wire.KindDial, "node:1")
			wantRefused(t, err, wire.NotFound)
			if tr := within(t, 5*time.Second, got, "the request"); tr != want {
				t.Errorf("%+v arrived as %+v", want, tr)
			}
		}
		_, err := p.opener.Open(WithTrace(t.Context(), wire.Trace{ID: trace.ID}), wire.KindDial, "node:1")
		wantRefused(t, err, wire.BadRequest)
	})
}

func TestOpenTimeout(t *testing.T) {
	t.Parallel() // it mostly waits
	conform(t, Config{OpenTimeout: 100 * time.Millisecond}, func(t *testing.T, p *pair) {
		p.handle(func(ctx context.Context, _ *Session, r *Request) { <-ctx.Done() })
		_, err := p.opener.Open(t.Context(), wire.KindDial, "node:1")
		wantRefused(t, err, wire.DialTimeout)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v is not os.ErrDeadlineExceeded", err)
		}
		// The probe that follows is answered: the session lives.
		waitFor(t, func() bool {
			p.opener.pulse.mu.Lock()
			defer p.opener.pulse.mu.Unlock()
			return p.opener.pulse.probeAt.IsZero()
		}, "the probe to be answered")
		if err := p.opener.Err(); err != nil {
			t.Errorf("session died: %v", err)
		}
	})
}

func TestPendingCap(t *testing.T) {
	conform(t, Config{MaxPending: 4}, func(t *testing.T, p *pair) {
		seen, release := make(chan struct{}, 16), make(chan struct{})
		p.handle(func(_ context.Context, _ *Session, r *Request) {
			seen <- struct{}{}
			<-release
			_ = r.Refuse(wire.DialRefused, "")
		})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				_, err := p.opener.Open(t.Context(), wire.KindDial, "node:1")
				wantRefused(t, err, wire.DialRefused)
			})
		}
		for range 4 {
			within(t, 5*time.Second, seen, "request")
		}
		_, err := p.opener.Open(t.Context(), wire.KindDial, "node:1")
		wantRefused(t, err, wire.Overloaded)
		close(release)
		wg.Wait()
	})
}
