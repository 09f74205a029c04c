package enroll

import (
	"context"
	"strings"

	"github.com/mooring-edge/mooring/internal/store"
)

// Watcher follows keys of the store; *store.Store.
type Watcher interface {
	WatchSynced(ctx context.Context, prefix string, synced func(), fn func(store.Event)) error
}

// WatchNodes calls fn for each node record that there is, then synced, and then fn for each that comes,
// changes or goes, one call at a time, until ctx ends.
func WatchNodes(ctx context.Context, w Watcher, synced func(), fn func(tenant, node string, deleted bool)) error {
	return w.WatchSynced(ctx, nodePrefix, synced, func(ev store.Event) {
		tenant, node, ok := strings.Cut(strings.TrimPrefix(ev.Key, nodePrefix), "/")
		if ok {
			fn(tenant, node, ev.Deleted)
		}
	})
}
