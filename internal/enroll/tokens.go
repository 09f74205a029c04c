package enroll

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
)

const (
	// DefaultTokenTTL holds where TokenSpec.TTL is 0.
	DefaultTokenTTL = 24 * time.Hour
	maxTokenTTL     = 366 * 24 * time.Hour
	// maxUses keeps a token's record, which lists its uses, well below the store's limit.
	maxUses        = 1000
	maxDescription = 256
)

// TokenSpec says what a new token is for.
type TokenSpec struct {
	// Tenant whose nodes it makes; must exist. "" = of no tenant: a token that many boxes may share, and that lets
	// none in by itself. Claims place its boxes, or an operator who approves them.
	Tenant string
	// TTL until it expires; 0 = 24 hours, at most 366 days.
	TTL time.Duration
	// Uses is how many nodes it makes; 0 = 1, at most 1000.
	Uses int
	// NodeName is how its nodes are named: "" = by the box's own hostname, a name = that one (which makes one node,
	// so Uses is 1), or a template with {hostname}, {serial} and {tenant}, e.g. "shop-{serial}".
	NodeName string
	// Approval is ApprovalAuto (also ""), or ApprovalManual: an operator approves each box.
	Approval string
	// Labels and Taints that the node registers with.
	Labels map[string]string
	Taints []enrollapi.Taint
	// Description is for the operator's eyes.
	Description string
}

// TokenUse is one node that a token made.
type TokenUse struct {
	SPKI string `json:"spki"`
	Node string `json:"node"`
	// Tenant of the node, where the token has none.
	Tenant string    `json:"tenant,omitempty"`
	At     time.Time `json:"at"`
}

// TokenRecord is a token as it is stored and listed: all but the secret.
type TokenRecord struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant"` // "" = none
	// SecretHash is hex of SHA-256 of the secret. The secret has 160 random bits: there is no dictionary to
	// try, so a slow hash would cost the broker time and an attacker nothing more.
	SecretHash  string            `json:"secretHash"`
	CreatedAt   time.Time         `json:"createdAt"`
	ExpiresAt   time.Time         `json:"expiresAt"`
	RevokedAt   *time.Time        `json:"revokedAt,omitempty"`
	Uses        int               `json:"uses"`
	Used        []TokenUse        `json:"used,omitempty"`
	NodeName    string            `json:"nodeName,omitempty"`
	Approval    string            `json:"approval,omitempty"` // "" = auto
	Labels      map[string]string `json:"labels,omitempty"`
	Taints      []enrollapi.Taint `json:"taints,omitempty"`
	Description string            `json:"description,omitempty"`
}

// Status is one word for lists: active, expired, used up or revoked.
func (r TokenRecord) Status(now time.Time) string {
	switch {
	case r.RevokedAt != nil:
		return "revoked"
	case len(r.Used) >= r.Uses:
		return "used up"
	case !now.Before(r.ExpiresAt):
		return "expired"
	}
	return "active"
}

// Errors of tokens and nodes, for errors.Is.
var (
	// ErrTokenNotFound says that there is no token of that id.
	ErrTokenNotFound = errors.New("no such token")
	// ErrNameTaken says that the node's name belongs to another key; see NameTakenError.
	ErrNameTaken = errors.New("node name is taken")
	// ErrNodeNotFound says that there is no record of that node.
	ErrNodeNotFound = errors.New("no such node")
	// ErrBadName says that the box's hostname or serial number can't name a node.
	ErrBadName = errors.New("no usable node name")
)

// Tokens are the enrolment tokens in the store. Safe for concurrent use, also by several brokers.
type Tokens struct {
	// Audit takes a line for each claim that is consumed; nil drops them. Set it before the first use.
	Audit *audit.Log

	store Store
	now   Clock
	log   *slog.Logger
	count pendingCount

	maxPending, maxPendingPerToken int
}

// NewTokens makes the token half of enrolment over the store. now nil = time.Now.
func NewTokens(s Store, now Clock, log *slog.Logger) *Tokens {
	if now == nil {
		now = time.Now
	}
	return &Tokens{store: s, now: now, log: log, maxPending: maxPending, maxPendingPerToken: maxPendingPerToken}
}

// Create makes a token. The secret is in the first result and nowhere else. All problems of the spec are
// reported at once; tenant.ErrNotFound if there is no such tenant.
func (t *Tokens) Create(ctx context.Context, spec TokenSpec) (enrollapi.Token, TokenRecord, error) {
	if err := spec.complete(); err != nil {
		return enrollapi.Token{}, TokenRecord{}, err
	}
	tok, now := enrollapi.NewToken(), t.now().UTC()
	rec := TokenRecord{
		ID: tok.ID, Tenant: spec.Tenant, SecretHash: hashSecret(tok.Secret),
		CreatedAt: now, ExpiresAt: now.Add(spec.TTL), Uses: spec.Uses, NodeName: spec.NodeName, Approval: spec.Approval,
		Labels: maps.Clone(spec.Labels), Taints: slices.Clone(spec.Taints), Description: spec.Description,
	}
	val, err := json.Marshal(rec)
	if err != nil {
		return enrollapi.Token{}, TokenRecord{}, fmt.Errorf("encode token: %w", err)
	}
	err = retry(ctx, func() error {
		ops := []store.Op{store.Create(tokenKey(rec.ID), val)}
		if spec.Tenant != "" {
			live, err := tenantLives(ctx, t.store, spec.Tenant, nameRule(spec.NodeName).fixed())
			if err != nil {
				return err
			}
			ops = append(ops, live)
		}
		return t.store.Commit(ctx, ops...)
	})
	if err != nil {
		return enrollapi.Token{}, TokenRecord{}, fmt.Errorf("create token: %w", err)
	}
	t.log.Info("enrolment token created", "tenant", rec.Tenant, "token", rec.ID, "uses", rec.Uses, "expires", rec.ExpiresAt)
	return tok, rec, nil
}

