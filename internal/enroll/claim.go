package enroll

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
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
	// ReasonDenied: an operator denied the box.
	ReasonDenied Reason = "denied by an operator"
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
	Token enrollapi.Token
	// Tenant that the box was told it belongs to; may be "" with a token of no tenant.
	Tenant string
	// Hostname, Serial and Version are the box's own words, Remote is where it comes from.
	Hostname, Serial, Version, Remote string
	// SPKI is the hash of the key that the box has proven to hold.
	SPKI string
	// NotAfter of the certificate that will be issued, and the hash of its CA's key, for the record.
	NotAfter time.Time
	Issuer   string
}

// Claim trades a use of a token for a node record, in one commit. The same key with the same token gets the same
// node again, also when the token is used up, expired or revoked since, and no further use is taken: a box that
// lost the answer, or whose certificate is to be renewed, just asks again; what ends a node is its removal.
//
// A claim of the box's serial number, if there is one for the token's tenant (any, for a token of none), is consumed
// with it. Where an operator has to decide, the box is noted, and the error is *PendingError. Other errors:
// *RefusedError, ErrNameTaken, ErrBadName, ErrPendingFull, the store's.
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
		used := rec.Used[i]
		if used.Tenant = cmp.Or(used.Tenant, rec.Tenant); c.Tenant != "" && c.Tenant != used.Tenant {
			return refuse(ReasonOtherTenant)
		}
		node, again, err := t.reclaim(ctx, used.Tenant, used.Node, c)
		if errors.Is(err, ErrNodeNotFound) {
			return refuse(ReasonNodeRemoved)
		}
		return node, again, err
	}
	box, boxRev, err := getPending(ctx, t.store, c.SPKI)
	if err != nil {
		return NodeRecord{}, false, err
	}
	switch {
	case box.DeniedAt != nil:
		return refuse(ReasonDenied)
	case rec.RevokedAt != nil:
		return refuse(ReasonRevoked)
	case len(rec.Used) >= rec.Uses:
		return refuse(ReasonUsedUp)
	case !t.now().Before(rec.ExpiresAt) && box.TokenID != rec.ID: // one that waits came in time
		return refuse(ReasonExpired)
	}
	p, err := t.place(ctx, rec, c)
	switch {
	case err != nil:
		return NodeRecord{}, false, err
	case c.Tenant != "" && p.tenant != "" && c.Tenant != p.tenant:
		return refuse(ReasonOtherTenant)
	case p.wait != "":
		if _, err := keyLives(ctx, t.store, c.SPKI); err != nil {
			return NodeRecord{}, false, err // nothing for an operator to decide
		}
		return NodeRecord{}, false, t.wait(ctx, box, boxRev, rec, c, p)
	}
	node, err := t.use(ctx, rec, rev, c, p, boxRev)
	if err == nil {
		t.consumed(rec, c, p, node)
	}
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
	case rec.Tenant != "" && rec.Tenant != c.Tenant:
		return ReasonOtherTenant
	}
	return ""
}

// reclaim gives the key the node that it has from this token already. again is false if it was approved, and never got a
// certificate yet.
func (t *Tokens) reclaim(ctx context.Context, tenant, name string, c Claim) (node NodeRecord, again bool, err error) {
	live, err := tenantLives(ctx, t.store, tenant, name)
	if err != nil {
		return node, false, err
	}
	alive, err := keyLives(ctx, t.store, c.SPKI)
	if err != nil {
		return node, false, err
	}
	node, rev, err := getNode(ctx, t.store, tenant, name)
	if err != nil {
		return node, false, err
	}
	if node.SPKI != c.SPKI {
		return NodeRecord{}, false, ErrNodeNotFound // the name is another's by now
	}
	again = !node.CertificateNotAfter.IsZero()
	node.CertificateNotAfter, node.CertificateIssuer = c.NotAfter, c.Issuer
	val, err := json.Marshal(node)
	if err != nil {
		return node, false, err
	}
	return node, again, t.store.Commit(ctx, store.Replace(nodeKey(tenant, name), val, rev), live, alive)
}

