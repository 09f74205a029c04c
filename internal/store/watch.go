package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Event is a change of one item. Of a deleted item there is no value, and Rev
// is the revision at which it was gone (or was found to be gone).
type Event struct {
	Item
	Deleted bool
}

// retryWatch is the pause before a failed watch begins anew.
const retryWatch = 200 * time.Millisecond

// Watch calls fn for each present item whose key begins with prefix, and then
// for each change, in order and without a gap, one call at a time. It returns
// when ctx ends (ctx's error) or the store closes (ErrClosed), never before fn
// has returned; fn must not call Close.
//
// A slow fn delays only its own watch. If it falls so far behind that the
// history is compacted away (more than an hour), Watch lists anew: changes in
// between are then merged, keys that vanished come as Deleted, and unchanged
// items are not repeated.
func (s *Store) Watch(ctx context.Context, prefix string, fn func(Event)) error {
	return s.WatchSynced(ctx, prefix, nil, fn)
}

// WatchSynced is Watch, and calls synced (if not nil) once, between the last
// of the items that were present at the beginning and the first change.
func (s *Store) WatchSynced(ctx context.Context, prefix string, synced func(), fn func(Event)) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("store: watch %s: %w", prefix, ErrClosed)
	}
	s.watches.Add(1)
	s.mu.Unlock()
	defer s.watches.Done()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.closing, func() { cancel(ErrClosed) })()

	w := watch{s: s, prefix: prefix, fn: fn, synced: synced, seen: map[string]int64{}}
	for {
		err := w.round(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.log.Warn("store watch interrupted, listing anew", "prefix", prefix, "err", err)
		if errors.Is(err, errCompacted) {
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.Done():
			return fmt.Errorf("store: watch %s: %w", prefix, ErrClosed)
		case <-time.After(retryWatch):
		}
	}
}

var errCompacted = errors.New("fell behind the compacted history")

// watch is the state of one Watch call, owned by its goroutine.
type watch struct {
	s      *Store
	prefix string
	fn     func(Event)
	synced func()
	seen   map[string]int64 // the keys reported as present, with their revisions
}

// round lists, and watches from there until that fails.
func (w *watch) round(ctx context.Context) error {
	items, rev, err := w.s.list(ctx, w.prefix)
	if err != nil {
		return err
	}
	w.reconcile(ctx, items, rev)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if w.synced != nil {
		w.synced()
		w.synced = nil
	}
	// A context of this round alone, so that its server-side watch ends with it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if w.s.cluster != "" { // a member that is cut off from the others would be silent for good
		ctx = clientv3.WithRequireLeader(ctx)
	}
	for resp := range w.s.client.Watch(ctx, w.prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1)) {
		if resp.CompactRevision != 0 {
			return errCompacted
		}
		if err := resp.Err(); err != nil {
			return err
		}
		for _, ev := range resp.Events {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			w.apply(ev)
		}
	}
	return errors.New("the watch ended")
}

// reconcile reports how the listed items differ from what was reported before.
func (w *watch) reconcile(ctx context.Context, items []Item, rev int64) {
	present := make(map[string]bool, len(items))
	for _, it := range items {
		present[it.Key] = true
	}
	var gone []string
	for key := range w.seen {
		if !present[key] {
			gone = append(gone, key)
		}
	}
	slices.Sort(gone)
	for _, key := range gone {
		if ctx.Err() != nil {
			return
		}
		delete(w.seen, key)
		w.fn(Event{Item: Item{Key: key, Rev: rev}, Deleted: true})
	}
	for _, it := range items {
		if ctx.Err() != nil {
			return
		}
		if w.seen[it.Key] == it.Rev {
			continue
		}
		w.seen[it.Key] = it.Rev
		w.fn(Event{Item: it})
	}
}

func (w *watch) apply(ev *clientv3.Event) {
	it := Item{Key: string(ev.Kv.GetKey()), Rev: ev.Kv.GetModRevision()}
	if ev.Type == mvccpb.Event_DELETE {
		delete(w.seen, it.Key)
		w.fn(Event{Item: it, Deleted: true})
		return
	}
	it.Value = ev.Kv.GetValue()
	w.seen[it.Key] = it.Rev
	w.fn(Event{Item: it})
}
