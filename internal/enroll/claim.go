package enroll

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// Reason is why a token was not taken: for the operator's log, never for the box.
type Reason string

// The reasons there are.
const (
	ReasonMalformed   Reason = "malformed"
	ReasonUnknown     Reason = "unknown"
	ReasonWrongSecret Reason = "wrong secret"
	ReasonOtherTenant Reason = "other tenant"
	ReasonRevoked     Reason = "revoked"
	ReasonExpired     Reason = "expired"
	ReasonUsedUp      Reason = "used up"
	// ReasonNodeRemoved: the key made a node of this token before, and an operator removed that node.
	ReasonNodeRemoved Reason = "node was removed"
	ReasonTenantGone  Reason = "tenant is gone"
	// ReasonKeyRevoked: the key was a node's that an operator revoked, or that another box replaced.
	ReasonKeyRevoked Reason = "key is revoked"
)

// RefusedError says why a token was not taken.
type RefusedError struct {
	Reason  Reason
	TokenID string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("enrolment token %q refused: %s", e.TokenID, e.Reason)
}

// NameTakenError names the node that another key holds. It is ErrNameTaken to errors.Is.
type NameTakenError struct{ Tenant, Node string }

func (e *NameTakenError) Error() string {
	return fmt.Sprintf("node name %q of tenant %s is held by another key: give the box another name, or let it take this one (broker node replace %s/%s)", e.Node, e.Tenant, e.Tenant, e.Node)
}

func (e *NameTakenError) Is(target error) bool { return target == ErrNameTaken }

// Claim is a box's wish to become a node.
type Claim struct {
	Token    enrollapi.Token
	Tenant   string
	Hostname string
	// SPKI is the hash of the key that the box has proven to hold.
	SPKI string
	// NotAfter of the certificate that will be issued, and the hash of its CA's key, for the record.
	NotAfter time.Time
	Issuer   string
}

// Claim trades a use of a token for a node record, in one commit. The same key with the same token gets the same
// node again, also when the token is used up, expired or revoked since, and no further use is taken: a box that
// lost the answer, or whose certificate is to be renewed, just asks again; what ends a node is its removal. Errors: *RefusedError, ErrNameTaken, ErrBadName, the store's.
func (t *Tokens) Claim(ctx context.Context, c Claim) (node NodeRecord, again bool, err error) {
	err = retry(ctx, func() (err error) {
		node, again, err = t.claim(ctx, c)
		return err
	})
	if errors.Is(err, tenant.ErrNotFound) {
		err = &RefusedError{Reason: ReasonTenantGone, TokenID: c.Token.ID}
	}
	if errors.Is(err, ErrRevoked) {
		err = &RefusedError{Reason: ReasonKeyRevoked, TokenID: c.Token.ID}
	}
	return node, again, err
}

func (t *Tokens) claim(ctx context.Context, c Claim) (NodeRecord, bool, error) {
	rec, rev, err := t.get(ctx, c.Token.ID)
	found := err == nil
	if err != nil && !errors.Is(err, ErrTokenNotFound) {
		return NodeRecord{}, false, fmt.Errorf("read token %s: %w", c.Token.ID, err)
	}
	refuse := func(why Reason) (NodeRecord, bool, error) {
		return NodeRecord{}, false, &RefusedError{Reason: why, TokenID: c.Token.ID}
	}
	if why := t.admit(rec, found, c); why != "" {
		return refuse(why)
	}
	if i := slices.IndexFunc(rec.Used, func(u TokenUse) bool { return u.SPKI == c.SPKI }); i >= 0 {
		node, err := t.reclaim(ctx, rec, rec.Used[i].Node, c)
		if errors.Is(err, ErrNodeNotFound) {
			return refuse(ReasonNodeRemoved)
		}
		return node, true, err
	}
	switch {
	case rec.RevokedAt != nil:
		return refuse(ReasonRevoked)
	case !t.now().Before(rec.ExpiresAt):
		return refuse(ReasonExpired)
	case len(rec.Used) >= rec.Uses:
		return refuse(ReasonUsedUp)
	}
	node, err := t.use(ctx, rec, rev, c)
	return node, false, err
}

