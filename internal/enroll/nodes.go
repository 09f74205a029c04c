package enroll

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// NodeRecord is an enrolled node. While it exists, its key may use its name.
type NodeRecord struct {
	Tenant string `json:"tenant"`
	Name   string `json:"name"`
	// SPKI is the hash of the node's key (pki.SPKIHash).
	SPKI                string    `json:"spki"`
	TokenID             string    `json:"tokenID"`
	EnrolledAt          time.Time `json:"enrolledAt"`
	CertificateNotAfter time.Time `json:"certificateNotAfter"`
	// CertificateIssuer is the hash of the key of the CA that issued it; empty in records of older brokers.
	CertificateIssuer string `json:"certificateIssuer,omitempty"`
	// Serial is the box's serial number as it stated it when it enrolled; may be empty.
	Serial string `json:"serial,omitempty"`
	// RevokedAt is when an operator revoked the node; nil: it is not. The record stays, so the name does not
	// come free with it.
	RevokedAt *time.Time `json:"revokedAt,omitempty"`
	// RevokedReason is what the operator said.
	RevokedReason string `json:"revokedReason,omitempty"`
	// ReplaceUntil is until when one new box may take the name, once; nil: none may.
	ReplaceUntil *time.Time        `json:"replaceUntil,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Taints       []enrollapi.Taint `json:"taints,omitempty"`
}

// replaceable tells whether a box with another key may take the name now.
func (rec NodeRecord) replaceable(now time.Time) bool {
	return rec.ReplaceUntil != nil && now.Before(*rec.ReplaceUntil)
}

// ErrNotAuthorized says that an identity is no node's, or no longer.
var ErrNotAuthorized = errors.New("not an enrolled node")

// ErrRevoked says that an operator revoked the node, or its key. It is ErrNotAuthorized too.
var ErrRevoked = fmt.Errorf("%w: revoked by an operator", ErrNotAuthorized)

// Nodes are the node records in the store. Safe for concurrent use.
type Nodes struct {
	store    Store
	log      *slog.Logger
	sessions pacer // by key
}

// NewNodes makes the node records over the store.
func NewNodes(s Store, log *slog.Logger) *Nodes { return &Nodes{store: s, log: log} }

// Get returns a node's record; ErrNodeNotFound if there is none.
func (n *Nodes) Get(ctx context.Context, tenant, node string) (NodeRecord, error) {
	rec, _, err := getNode(ctx, n.store, tenant, node)
	if err != nil {
		return NodeRecord{}, fmt.Errorf("node %s/%s: %w", tenant, node, err)
	}
	return rec, nil
}

// List returns the nodes of a tenant, or of all for "", by tenant and name.
func (n *Nodes) List(ctx context.Context, tenant string) ([]NodeRecord, error) {
	prefix := nodePrefix
	if tenant != "" {
		prefix = nodesOf(tenant)
	}
	items, err := n.store.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	out := make([]NodeRecord, 0, len(items))
	for _, it := range items {
		var rec NodeRecord
		if err := json.Unmarshal(it.Value, &rec); err != nil {
			n.log.Error("node's record in the store can't be read, it is passed over", "key", it.Key, "err", err)
			continue
		}
		out = append(out, rec)
	}
	return out, nil
}

// Remove forgets a node; ErrNodeNotFound if there is none. Its certificate is worth nothing from then on, and
// its token doesn't bring it back. Cutting a live session is the caller's.
func (n *Nodes) Remove(ctx context.Context, tenant, node string) error {
	if err := errors.Join(pki.ValidTenant(tenant), pki.ValidNode(node)); err != nil {
		return err
	}
	err := retry(ctx, func() error {
		it, err := n.store.Get(ctx, nodeKey(tenant, node))
		if errors.Is(err, store.ErrNotFound) {
			return ErrNodeNotFound
		}
		if err != nil {
			return err
		}
		ops, err := forgetLineage(ctx, n.store, tenant, node)
		if err != nil {
			return err
		}
		return n.store.Commit(ctx, append(ops, store.Delete(it.Key, it.Rev))...)
	})
	if err != nil {
		return fmt.Errorf("remove node %s/%s: %w", tenant, node, err)
	}
	n.log.Info("node removed", "tenant", tenant, "node", node)
	return nil
}

// Authorize tells whether a verified certificate is that of an enrolled node: the record exists, and holds this
// key, and neither is revoked (ErrRevoked): a key may have been another node's too. Otherwise ErrNotAuthorized, saying why, for the log.
func (n *Nodes) Authorize(ctx context.Context, id pki.Identity, cert *x509.Certificate) error {
	if id.Role != pki.RoleNode {
		return fmt.Errorf("%w: %s is not a node's identity", ErrNotAuthorized, id)
	}
	rec, _, err := getNode(ctx, n.store, id.Tenant, id.Name)
	if errors.Is(err, ErrNodeNotFound) {
		return fmt.Errorf("%w: node %s/%s was removed, or never enrolled here", ErrNotAuthorized, id.Tenant, id.Name)
	}
	if err != nil {
		return fmt.Errorf("authorize node %s/%s: %w", id.Tenant, id.Name, err)
	}
	if spki := pki.SPKIHash(cert.PublicKey); spki == "" || spki != rec.SPKI {
		return fmt.Errorf("%w: node %s/%s is enrolled with another key", ErrNotAuthorized, id.Tenant, id.Name)
	}
	if rec.RevokedAt != nil {
		return fmt.Errorf("node %s/%s: %w", id.Tenant, id.Name, ErrRevoked)
	}
	if _, err := keyLives(ctx, n.store, rec.SPKI); err != nil {
		return fmt.Errorf("authorize node %s/%s: %w", id.Tenant, id.Name, err)
	}
	return nil
}

// Purge removes all nodes, tokens, waiting boxes, claims and bootstrap tokens' records of a tenant that is gone. Call it after the tenant was removed, from when
// on nothing new can be made of it, and before one of the same name is added: it must not inherit. While the
// tenant is there it removes nothing and returns tenant.ErrExists.
func Purge(ctx context.Context, s Store, name string, log *slog.Logger) error {
	if _, err := s.Get(ctx, tenant.Key(name)); err == nil {
		return fmt.Errorf("tenant %s: %w: its nodes and tokens stay", name, tenant.ErrExists)
	} else if !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("tenant %s: %w", name, err)
	}
	tokens, nodes := NewTokens(s, nil, log), NewNodes(s, log)
	var errs []error
	recs, err := nodes.List(ctx, name)
	errs = append(errs, err)
	for _, rec := range recs {
		if err := nodes.Remove(ctx, rec.Tenant, rec.Name); !errors.Is(err, ErrNodeNotFound) {
			errs = append(errs, err)
		}
	}
	toks, err := tokens.List(ctx, name)
	errs = append(errs, err, purgeClaims(ctx, s, name, log))
	for _, tok := range toks {
		err := retry(ctx, func() error {
			it, err := s.Get(ctx, tokenKey(tok.ID))
			if err != nil {
				return err
			}
			return s.Commit(ctx, store.Delete(it.Key, it.Rev))
		})
		if !errors.Is(err, store.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, purgePrefix(ctx, s, bootstrapOf(name)), tokens.tidyPending(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what tenant %s left: %w", name, err)
	}
	return nil
}

// purgePrefix removes all records under a prefix.
func purgePrefix(ctx context.Context, s Store, prefix string) error {
	items, err := s.List(ctx, prefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, it := range items {
		err := retry(ctx, func() error {
			now, err := s.Get(ctx, it.Key)
			if err != nil {
				return err
			}
			return s.Commit(ctx, store.Delete(now.Key, now.Rev))
		})
		if !errors.Is(err, store.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// getNode returns the record and its revision; ErrNodeNotFound with revision 0 if there is none.
func getNode(ctx context.Context, s Store, tenant, node string) (NodeRecord, int64, error) {
	it, err := s.Get(ctx, nodeKey(tenant, node))
	if errors.Is(err, store.ErrNotFound) {
		return NodeRecord{}, 0, ErrNodeNotFound
	}
	if err != nil {
		return NodeRecord{}, 0, err
	}
	var rec NodeRecord
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return NodeRecord{}, 0, fmt.Errorf("record of node %s/%s in the store can't be read: %w", tenant, node, err)
	}
	return rec, it.Rev, nil
}
