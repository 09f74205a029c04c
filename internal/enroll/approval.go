package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/mooring-edge/mooring/internal/store"
)

// Approval is an operator's yes to a box that waits.
type Approval struct {
	// Fingerprint of the box's key, or at least 16 hex digits of its beginning.
	Fingerprint string
	// Tenant for a box whose token has none; "" = the claim's.
	Tenant string
	// NodeName for the node; "" = as claim and token say.
	NodeName string
}

// Errors of approvals, for errors.Is.
var (
	// ErrDenied says that the box was denied before.
	ErrDenied = errors.New("the box was denied")
	// ErrNoTenant says that nobody told which tenant the box belongs to.
	ErrNoTenant = errors.New("the box's token has no tenant")
	// ErrTokenEnded says that the box's token lets nobody in any more.
	ErrTokenEnded = errors.New("the box's token has ended")
)

// Approve makes the box a node: the use of its token, the claim, the node's record and the end of its waiting are
// one commit. All that can be in the way (the name is taken, say) is the operator's to hear, now. The box gets its
// certificate when it asks next, as often as it needs to. A token that expired while the box waited
// is no hindrance: the box came in time.
func (t *Tokens) Approve(ctx context.Context, a Approval) (node NodeRecord, box PendingRecord, err error) {
	if a.NodeName != "" {
		if err := validNodeName(a.NodeName); err != nil {
			return node, box, fmt.Errorf("node name %q: %w", a.NodeName, err)
		}
	}
	err = retry(ctx, func() (err error) {
		if box, err = t.pendingOf(ctx, a.Fingerprint); err != nil {
			return err
		}
		node, err = t.approve(ctx, a, box.SPKI)
		return err
	})
	if err != nil {
		return node, box, fmt.Errorf("approve: %w", err)
	}
	t.log.Info("box approved", "tenant", node.Tenant, "node", node.Name, "key", node.SPKI)
	return node, box, nil
}

func (t *Tokens) approve(ctx context.Context, a Approval, spki string) (NodeRecord, error) {
	box, boxRev, err := getPending(ctx, t.store, spki)
	switch {
	case err != nil:
		return NodeRecord{}, err
	case boxRev == 0:
		return NodeRecord{}, ErrPendingNotFound
	case box.DeniedAt != nil:
		return NodeRecord{}, fmt.Errorf("%w: forget that first (broker node deny --forget %s)", ErrDenied, hexOf(spki)[:min(16, len(hexOf(spki)))])
	}
	token, tokenRev, err := t.get(ctx, box.TokenID)
	switch {
	case errors.Is(err, ErrTokenNotFound):
		return NodeRecord{}, fmt.Errorf("%w: token %s is gone; give the box a new one", ErrTokenEnded, box.TokenID)
	case err != nil:
		return NodeRecord{}, err
	case token.RevokedAt != nil, len(token.Used) >= token.Uses:
		return NodeRecord{}, fmt.Errorf("%w: token %s is %s; give the box a new one", ErrTokenEnded, token.ID, token.Status(t.now()))
	case token.Tenant != "" && a.Tenant != "" && a.Tenant != token.Tenant:
		return NodeRecord{}, fmt.Errorf("the box came with a token of tenant %s: it can't be approved for %s", token.Tenant, a.Tenant)
	}
	c := Claim{Hostname: box.Hostname, Serial: box.Serial, SPKI: box.SPKI}
	p, err := t.place(ctx, token, c)
	if err != nil {
		return NodeRecord{}, err
	}
	if a.Tenant != "" && a.Tenant != p.tenant {
		// The operator knows better than the claim, which stays as it is.
		p = placement{tenant: a.Tenant, name: nameRule(token.NodeName), labels: token.Labels, taints: token.Taints}
	}
	if p.tenant == "" {
		return NodeRecord{}, fmt.Errorf("%w: say which one (--tenant NAME)", ErrNoTenant)
	}
	if box.Told != "" && box.Told != p.tenant {
		return NodeRecord{}, fmt.Errorf("the box was told that its tenant is %q, and would not take an identity of %s: approve it for that one, or mend its join bundle or the agent's configuration first", box.Told, p.tenant)
	}
	if a.NodeName != "" {
		p.name = nameRule(a.NodeName)
	}
	node, err := t.use(ctx, token, tokenRev, c, p, boxRev)
	if err != nil {
		return node, err
	}
	t.consumed(token, c, p, node)
	return node, nil
}

// Deny refuses a box that waits, until it is forgotten.
func (t *Tokens) Deny(ctx context.Context, prefix string) (PendingRecord, error) {
	box, err := t.changePending(ctx, prefix, func(box *PendingRecord, rev int64) (store.Op, error) {
		now := t.now().UTC()
		if box.DeniedAt == nil {
			box.DeniedAt = &now
		}
		val, err := json.Marshal(box)
		return store.Replace(pendingKey(box.SPKI), val, rev), err
	})
	if err != nil {
		return box, fmt.Errorf("deny: %w", err)
	}
	t.log.Info("box denied", "tenant", box.Tenant, "key", box.SPKI, "hostname", box.Hostname)
	return box, nil
}

// Forget deletes a box's record, denied or not: when it comes again it is as new.
func (t *Tokens) Forget(ctx context.Context, prefix string) (PendingRecord, error) {
	box, err := t.changePending(ctx, prefix, func(box *PendingRecord, rev int64) (store.Op, error) {
		return store.Delete(pendingKey(box.SPKI), rev), nil
	})
	if err != nil {
		return box, fmt.Errorf("forget: %w", err)
	}
	t.log.Info("waiting box forgotten", "tenant", box.Tenant, "key", box.SPKI, "hostname", box.Hostname)
	return box, nil
}

func (t *Tokens) changePending(ctx context.Context, prefix string, change func(*PendingRecord, int64) (store.Op, error)) (box PendingRecord, err error) {
	err = retry(ctx, func() error {
		found, err := t.pendingOf(ctx, prefix)
		if err != nil {
			return err
		}
		var rev int64
		if box, rev, err = getPending(ctx, t.store, found.SPKI); err != nil {
			return err
		}
		if rev == 0 {
			return ErrPendingNotFound
		}
		op, err := change(&box, rev)
		if err != nil {
			return err
		}
		return t.store.Commit(ctx, op)
	})
	return box, err
}