// noHash is compared to for unknown ids, so that those cost what the known cost.
var noHash = strings.Repeat("0", 64)

// admit tells why the token is not this box's to use at all. One read, one hash and one comparison, whatever
// comes out.
func (t *Tokens) admit(rec TokenRecord, found bool, c Claim) Reason {
	want := rec.SecretHash
	if !found {
		want = noHash
	}
	same := subtle.ConstantTimeCompare([]byte(hashSecret(c.Token.Secret)), []byte(want)) == 1
	switch {
	case !found:
		return ReasonUnknown
	case !same:
		return ReasonWrongSecret
	case rec.Tenant != c.Tenant:
		return ReasonOtherTenant
	}
	return ""
}

// reclaim gives the key the node that it has from this token already.
func (t *Tokens) reclaim(ctx context.Context, rec TokenRecord, name string, c Claim) (NodeRecord, error) {
	live, err := tenantLives(ctx, t.store, rec.Tenant, name)
	if err != nil {
		return NodeRecord{}, err
	}
	alive, err := keyLives(ctx, t.store, c.SPKI)
	if err != nil {
		return NodeRecord{}, err
	}
	node, rev, err := getNode(ctx, t.store, rec.Tenant, name)
	if err != nil {
		return NodeRecord{}, err
	}
	if node.SPKI != c.SPKI {
		return NodeRecord{}, ErrNodeNotFound // the name is another's by now
	}
	node.CertificateNotAfter, node.CertificateIssuer = c.NotAfter, c.Issuer
	val, err := json.Marshal(node)
	if err != nil {
		return NodeRecord{}, err
	}
	return node, t.store.Commit(ctx, store.Replace(nodeKey(rec.Tenant, name), val, rev), live, alive)
}

// use takes one of the token's uses and makes the node.
func (t *Tokens) use(ctx context.Context, rec TokenRecord, rev int64, c Claim) (NodeRecord, error) {
	now := t.now().UTC()
	name := rec.NodeName
	if name == "" {
		var err error
		if name, err = nodeNameFromHostname(c.Hostname); err != nil {
			return NodeRecord{}, fmt.Errorf("%w: %w", ErrBadName, err)
		}
	}
	live, err := tenantLives(ctx, t.store, rec.Tenant, name)
	if err != nil {
		return NodeRecord{}, err
	}
	alive, err := keyLives(ctx, t.store, c.SPKI)
	if err != nil {
		return NodeRecord{}, err
	}
	ops := []store.Op{live, alive}
	held, nodeRev, err := getNode(ctx, t.store, rec.Tenant, name)
	switch {
	case errors.Is(err, ErrNodeNotFound): // free, and nodeRev is 0
	case err != nil:
		return NodeRecord{}, err
	case held.SPKI != c.SPKI && !held.replaceable(now):
		return NodeRecord{}, &NameTakenError{Tenant: rec.Tenant, Node: name}
	case held.SPKI != c.SPKI: // the old key ends in the commit in which the new one begins
		old, err := revokeKey(held, now, "replaced by "+c.SPKI)
		if err != nil {
			return NodeRecord{}, err
		}
		past, err := forgetLineage(ctx, t.store, rec.Tenant, name)
		if err != nil {
			return NodeRecord{}, err
		}
		ops = append(append(ops, old), past...)
	}
	node := NodeRecord{
		Tenant: rec.Tenant, Name: name, SPKI: c.SPKI, TokenID: rec.ID, EnrolledAt: now,
		CertificateNotAfter: c.NotAfter, CertificateIssuer: c.Issuer,
		Labels: maps.Clone(rec.Labels), Taints: slices.Clone(rec.Taints),
	}
	rec.Used = append(slices.Clone(rec.Used), TokenUse{SPKI: c.SPKI, Node: name, At: now})
	tokenVal, err := json.Marshal(rec)
	if err != nil {
		return NodeRecord{}, err
	}
	nodeVal, err := json.Marshal(node)
	if err != nil {
		return NodeRecord{}, err
	}
	return node, t.store.Commit(ctx, append(ops,
		store.Replace(tokenKey(rec.ID), tokenVal, rev),
		store.Replace(nodeKey(rec.Tenant, name), nodeVal, nodeRev))...)
}
