package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
)

// wantRefused checks that a claim is refused for this reason.
func wantRefused(t *testing.T, err error, want Reason) {
	t.Helper()
	if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Reason != want {
		t.Errorf("claim: %v; want a refusal because %q", err, want)
	}
}

func TestRevokedNodeStaysOutAndKeepsItsName(t *testing.T) {
	s := openStore(t)
	clk := newClock()
	tokens, nodes := NewTokens(s, clk.now, discard), NewNodes(s, discard)
	tok := createToken(t, tokens, TokenSpec{Tenant: "acme", Uses: 5})
	old := claimOf(tok, "edge-1")
	if _, _, err := tokens.Claim(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	rec, err := nodes.Revoke(t.Context(), "acme", "edge-1", "stolen", clk.now())
	if err != nil || rec.RevokedAt == nil || rec.RevokedReason != "stolen" {
		t.Fatalf("Revoke = %+v, %v", rec, err)
	}
	at := *rec.RevokedAt
	if rec, err := nodes.Revoke(t.Context(), "acme", "edge-1", "again", clk.now().Add(time.Hour)); err != nil || !rec.RevokedAt.Equal(at) || rec.RevokedReason != "stolen" {
		t.Errorf("revoked again: %+v, %v; want what it was", rec, err)
	}
	_, _, err = tokens.Claim(t.Context(), old)
	wantRefused(t, err, ReasonKeyRevoked)
	again := old
	again.Token, again.Hostname = createToken(t, tokens, TokenSpec{Tenant: "acme"}), "edge-2"
	_, _, err = tokens.Claim(t.Context(), again) // a new token and another name
	wantRefused(t, err, ReasonKeyRevoked)
	other := claimOf(tok, "edge-1")
	other.SPKI = "another key"
	if _, _, err := tokens.Claim(t.Context(), other); !errors.Is(err, ErrNameTaken) {
		t.Errorf("another box with the name of a revoked node: %v", err)
	}
	// Removed, the name is free, and the key is worth nothing all the same.
	if err := nodes.Remove(t.Context(), "acme", "edge-1"); err != nil {
		t.Fatal(err)
	}
	_, _, err = tokens.Claim(t.Context(), again)
	wantRefused(t, err, ReasonKeyRevoked)
	if _, _, err := tokens.Claim(t.Context(), other); err != nil {
		t.Errorf("another box with the name of a node that was removed: %v", err)
	}
	if _, err := nodes.Revoke(t.Context(), "acme", "nobody", "", clk.now()); !errors.Is(err, ErrNodeNotFound) {
		t.Errorf("revoke nobody: %v", err)
	}
	if _, err := nodes.Revoke(t.Context(), "acme", "edge-1", strings.Repeat("x", MaxReason+1), clk.now()); err == nil {
		t.Error("a reason without an end was taken")
	}
}

func TestReplaceLetsOneBoxInOnce(t *testing.T) {
	s := openStore(t)
	clk := newClock()
	tokens, nodes := NewTokens(s, clk.now, discard), NewNodes(s, discard)
	tok := createToken(t, tokens, TokenSpec{Tenant: "acme", Uses: 10})
	old := claimOf(tok, "edge-1")
	if _, _, err := tokens.Claim(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	box := func(key string) Claim {
		c := claimOf(tok, "edge-1")
		c.SPKI = key
		return c
	}
	if _, err := nodes.Replace(t.Context(), "acme", "edge-1", clk.now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if rec, again, err := tokens.Claim(t.Context(), old); err != nil || !again || rec.ReplaceUntil == nil {
		t.Fatalf("the old box before it was replaced: %+v, %v", rec, err)
	}
	clk.advance(time.Hour)
	if _, _, err := tokens.Claim(t.Context(), box("late")); !errors.Is(err, ErrNameTaken) {
		t.Errorf("after the time was over: %v", err)
	}
	if _, err := nodes.Replace(t.Context(), "acme", "edge-1", clk.now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	// Of many that race for it, one wins.
	const racers = 12
	var wg sync.WaitGroup
	var mu sync.Mutex
	var winners []string
	for i := range racers {
		wg.Go(func() {
			key := "new key " + string(rune('a'+i))
			_, _, err := tokens.Claim(t.Context(), box(key))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				winners = append(winners, key)
			} else if !errors.Is(err, ErrNameTaken) {
				t.Errorf("%s: %v", key, err)
			}
		})
	}
	wg.Wait()
	rec, err := nodes.Get(t.Context(), "acme", "edge-1")
	if err != nil || len(winners) != 1 || rec.SPKI != winners[0] || rec.ReplaceUntil != nil {
		t.Fatalf("winners %q; record %+v, %v", winners, rec, err)
	}
	_, _, err = tokens.Claim(t.Context(), old)
	wantRefused(t, err, ReasonKeyRevoked)
	if _, again, err := tokens.Claim(t.Context(), box(winners[0])); err != nil || !again {
		t.Errorf("the winner again: %v", err)
	}
	used, err := tokens.List(t.Context(), "acme")
	if err != nil || len(used[0].Used) != 2 {
		t.Errorf("token %+v, %v; want two uses", used, err)
	}
}

// A stolen box: revoked first, then another takes its name.
func TestReplaceARevokedNode(t *testing.T) {
	s := openStore(t)
	tokens, nodes := NewTokens(s, nil, discard), NewNodes(s, discard)
	tok := createToken(t, tokens, TokenSpec{Tenant: "acme", Uses: 2})
	if _, _, err := tokens.Claim(t.Context(), claimOf(tok, "edge-1")); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.Revoke(t.Context(), "acme", "edge-1", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.Replace(t.Context(), "acme", "edge-1", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	_, _, err := tokens.Claim(t.Context(), claimOf(tok, "edge-1")) // the stolen one wants its name back
	wantRefused(t, err, ReasonKeyRevoked)
	c := claimOf(tok, "edge-1")
	c.SPKI = "the new box"
	if rec, _, err := tokens.Claim(t.Context(), c); err != nil || rec.RevokedAt != nil || rec.SPKI != "the new box" {
		t.Errorf("the new box: %+v, %v", rec, err)
	}
}

// A claim that has read everything before the revocation, and commits after it, is beaten.
func TestRevocationBeatsAClaimUnderWay(t *testing.T) {
	s := openStore(t)
	tokens, nodes := NewTokens(s, nil, discard), NewNodes(s, discard)
	tok := createToken(t, tokens, TokenSpec{Tenant: "acme"})
	c := claimOf(tok, "edge-1")
	if _, _, err := tokens.Claim(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	late := &interposed{Store: s}
	late.before = func() {
		if _, err := nodes.Revoke(t.Context(), "acme", "edge-1", "", time.Now()); err != nil {
			t.Error(err)
		}
	}
	_, _, err := NewTokens(late, nil, discard).Claim(t.Context(), c)
	wantRefused(t, err, ReasonKeyRevoked)
	if late.before != nil {
		t.Error("the claim committed nothing")
	}
}

// interposed runs before once, ahead of the next commit.
type interposed struct {
	Store
	before func()
}

func (i *interposed) Commit(ctx context.Context, ops ...store.Op) error {
	if f := i.before; f != nil {
		i.before = nil
		f()
	}
	return i.Store.Commit(ctx, ops...)
}

// A key that two nodes were made of is worth nothing once one of them is revoked.
func TestRevokedKeyIsNoOtherNodesEither(t *testing.T) {
	s := openStore(t)
	tokens, nodes := NewTokens(s, nil, discard), NewNodes(s, discard)
	key := newKey(t)
	for _, name := range []string{"edge-1", "edge-2"} {
		c := claimOf(createToken(t, tokens, TokenSpec{Tenant: "acme"}), name)
		c.SPKI = pki.SPKIHash(key.Public())
		if _, _, err := tokens.Claim(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	cert := &x509.Certificate{PublicKey: key.Public()}
	if err := nodes.Authorize(t.Context(), nodeOf("example.org", "edge-2"), cert); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.Revoke(t.Context(), "acme", "edge-1", "stolen", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := nodes.Authorize(t.Context(), nodeOf("example.org", "edge-2"), cert); !errors.Is(err, ErrRevoked) {
		t.Errorf("%v", err)
	}
}

// A replacement forgets the past of the node that it ends, whatever token the new box comes with.
func TestReplacementForgetsTheLineage(t *testing.T) {
	s := openStore(t)
	tokens, nodes := NewTokens(s, nil, discard), NewNodes(s, discard)
	shared := createToken(t, tokens, TokenSpec{Uses: 5})
	fileClaim(t, s, ClaimSpec{Serial: "sn1", Tenant: "acme", NodeName: "edge-1"})
	fileClaim(t, s, ClaimSpec{Serial: "sn2", Tenant: "acme", NodeName: "edge-1"})
	if err := claimErr(tokens, t, box(shared, "sn1", "k1")); err != nil {
		t.Fatal(err)
	}
	h := hello("a", 1)
	h.Now = time.Now()
	if res, err := nodes.Admit(t.Context(), "acme", "edge-1", h, func() bool { return false }); err != nil || res.Verdict != Accepted {
		t.Fatal(res, err)
	}
	if _, err := nodes.Replace(t.Context(), "acme", "edge-1", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := claimErr(tokens, t, box(shared, "sn2", "k2")); err != nil {
		t.Fatal(err)
	}
	if _, rev, err := getLineage(t.Context(), s, "acme", "edge-1"); err != nil || rev != 0 {
		t.Errorf("the old box's sessions are still remembered (revision %d, %v)", rev, err)
	}
}

// One box that connects in a loop does not fill the store.
func TestAdmitIsPaced(t *testing.T) {
	nodes := NewNodes(openStore(t), discard)
	h := hello("a", 0)
	h.SPKI, h.Now = "k1", time.Now()
	admit := func() error {
		h.Generation++
		_, err := nodes.Admit(t.Context(), "acme", "edge-1", h, func() bool { return false })
		return err
	}
	for i := range keyBurst {
		if err := admit(); err != nil {
			t.Fatalf("time %d: %v", i, err)
		}
	}
	if err := admit(); !errors.Is(err, ErrTooOften) {
		t.Errorf("%v", err)
	}
	if h.SPKI = "k2"; admit() != nil {
		t.Error("another box has to wait for it")
	}
	h.SPKI, h.Now = "k1", h.Now.Add(time.Second)
	if err := admit(); err != nil {
		t.Errorf("a second later: %v", err)
	}
}
