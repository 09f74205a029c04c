package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mooring-edge/mooring/internal/store"
)

const (
	tidyEvery = time.Hour
	// tokensFor is how long a token that ended is kept at least.
	tokensFor = 30 * 24 * time.Hour
)

// Run removes old records, now and each hour, and keeps the count of waiting boxes in m (nil = in none), until ctx
// ends.
func (t *Tokens) Run(ctx context.Context, w Watcher, m *Metrics) error {
	g, ctx := errgroup.WithContext(ctx)
	if m != nil {
		g.Go(func() error { return t.countPending(ctx, w, m) })
	}
	g.Go(func() error {
		tick := time.NewTicker(tidyEvery)
		defer tick.Stop()
		for {
			if err := t.Tidy(ctx); err != nil && ctx.Err() == nil {
				t.log.Warn("old tokens and waiting boxes could not be removed; trying again in an hour", "err", err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
	return g.Wait()
}

// countPending follows the store, so that the count is right with several brokers too.
func (t *Tokens) countPending(ctx context.Context, w Watcher, m *Metrics) error {
	waiting := map[string]bool{}
	return w.WatchSynced(ctx, pendingPrefix, func() {}, func(ev store.Event) {
		var rec PendingRecord
		if ev.Deleted || json.Unmarshal(ev.Value, &rec) != nil || rec.DeniedAt != nil {
			delete(waiting, ev.Key)
		} else {
			waiting[ev.Key] = true
		}
		m.pending.Set(float64(len(waiting)))
	})
}

// Tidy removes boxes that wait and did not come for 30 days, or whose token is revoked or gone, and tokens that ended (expired or were revoked) over
// 30 days ago. A token is kept beyond that while a node lives that it made, or a box waits that it brought: a box
// that never got its certificate comes again with the same token, after however long, and gets the same node. So
// at most one old token stays for each node, and goes with it. Denied boxes stay denied.
func (t *Tokens) Tidy(ctx context.Context) error {
	return errors.Join(t.tidyPending(ctx), t.tidyTokens(ctx))
}

func (t *Tokens) tidyPending(ctx context.Context) error {
	items, err := t.store.List(ctx, pendingPrefix)
	if err != nil {
		return fmt.Errorf("list waiting boxes: %w", err)
	}
	toks, err := t.List(ctx, "") // after the boxes: what brought one of those and is not in it is gone
	if err != nil {
		return err
	}
	valid := map[string]bool{}
	for _, tok := range toks {
		valid[tok.ID] = tok.RevokedAt == nil
	}
	var errs []error
	for _, it := range items {
		var rec PendingRecord
		if json.Unmarshal(it.Value, &rec) != nil || rec.DeniedAt != nil || valid[rec.TokenID] && t.now().Sub(rec.LastSeen) <= pendingFor {
			continue
		}
		if err := t.drop(ctx, it); err != nil {
			errs = append(errs, err)
			continue
		}
		t.log.Info("box that waited for approval did not come for 30 days, or its token was revoked: forgotten", "key", rec.SPKI, "hostname", rec.Hostname, "tenant", rec.Tenant)
	}
	return errors.Join(errs...)
}

func (t *Tokens) tidyTokens(ctx context.Context) error {
	items, err := t.store.List(ctx, tokenPrefix)
	if err != nil {
		return fmt.Errorf("list tokens: %w", err)
	}
	old := map[string]store.Item{}
	for _, it := range items {
		var rec TokenRecord
		if json.Unmarshal(it.Value, &rec) == nil && t.now().Sub(rec.ended()) > tokensFor {
			old[rec.ID] = it
		}
	}
	if len(old) == 0 {
		return nil
	}
	nodes, err := NewNodes(t.store, t.log).List(ctx, "")
	if err != nil {
		return err
	}
	boxes, err := t.Pending(ctx)
	if err != nil {
		return err
	}
	for _, node := range nodes {
		delete(old, node.TokenID)
	}
	for _, box := range boxes {
		if box.DeniedAt == nil {
			delete(old, box.TokenID)
		}
	}
	var errs []error
	for id, it := range old {
		if err := t.drop(ctx, it); err != nil {
			errs = append(errs, err)
			continue
		}
		t.log.Info("token that ended over 30 days ago removed", "token", id)
	}
	return errors.Join(errs...)
}

// ended is when the token stopped, or will stop, to make nodes at the latest.
func (r TokenRecord) ended() time.Time {
	if r.RevokedAt != nil && r.RevokedAt.Before(r.ExpiresAt) {
		return *r.RevokedAt
	}
	return r.ExpiresAt
}

// drop deletes an item unless it changed meanwhile.
func (t *Tokens) drop(ctx context.Context, it store.Item) error {
	if err := t.store.Commit(ctx, store.Delete(it.Key, it.Rev)); err != nil && !errors.Is(err, store.ErrConflict) {
		return err
	}
	return nil
}