// complete fills in defaults and reports all that is wrong.
func (s *TokenSpec) complete() error {
	if s.TTL == 0 {
		s.TTL = DefaultTokenTTL
	}
	if s.Uses == 0 {
		s.Uses = 1
	}
	errs := []error{validApproval(&s.Approval), nameRule(s.NodeName).valid()}
	if s.Tenant != "" {
		errs = append(errs, pki.ValidTenant(s.Tenant))
	}
	if s.TTL < 0 || s.TTL > maxTokenTTL {
		errs = append(errs, fmt.Errorf("token lifetime %v: want more than 0 and at most %v", s.TTL, maxTokenTTL))
	}
	if s.Uses < 1 || s.Uses > maxUses {
		errs = append(errs, fmt.Errorf("token uses %d: want 1 to %d", s.Uses, maxUses))
	}
	if s.Uses > 1 && !nameRule(s.NodeName).many() {
		errs = append(errs, fmt.Errorf("a token with a fixed node name makes one node, not %d: drop the name or the uses, or put {serial} or {hostname} into the name", s.Uses))
	}
	if len(s.Description) > maxDescription {
		errs = append(errs, fmt.Errorf("description has %d bytes, at most %d are taken", len(s.Description), maxDescription))
	}
	return errors.Join(append(errs, validLabels(s.Labels), validTaints(s.Taints))...)
}

// List returns the tokens of a tenant, or all for "", by creation.
func (t *Tokens) List(ctx context.Context, tenant string) ([]TokenRecord, error) {
	items, err := t.store.List(ctx, tokenPrefix)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	var out []TokenRecord
	for _, it := range items {
		var rec TokenRecord
		if err := json.Unmarshal(it.Value, &rec); err != nil {
			t.log.Error("token's record in the store can't be read, it is passed over", "token", it.Key[len(tokenPrefix):], "err", err)
			continue
		}
		if tenant == "" || rec.Tenant == tenant {
			out = append(out, rec)
		}
	}
	slices.SortStableFunc(out, func(a, b TokenRecord) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return out, nil
}

// Revoke ends a token; ErrTokenNotFound if there is none. The nodes that it made stay, the boxes that wait with it are
// forgotten by the next Tidy. The record stays too, so
// that the log can tell a revoked token from an unknown one.
func (t *Tokens) Revoke(ctx context.Context, id string) error {
	if err := enrollapi.ValidTokenID(id); err != nil {
		return err
	}
	err := retry(ctx, func() error {
		rec, rev, err := t.get(ctx, id)
		if err != nil || rec.RevokedAt != nil {
			return err
		}
		now := t.now().UTC()
		rec.RevokedAt = &now
		val, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		return t.store.Commit(ctx, store.Replace(tokenKey(id), val, rev))
	})
	if err != nil {
		return fmt.Errorf("revoke token %s: %w", id, err)
	}
	t.log.Info("enrolment token revoked", "token", id)
	return nil
}

func (t *Tokens) get(ctx context.Context, id string) (TokenRecord, int64, error) {
	it, err := t.store.Get(ctx, tokenKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return TokenRecord{}, 0, ErrTokenNotFound
	}
	if err != nil {
		return TokenRecord{}, 0, err
	}
	var rec TokenRecord
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return TokenRecord{}, 0, fmt.Errorf("record in the store can't be read: %w", err)
	}
	return rec, it.Rev, nil
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// tenantLives is a condition that the tenant is still there when the commit is made. A node must not be called
// what the tenant's API server is verified by: its serving certificate would pass for the API server's.
func tenantLives(ctx context.Context, s Store, name, node string) (store.Op, error) {
	it, err := s.Get(ctx, tenant.Key(name))
	if errors.Is(err, store.ErrNotFound) {
		return store.Op{}, fmt.Errorf("%w: %s (see `broker tenant list`)", tenant.ErrNotFound, name)
	}
	if err != nil {
		return store.Op{}, err
	}
	var t tenant.Tenant
	if err := json.Unmarshal(it.Value, &t); err != nil {
		return store.Op{}, fmt.Errorf("tenant %s: record in the store can't be read: %w", name, err)
	}
	if node != "" && controlPlaneName(t, node) {
		return store.Op{}, fmt.Errorf("%w: %q is what the tenant's API server is called", ErrBadName, node)
	}
	return store.Check(it.Key, it.Rev), nil
}

const maxConflicts = 500

// retry runs an optimistic read and commit until it is not beaten by another. Each conflict means that somebody
// else went ahead, so the whole always moves; the pause keeps a crowd from beating itself.
func retry(ctx context.Context, attempt func() error) error {
	for i := 0; ; i++ {
		err := attempt()
		if !errors.Is(err, store.ErrConflict) || i == maxConflicts {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, while retrying: %w", context.Cause(ctx), err)
		case <-time.After(rand.N(min(time.Duration(i+1)*2*time.Millisecond, 50*time.Millisecond))):
		}
	}
}
