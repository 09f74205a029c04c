package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// watching runs a Watch whose events arrive on a channel, one at a time: the
// watch stands still until each is received.
func watching(t *testing.T, s *Store, prefix string) (next func() string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events, result := make(chan string), make(chan error, 1)
	send := func(text string) {
		select {
		case events <- text:
		case <-ctx.Done():
		}
	}
	go func() {
		result <- s.WatchSynced(ctx, prefix, func() { send("synced") }, func(ev Event) {
			if ev.Deleted {
				send("-" + ev.Key)
			} else {
				send(ev.Key + "=" + string(ev.Value))
			}
			if ev.Rev <= 0 {
				t.Errorf("event %+v without a revision", ev)
			}
		})
	}()
	stop = func() error {
		cancel()
		err := <-result
		result <- err // for the clean-up
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return func() string {
		select {
		case text := <-events:
			return text
		case err := <-result:
			result <- err
			return fmt.Sprintf("ended: %v", err)
		case <-time.After(20 * time.Second): // a lost event fails the test soon
			return "none"
		}
	}, stop
}

func want(t *testing.T, next func() string, events ...string) {
	t.Helper()
	for _, want := range events {
		if got := next(); got != want {
			t.Fatalf("event %q, want %q", got, want)
		}
	}
}

func TestWatch(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "/w/b", "1")
	put(t, s, "/w/a", "2")
	put(t, s, "/x/other", "3")
	next, stop := watching(t, s, "/w/")
	want(t, next, "/w/a=2", "/w/b=1", "synced")
	put(t, s, "/w/a", "4")
	put(t, s, "/x/other", "5")
	if err := s.Commit(t.Context(), Delete("/w/b", rev(t, s, "/w/b")), Create("/w/c", []byte("6"))); err != nil {
		t.Fatal(err)
	}
	want(t, next, "/w/a=4", "-/w/b", "/w/c=6")
	put(t, s, "/w/b", "again")
	want(t, next, "/w/b=again")
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v, want the context's error", err)
	}
}

func TestWatchOfNothing(t *testing.T) {
	s := open(t, t.TempDir())
	next, _ := watching(t, s, "/w/")
	want(t, next, "synced")
	put(t, s, "/w/a", "1")
	want(t, next, "/w/a=1")
}

// What is written between the list and the watch must not be lost.
func TestWatchHasNoGap(t *testing.T) {
	s := open(t, t.TempDir())
	const n = 300
	go func() {
		for i := range n {
			if err := s.Commit(context.Background(), Put(fmt.Sprintf("/w/%03d", i), nil)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for range 3 {
		limit, stop := context.WithTimeout(t.Context(), 20*time.Second)
		defer stop()
		ctx, cancel := context.WithCancelCause(limit)
		all := errors.New("all seen")
		var keys []string
		var last int64
		err := s.Watch(ctx, "/w/", func(ev Event) {
			if ev.Rev <= last {
				t.Errorf("revision %d after %d", ev.Rev, last)
			}
			last = ev.Rev
			if keys = append(keys, ev.Key); len(keys) == n {
				cancel(all)
			}
		})
		if !errors.Is(err, all) || len(keys) != n || !slices.IsSorted(keys) || len(slices.Compact(keys)) != n {
			t.Errorf("%d of %d keys, %v", len(keys), n, err)
		}
	}
}

func TestWatchListsAnewAfterCompaction(t *testing.T) {
	s := open(t, t.TempDir())
	for _, key := range []string{"/w/a", "/w/b", "/w/c", "/w/d"} {
		put(t, s, key, "old")
	}
	next, _ := watching(t, s, "/w/")
	want(t, next, "/w/a=old") // from here on the watch waits for us, within its first list

	put(t, s, "/w/a", "new")
	for _, key := range []string{"/w/b", "/w/d"} {
		if err := s.Commit(t.Context(), Delete(key, rev(t, s, key))); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, "/w/d", "reborn")
	put(t, s, "/w/e", "born")
	put(t, s, "/w/f", "short")
	if err := s.Commit(t.Context(), Delete("/w/f", rev(t, s, "/w/f"))); err != nil {
		t.Fatal(err)
	}
	put(t, s, "/x", "moves the revision on")
	if _, err := s.client.Compact(t.Context(), rev(t, s, "/x")); err != nil {
		t.Fatal(err)
	}

	want(t, next, "/w/b=old", "/w/c=old", "/w/d=old", "synced") // the rest of the first list
	// /w/c is unchanged and not repeated, /w/f came and went unseen.
	want(t, next, "-/w/b", "/w/a=new", "/w/d=reborn", "/w/e=born")
	put(t, s, "/w/g", "after")
	want(t, next, "/w/g=after")
}

func TestCloseEndsWatches(t *testing.T) {
	s := open(t, t.TempDir())
	next, _ := watching(t, s, "/w/")
	want(t, next, "synced")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want(t, next, "ended: "+ErrClosed.Error())
}

func TestWatchStopsInTheMiddleOfAList(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "/w/a", "1")
	put(t, s, "/w/b", "1")
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := s.Watch(ctx, "/w/", func(Event) { calls++; cancel() })
	if !errors.Is(err, context.Canceled) || calls != 1 {
		t.Errorf("%d calls, %v, want one", calls, err)
	}
}
