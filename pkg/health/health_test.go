package health

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder stands for systemd. It has a lock although the tests wait before they look: synctest.Wait orders what
// came before it, and nothing orders a look before the next state that is told.
type recorder struct {
	mu     sync.Mutex
	states []string
}

func (r *recorder) notify(s string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states = append(r.states, s)
	return nil
}

func (r *recorder) count(state string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.states {
		if s == state {
			n++
		}
	}
	return n
}

func TestWatchdogFollowsTheBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rec recorder
		tr := New(Config{Notify: rec.notify, WatchdogInterval: 30 * time.Second, BeatLimit: 20 * time.Second})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tr.Run(ctx) }()

		// The loop goes round every 5 s for a minute: fed at 10, 20, ... 60 s.
		for range 12 {
			time.Sleep(5 * time.Second)
			tr.Beat()
		}
		synctest.Wait()
		if n := rec.count("WATCHDOG=1"); n != 6 {
			t.Errorf("fed %d times in a minute of beats, want 6", n)
		}
		// It gets stuck: two more feeds while the last beat is within its limit, then none.
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := rec.count("WATCHDOG=1"); n != 8 {
			t.Errorf("fed %d times in all, want 8: a stuck loop must not be fed", n)
		}
		// It comes back by itself: so does the feeding.
		tr.Beat()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := rec.count("WATCHDOG=1"); n != 9 {
			t.Errorf("fed %d times in all, want 9 after the loop came back", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if first, last := rec.states[0], rec.states[len(rec.states)-1]; !strings.HasPrefix(first, "READY=1\n") || !strings.HasPrefix(last, "STOPPING=1\n") {
			t.Errorf("said %q first and %q last", first, last)
		}
	})
}

func TestStatusLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rec recorder
		tr := New(Config{Ready: []string{"Enrolled", "Tunnel"}, Notify: rec.notify, WatchdogInterval: -1})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tr.Run(ctx) }()
		synctest.Wait()

		tr.Set("Enrolled", True, "Enrolled", "node edge-1 of tenant acme")
		synctest.Wait()
		tr.Set("Tunnel", False, "Dialling", "no answer\nfrom edge.example:443")
		synctest.Wait()
		tr.Set("Tunnel", False, "Dialling", "no answer\nfrom edge.example:443") // the same again: nothing to tell
		synctest.Wait()
		tr.Set("Tunnel", True, "Up", "connected by quic")
		synctest.Wait()
		tr.Set("Storage", False, "WriteFailed", "the disk is full")
		synctest.Wait()
		cancel()
		<-done

		want := []string{
			"READY=1\nSTATUS=not ready: not started yet",
			"STATUS=not ready: no answer from edge.example:443",
			"STATUS=ready: node edge-1 of tenant acme; connected by quic",
			"STATUS=ready, but: the disk is full",
			"STOPPING=1\nSTATUS=stopping",
		}
		if !slices.Equal(rec.states, want) {
			t.Errorf("told the service manager\n%q\nwant\n%q", rec.states, want)
		}
	})
}

func TestSinceChangesWithTheStatusOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{WatchdogInterval: -1})
		tr.Set("Tunnel", False, "Dialling", "first try")
		at := tr.Get("Tunnel").Since
		time.Sleep(time.Minute)
		tr.Set("Tunnel", False, "Dialling", "second try")
		if got := tr.Get("Tunnel").Since; !got.Equal(at) {
			t.Errorf("since moved by %s with the message", got.Sub(at))
		}
		tr.Set("Tunnel", True, "Up", "")
		if got := tr.Get("Tunnel").Since; got.Sub(at) != time.Minute {
			t.Errorf("since is %s after the first, want 1m", got.Sub(at))
		}
	})
}

func TestHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{Ready: []string{"Enrolled", "Tunnel"}, BeatLimit: time.Minute, WatchdogInterval: -1})
		reg := prometheus.NewRegistry()
		reg.MustRegister(tr.Collector())
		get := func(path string) (int, string) {
			w := httptest.NewRecorder()
			tr.Handler(reg).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			return w.Code, w.Body.String()
		}
		expect := func(path string, code int, parts ...string) {
			t.Helper()
			got, body := get(path)
			if got != code {
				t.Errorf("%s: status %d, want %d", path, got, code)
			}
			for _, p := range parts {
				if !strings.Contains(body, p) {
					t.Errorf("%s: %q not in\n%s", path, p, body)
				}
			}
		}
		expect("/livez", 200, "ok")
		expect("/readyz", 503, "Enrolled", "Tunnel")

		tr.Set("Enrolled", True, "Enrolled", "")
		tr.Set("Tunnel", False, "Dialling", "no answer from edge.example:443")
		tr.Set("Extra", False, "Whatever", "does not count")
		expect("/readyz", 503, "Tunnel: no answer from edge.example:443")
		if _, body := get("/readyz"); strings.Contains(body, "Enrolled") || strings.Contains(body, "Extra") {
			t.Errorf("/readyz names what is ready or does not count:\n%s", body)
		}
		expect("/metrics", 200, `mooring_condition{type="Enrolled"} 1`, `mooring_condition{type="Tunnel"} 0`, "mooring_ready 0")

		tr.Set("Tunnel", True, "Up", "")
		expect("/readyz", 200, "ok")
		expect("/metrics", 200, "mooring_ready 1")

		time.Sleep(2 * time.Minute)
		expect("/livez", 503, "stuck", "2m0s")
		tr.Beat()
		expect("/livez", 200)
	})
}

func TestNotifyFailureIsNotFatal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{Notify: func(string) error { return errors.New("no socket") }, WatchdogInterval: time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := tr.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}
