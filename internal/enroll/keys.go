package enroll

import (
	"context"
	"time"

	"github.com/mooring-edge/mooring/internal/store"
)

const (
	tokenPrefix = "/mooring/tokens/"
	nodePrefix  = "/mooring/nodes/"
	// lineagePrefix holds what is known of each node's sessions; see lineageRecord.
	lineagePrefix = "/mooring/lineage/"
	// claimPrefix has the serial number after it, pendingPrefix the hex digits of a key's fingerprint.
	claimPrefix   = "/mooring/claims/"
	pendingPrefix = "/mooring/pending/"
	// bootstrapKeys is where the ids of bootstrap tokens are remembered: <tenant>/<node>/<id>.
	bootstrapKeys = "/mooring/bootstrap/"
)

func tokenKey(id string) string          { return tokenPrefix + id }
func pendingKey(spki string) string      { return pendingPrefix + hexOf(spki) }
func nodesOf(tenant string) string       { return nodePrefix + tenant + "/" }
func nodeKey(tenant, node string) string { return nodesOf(tenant) + node }

func lineageKey(tenant, node string) string       { return lineagePrefix + tenant + "/" + node }
func bootstrapOf(tenant string) string            { return bootstrapKeys + tenant + "/" }
func bootstrapOfNode(tenant, node string) string  { return bootstrapOf(tenant) + node + "/" }
func bootstrapKey(tenant, node, id string) string { return bootstrapOfNode(tenant, node) + id }

// Store is what the tokens and node records need of *store.Store.
type Store interface {
	Get(ctx context.Context, key string) (store.Item, error)
	List(ctx context.Context, prefix string) ([]store.Item, error)
	Commit(ctx context.Context, ops ...store.Op) error
}

// Clock tells the time; time.Now for all but tests.
type Clock func() time.Time
