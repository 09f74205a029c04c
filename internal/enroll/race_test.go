package enroll

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// Fault 22: of 100 boxes that race for a token of three uses, three win, whatever names the nodes or lets them in.
func TestFault22TokenRaced(t *testing.T) {
	for name, tc := range map[string]struct {
		spec   TokenSpec
		claims bool
	}{
		"hostname":          {spec: TokenSpec{Tenant: "acme"}},
		"template":          {spec: TokenSpec{Tenant: "acme", NodeName: "shop-{serial}"}},
		"no tenant, claims": {claims: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			tokens := NewTokens(s, nil, discard)
			tc.spec.Uses = 3
			tok := createToken(t, tokens, tc.spec)
			errs := make([]error, 100)
			boxes := make([]Claim, len(errs))
			for i := range boxes {
				boxes[i] = claimOf(tok, fmt.Sprintf("edge-%d", i))
				boxes[i].Tenant, boxes[i].Serial = tc.spec.Tenant, fmt.Sprintf("SN%d", i)
				if tc.claims {
					fileClaim(t, s, ClaimSpec{Serial: boxes[i].Serial, Tenant: []string{"acme", "beta"}[i%2]})
				}
			}
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() { _, _, errs[i] = tokens.Claim(t.Context(), boxes[i]) })
			}
			wg.Wait()
			won := 0
			for i, err := range errs {
				refused, ok := errors.AsType[*RefusedError](err)
				switch {
				case err == nil:
					won++
				case !ok || refused.Reason != ReasonUsedUp:
					t.Errorf("loser %d: %v, want used up", i, err)
				}
			}
			threeNodes(t, s, tokens, won)
			if recs, err := NewClaims(s, nil, discard).List(t.Context(), ""); err != nil || tc.claims != (consumedOf(recs) == 3) {
				t.Errorf("%d claims consumed, %v", consumedOf(recs), err)
			}
		})
	}
}

// Fault 22: operators who approve 20 boxes of such a token at once.
func TestFault22ApprovalsRaced(t *testing.T) {
	s := openStore(t)
	tokens := NewTokens(s, nil, discard)
	tok := createToken(t, tokens, TokenSpec{Tenant: "acme", Uses: 3, Approval: ApprovalManual})
	errs := make([]error, 20)
	var wg sync.WaitGroup
	for i := range errs {
		c := claimOf(tok, fmt.Sprintf("edge-%d", i))
		c.SPKI = "sha256:" + hashSecret(c.Hostname)
		waits(t, claimErr(tokens, t, c))
	}
	for i := range errs {
		for range 2 { // each twice
			wg.Go(func() {
				if _, _, err := tokens.Approve(t.Context(), Approval{Fingerprint: "sha256:" + hashSecret(fmt.Sprintf("edge-%d", i))}); err == nil {
					errs[i] = errors.New("approved")
				} else if !errors.Is(err, ErrTokenEnded) && !errors.Is(err, ErrPendingNotFound) {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err != nil {
			won++
		}
	}
	threeNodes(t, s, tokens, won)
}

func threeNodes(t *testing.T, s Store, tokens *Tokens, won int) {
	t.Helper()
	list, err := NewNodes(s, discard).List(t.Context(), "")
	if err != nil || won != 3 || len(list) != 3 {
		t.Errorf("%d won, %d nodes, %v; want 3", won, len(list), err)
	}
	recs, err := tokens.List(t.Context(), "")
	if err != nil || len(recs[0].Used) != 3 || recs[0].Status(time.Now()) != "used up" {
		t.Errorf("record %+v, %v", recs, err)
	}
}

func consumedOf(recs []ClaimRecord) (n int) {
	for _, rec := range recs {
		if rec.Consumed != nil {
			n++
		}
	}
	return n
}
