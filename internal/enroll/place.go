package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/store"
)

// How a token or claim lets boxes in.
const (
	// ApprovalAuto lets every box in that the token, or the claim, is for.
	ApprovalAuto = "auto"
	// ApprovalManual has every box wait for an operator.
	ApprovalManual = "manual"
)

// validApproval fills in the default.
func validApproval(a *string) error {
	switch *a {
	case "":
		*a = ApprovalAuto
	case ApprovalAuto, ApprovalManual:
	default:
		return fmt.Errorf("approval %q: want %s or %s", *a, ApprovalAuto, ApprovalManual)
	}
	return nil
}

// placement is where a box belongs, as token, claim and operator say together.
type placement struct {
	tenant string // "" = nobody said
	name   nameRule
	labels map[string]string
	taints []enrollapi.Taint
	// wait is why an operator has to decide first; "" = nobody has to.
	wait string
	// claim is the one to consume; claimRev 0 = none.
	claim    ClaimRecord
	claimRev int64
}

// place finds out where a box belongs. Without a claim, it is the token that says.
func (t *Tokens) place(ctx context.Context, rec TokenRecord, c Claim) (placement, error) {
	p := placement{tenant: rec.Tenant, name: nameRule(rec.NodeName), labels: maps.Clone(rec.Labels), taints: slices.Clone(rec.Taints)}
	serial, ok := normalSerial(c.Serial)
	claim, rev, err := ClaimRecord{}, int64(0), ErrClaimNotFound
	if ok {
		claim, rev, err = getClaim(ctx, t.store, serial)
	}
	switch {
	case errors.Is(err, ErrClaimNotFound):
		switch {
		case rec.Tenant == "" && !ok:
			p.wait = "the token has no tenant, and the box no serial number to find a claim by"
		case rec.Tenant == "":
			p.wait = fmt.Sprintf("the token has no tenant, and serial %q no claim", serial)
		}
	case err != nil:
		return p, err
	case rec.Tenant == "" || rec.Tenant == claim.Tenant:
		p.byClaim(claim, rev, c.SPKI)
	default:
		t.log.Warn("a claim for the box is another tenant's than its token; the token counts", "tenant", rec.Tenant, "claimed", claim.Tenant, "serial", serial, "token", rec.ID)
	}
	if p.wait == "" && rec.Approval == ApprovalManual {
		p.wait = "the token asks for approval"
	}
	return p, nil
}

// byClaim follows a claim of the token's tenant, if this key may.
func (p *placement) byClaim(claim ClaimRecord, rev int64, spki string) {
	p.tenant = claim.Tenant // also for a box that has to wait: it is the operator's first guess
	switch {
	case claim.Consumed != nil && claim.Consumed.SPKI != spki:
		p.wait = fmt.Sprintf("another key came with serial %q before and is node %s/%s: a new disk, or another box with a false serial", claim.Serial, claim.Tenant, claim.Consumed.Node)
		return
	case claim.Fingerprint != "" && claim.Fingerprint != spki:
		p.wait = fmt.Sprintf("the claim of serial %q names another key", claim.Serial)
		return
	case claim.Approval == ApprovalManual:
		p.wait = "the claim asks for approval"
	}
	p.claim, p.claimRev = claim, rev
	if claim.NodeName != "" {
		p.name = nameRule(claim.NodeName)
	}
	if p.labels == nil {
		p.labels = map[string]string{}
	}
	maps.Copy(p.labels, claim.Labels)
	p.taints = slices.DeleteFunc(p.taints, func(t enrollapi.Taint) bool {
		return slices.ContainsFunc(claim.Taints, func(own enrollapi.Taint) bool { return own.Key == t.Key && own.Effect == t.Effect })
	})
	p.taints = append(p.taints, claim.Taints...)
}

// stillThere is store.ErrConflict if the claim changed since it was read: it may be that whoever has the name by now
// has consumed it.
func (p *placement) stillThere(ctx context.Context, s Store) error {
	if p.claimRev == 0 {
		return nil
	}
	if _, rev, err := getClaim(ctx, s, p.claim.Serial); err == nil && rev == p.claimRev {
		return nil
	} else if err != nil && !errors.Is(err, ErrClaimNotFound) {
		return err
	}
	return fmt.Errorf("claim %q changed: %w", p.claim.Serial, store.ErrConflict)
}

// consume is the part of a node's commit that marks the claim; nil if there is none.
func (p *placement) consume(tokenID, spki, node string, now time.Time) ([]store.Op, error) {
	if p.claimRev == 0 {
		return nil, nil
	}
	claim := p.claim
	claim.Consumed = &ClaimUse{SPKI: spki, Node: node, TokenID: tokenID, At: now}
	val, err := json.Marshal(claim)
	if err != nil {
		return nil, err
	}
	return []store.Op{store.Replace(claimKey(claim.Serial), val, p.claimRev)}, nil
}
