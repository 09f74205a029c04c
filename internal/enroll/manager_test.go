package enroll

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mooring-edge/mooring/internal/tenant"
)

// feed is a TenantFeed that a test drives.
type feed struct {
	fn func(tenant.Tenant, bool)
}

func (f *feed) Subscribe(fn func(tenant.Tenant, bool)) func() {
	f.fn = fn
	fn(someTenant("there"), false)
	return func() { f.fn = nil }
}

// runs counts the runs of each tenant that are going, and that have been.
type runs struct {
	mu     sync.Mutex
	live   map[string]int
	starts map[string]int
	last   map[string]tenant.Tenant
}

func (r *runs) run(ctx context.Context, t tenant.Tenant) error {
	r.mu.Lock()
	r.live[t.Name]++
	r.starts[t.Name]++
	r.last[t.Name] = t
	both := r.live[t.Name] > 1
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.live[t.Name]--
	}()
	if both {
		panic("two runs of one tenant")
	}
	switch t.Name {
	case "broken":
		return errors.New("broken")
	case "slow": // takes its time to end
		<-ctx.Done()
		time.Sleep(time.Minute)
		return ctx.Err()
	}
	<-ctx.Done()
	return ctx.Err()
}

func (r *runs) want(t *testing.T, live map[string]int) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, n := range live {
		if r.live[name] != n {
			t.Errorf("%d runs of %s, want %d", r.live[name], name, n)
		}
	}
}

func TestManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runs{live: map[string]int{}, starts: map[string]int{}, last: map[string]tenant.Tenant{}}
		f := &feed{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- NewManager(f, "the run", r.run, discard).Run(ctx) }()
		r.want(t, map[string]int{"there": 1})

		f.fn(someTenant("slow"), false)
		f.fn(someTenant("broken"), false)
		r.want(t, map[string]int{"there": 1, "slow": 1, "broken": 0})
		pass(10 * time.Minute)
		r.mu.Lock()
		if r.starts["there"] != 1 || r.starts["broken"] < 5 || r.starts["broken"] > 30 {
			t.Errorf("starts %v: a broken tenant is tried again, with pauses, and touches no other", r.starts)
		}
		r.mu.Unlock()

		changed := someTenant("slow")
		changed.Address = "203.0.113.9:1"
		f.fn(changed, false)
		f.fn(someTenant("new"), false) // does not wait for the slow one's end
		r.want(t, map[string]int{"slow": 1, "new": 1, "there": 1})
		pass(2 * time.Minute)
		r.want(t, map[string]int{"slow": 1})
		r.mu.Lock()
		if r.starts["slow"] != 2 || r.last["slow"].Address != changed.Address || r.starts["there"] != 1 {
			t.Errorf("starts %v, last %+v", r.starts, r.last["slow"])
		}
		r.mu.Unlock()

		f.fn(someTenant("there"), true)
		f.fn(someTenant("unknown"), true)
		f.fn(someTenant("broken"), true)
		r.want(t, map[string]int{"there": 0, "broken": 0, "new": 1})
		f.fn(someTenant("there"), false)
		r.want(t, map[string]int{"there": 1})

		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) || f.fn != nil {
			t.Errorf("Run = %v, still subscribed: %v", err, f.fn != nil)
		}
		r.want(t, map[string]int{"there": 0, "new": 0, "slow": 0})
	})
}

// TestManagerTellsOfTheGone: what a run has left is cleared away when it has ended and before the next tenant of that name has a run,
// however long that takes: a removal with an addition on its heels, or only the addition seen. A change clears nothing away. Mechanism: follow.
// Seen failing with Gone called as soon as the removal is seen, with a run that does not wait for that of a removed tenant, and without the
// look at CreatedAt.
func TestManagerTellsOfTheGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var said []string
		say := func(what string, t tenant.Tenant) {
			mu.Lock()
			defer mu.Unlock()
			said = append(said, what+" "+t.Address)
		}
		f := &feed{}
		m := NewManager(f, "the run", func(ctx context.Context, t tenant.Tenant) error {
			if t.Name != "slow" {
				<-ctx.Done()
				return ctx.Err()
			}
			say("begun", t)
			<-ctx.Done()
			time.Sleep(time.Minute)
			say("ended", t)
			return ctx.Err()
		}, discard)
		m.Gone = func(t tenant.Tenant) { say("gone", t) }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()

		at := time.Now()
		slow := func(address string, created time.Time) tenant.Tenant {
			t := someTenant("slow")
			t.Address, t.CreatedAt = address, created
			return t
		}
		for _, step := range []struct {
			t       tenant.Tenant
			deleted bool
			after   time.Duration
		}{
			{slow("a", at), false, time.Hour},
			{slow("a2", at), false, time.Hour},
			{slow("a2", at), true, 0},
			{slow("b", at.Add(1)), false, time.Hour},
			{slow("c", at.Add(2)), false, time.Hour},
			{slow("c", at.Add(2)), true, time.Hour},
			{slow("d", at.Add(3)), false, time.Hour},
		} {
			f.fn(step.t, step.deleted)
			pass(step.after)
		}
		cancel()
		<-done
		want := []string{
			"begun a", "ended a", "begun a2", "ended a2", "gone a2", "begun b", "ended b", "gone b", "begun c", "ended c", "gone c",
			"begun d", "ended d",
		}
		if !slices.Equal(said, want) {
			t.Errorf("%q, want %q", said, want)
		}
	})
}
