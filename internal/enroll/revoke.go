package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
)

// revokedKeyPrefix holds the keys that are worth nothing any more, whatever node record comes or goes. A key is
// looked up by its hash in each claim and renewal.
const revokedKeyPrefix = "/mooring/revoked-keys/"

func revokedKeyKey(spki string) string {
	return revokedKeyPrefix + strings.TrimPrefix(spki, "sha256:")
}

// revokedKey says whose key it was; for people, and for whoever looks into the store.
type revokedKey struct {
	Tenant string    `json:"tenant"`
	Node   string    `json:"node"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
}

// revokeKey is the write that makes a key worthless. It replaces one of before: both say the same.
func revokeKey(rec NodeRecord, at time.Time, reason string) (store.Op, error) {
	val, err := json.Marshal(revokedKey{Tenant: rec.Tenant, Node: rec.Name, At: at, Reason: reason})
	return store.Put(revokedKeyKey(rec.SPKI), val), err
}

// keyLives returns the condition, for the commit that lets the key in, that the key was not revoked; ErrRevoked if
// it was.
func keyLives(ctx context.Context, s Store, spki string) (store.Op, error) {
	_, err := s.Get(ctx, revokedKeyKey(spki))
	if err == nil {
		return store.Op{}, fmt.Errorf("key %s: %w", spki, ErrRevoked)
	}
	if !errors.Is(err, store.ErrNotFound) {
		return store.Op{}, err
	}
	return store.Check(revokedKeyKey(spki), 0), nil
}

// MaxReason limits what an operator may say about a revocation, in bytes.
const MaxReason = 256

// Revoke ends a node's identity for good: its key is not taken for anything from then on, not even with a new
// token, and its name stays taken until the node is removed or replaced. Once more is no error and changes nothing.
// Cutting live sessions is that of whoever watches the records. Errors: ErrNodeNotFound, the store's.
func (n *Nodes) Revoke(ctx context.Context, tenant, node, reason string, now time.Time) (NodeRecord, error) {
	if len(reason) > MaxReason {
		return NodeRecord{}, fmt.Errorf("revoke node %s/%s: the reason has %d bytes, at most %d", tenant, node, len(reason), MaxReason)
	}
	now = now.UTC().Truncate(time.Second)
	rec, err := n.change(ctx, tenant, node, func(rec *NodeRecord) ([]store.Op, error) {
		if rec.RevokedAt != nil {
			return nil, nil
		}
		rec.RevokedAt, rec.RevokedReason = &now, reason
		ops, err := forgetLineage(ctx, n.store, tenant, node) // and with it a quarantine: all boxes of the key are out
		if err != nil {
			return nil, err
		}
		op, err := revokeKey(*rec, now, reason)
		return append(ops, op), err
	})
	if err != nil {
		return NodeRecord{}, fmt.Errorf("revoke node %s/%s: %w", tenant, node, err)
	}
	n.log.Info("node revoked", "tenant", tenant, "node", node, "reason", reason)
	return rec, nil
}

// Replace lets one box with another key take the node's name, once, until the given time. The node itself goes on
// as it is until that happens; in that moment its key is revoked. Errors: ErrNodeNotFound, the store's.
func (n *Nodes) Replace(ctx context.Context, tenant, node string, until time.Time) (NodeRecord, error) {
	until = until.UTC().Truncate(time.Second)
	rec, err := n.change(ctx, tenant, node, func(rec *NodeRecord) ([]store.Op, error) {
		rec.ReplaceUntil = &until
		return nil, nil
	})
	if err != nil {
		return NodeRecord{}, fmt.Errorf("replace node %s/%s: %w", tenant, node, err)
	}
	n.log.Info("node's name may be taken by another box, once", "tenant", tenant, "node", node, "until", until)
	return rec, nil
}

// RenewedCertificate is what a renewal asks for.
type RenewedCertificate struct {
	// SPKI is the hash of the key that the box has proven to hold.
	SPKI string
	// NotAfter and Issuer are those of the certificate that will be issued.
	NotAfter time.Time
	Issuer   string
	// Grace is for how long after its last certificate's end a node may still be renewed.
	Grace time.Duration
	Now   time.Time
}

// ErrBeyondGrace says that the node's certificate ran out longer ago than is allowed. It is ErrNotAuthorized too.
var ErrBeyondGrace = fmt.Errorf("%w: its certificate ran out longer ago than identity.expiredGrace: enrol it again with a new token", ErrNotAuthorized)

// Renew takes note of the certificate that a node is about to get. It asks for the record and the pinned key only:
// the certificate that the box has may be expired, or of a CA that is no more. Errors: ErrNotAuthorized (ErrRevoked,
// ErrBeyondGrace), tenant.ErrNotFound, the store's.
func (n *Nodes) Renew(ctx context.Context, tenant, node string, c RenewedCertificate) (NodeRecord, error) {
	rec, err := n.change(ctx, tenant, node, func(rec *NodeRecord) ([]store.Op, error) {
		switch {
		case c.SPKI == "" || rec.SPKI != c.SPKI:
			return nil, fmt.Errorf("%w: it is enrolled with another key", ErrNotAuthorized)
		case rec.RevokedAt != nil:
			return nil, ErrRevoked
		case !c.Now.Before(rec.CertificateNotAfter.Add(c.Grace)):
			return nil, ErrBeyondGrace
		}
		alive, err := keyLives(ctx, n.store, c.SPKI)
		if err != nil {
			return nil, err
		}
		live, err := tenantLives(ctx, n.store, tenant, "")
		if err != nil {
			return nil, err
		}
		rec.CertificateNotAfter, rec.CertificateIssuer = c.NotAfter, c.Issuer
		return []store.Op{alive, live}, nil
	})
	if errors.Is(err, ErrNodeNotFound) {
		err = fmt.Errorf("%w: it was removed, or never enrolled here", ErrNotAuthorized)
	}
	if err != nil {
		return NodeRecord{}, fmt.Errorf("renew node %s/%s: %w", tenant, node, err)
	}
	return rec, nil
}

// change reads a record, has edit change it, and commits it with the ops of edit; again if it was beaten.
// Without ops and with the record as it was, nothing is written.
func (n *Nodes) change(ctx context.Context, tenant, node string, edit func(*NodeRecord) ([]store.Op, error)) (NodeRecord, error) {
	if err := errors.Join(pki.ValidTenant(tenant), pki.ValidNode(node)); err != nil {
		return NodeRecord{}, err
	}
	var rec NodeRecord
	err := retry(ctx, func() (err error) {
		var rev int64
		if rec, rev, err = getNode(ctx, n.store, tenant, node); err != nil {
			return err
		}
		before, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		ops, err := edit(&rec)
		if err != nil {
			return err
		}
		after, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		if len(ops) == 0 && string(before) == string(after) {
			return nil
		}
		return n.store.Commit(ctx, append(ops, store.Replace(nodeKey(tenant, node), after, rev))...)
	})
	return rec, err
}