// use takes one of the token's uses and makes the node where p says. boxRev is the revision of the box's record
// among those that wait, 0 if it does not; the record ends in the same commit.
func (t *Tokens) use(ctx context.Context, rec TokenRecord, rev int64, c Claim, p placement, boxRev int64) (NodeRecord, error) {
	now := t.now().UTC()
	name, err := p.name.expand(p.tenant, c.Hostname, c.Serial)
	if err != nil {
		return NodeRecord{}, fmt.Errorf("%w: %w", ErrBadName, err)
	}
	live, err := tenantLives(ctx, t.store, p.tenant, name)
	if err != nil {
		return NodeRecord{}, err
	}
	alive, err := keyLives(ctx, t.store, c.SPKI)
	if err != nil {
		return NodeRecord{}, err
	}
	over, nodeRev, err := t.takeName(ctx, p, name, c.SPKI, now)
	if err != nil {
		return NodeRecord{}, err
	}
	ops := append([]store.Op{live, alive}, over...)
	node := NodeRecord{
		Tenant: p.tenant, Name: name, SPKI: c.SPKI, Serial: printable(c.Serial), TokenID: rec.ID, EnrolledAt: now,
		CertificateNotAfter: c.NotAfter, CertificateIssuer: c.Issuer, Labels: p.labels, Taints: p.taints,
	}
	use := TokenUse{SPKI: c.SPKI, Node: name, At: now}
	if rec.Tenant == "" {
		use.Tenant = p.tenant
	}
	rec.Used = append(slices.Clone(rec.Used), use)
	tokenVal, err := json.Marshal(rec)
	if err != nil {
		return NodeRecord{}, err
	}
	nodeVal, err := json.Marshal(node)
	if err != nil {
		return NodeRecord{}, err
	}
	mark, err := p.consume(rec.ID, c.SPKI, name, now)
	if err != nil {
		return NodeRecord{}, err
	}
	ops = append(append(ops, mark...), store.Replace(tokenKey(rec.ID), tokenVal, rev), store.Replace(nodeKey(p.tenant, name), nodeVal, nodeRev))
	if boxRev != 0 {
		ops = append(ops, store.Delete(pendingKey(c.SPKI), boxRev))
	}
	return node, t.store.Commit(ctx, ops...)
}

// takeName returns the revision that the name's record must still have in the commit, 0 = there is none, and what the commit
// has to end of a node that is replaced.
func (t *Tokens) takeName(ctx context.Context, p placement, name, spki string, now time.Time) (over []store.Op, rev int64, err error) {
	held, rev, err := getNode(ctx, t.store, p.tenant, name)
	switch {
	case errors.Is(err, ErrNodeNotFound): // free, and rev is 0
		return nil, rev, nil
	case err != nil:
		return nil, 0, err
	case held.SPKI == spki:
		return nil, rev, nil
	case !held.replaceable(now):
		if err := p.stillThere(ctx, t.store); err != nil {
			return nil, 0, err
		}
		return nil, 0, &NameTakenError{Tenant: p.tenant, Node: name}
	}
	// The old key ends in the commit in which the new one begins.
	old, err := revokeKey(held, now, "replaced by "+spki)
	if err != nil {
		return nil, 0, err
	}
	past, err := forgetLineage(ctx, t.store, p.tenant, name)
	return append(past, old), rev, err
}

// consumed tells of a claim that a box consumed.
func (t *Tokens) consumed(rec TokenRecord, c Claim, p placement, node NodeRecord) {
	if p.claimRev == 0 {
		return
	}
	t.log.Info("claim consumed", "tenant", node.Tenant, "node", node.Name, "serial", p.claim.Serial, "key", c.SPKI, "token", rec.ID)
	t.Audit.Record(audit.Event{
		Event: "claim", Outcome: audit.OK, Actor: "key " + c.SPKI, Tenant: node.Tenant, Node: node.Name, Source: c.Remote,
		Detail: map[string]string{"action": "consumed", "serial": p.claim.Serial, "token": rec.ID},
	})
}
