package enroll

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/store"
)

func TestTidy(t *testing.T) {
	s := openStore(t)
	clk := newClock()
	tokens, nodes := NewTokens(s, clk.now, discard), NewNodes(s, discard)
	unused := createToken(t, tokens, TokenSpec{Tenant: "acme"})
	used := createToken(t, tokens, TokenSpec{Tenant: "acme"})
	revoked := createToken(t, tokens, TokenSpec{Tenant: "acme", TTL: 300 * 24 * time.Hour})
	long := createToken(t, tokens, TokenSpec{Tenant: "acme", TTL: 300 * 24 * time.Hour})
	shared := createToken(t, tokens, TokenSpec{Uses: 5})
	lost := claimOf(used, "edge-1")
	if err := errors.Join(claimErr(tokens, t, lost), tokens.Revoke(t.Context(), revoked.ID)); err != nil {
		t.Fatal(err)
	}
	stays, goes, denied := box(shared, "", "stays"), box(shared, "", "goes"), box(shared, "", "denied")
	for _, c := range []Claim{stays, goes, denied} {
		waits(t, claimErr(tokens, t, c))
	}
	if _, err := tokens.Deny(t.Context(), denied.SPKI); err != nil {
		t.Fatal(err)
	}
	left := func(want ...string) {
		t.Helper()
		var got []string
		toks, err := tokens.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range toks {
			got = append(got, rec.ID)
		}
		list, err := tokens.Pending(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			got = append(got, p.SPKI)
		}
		if len(got) != len(want) {
			t.Errorf("left %q, want %q", got, want)
		}
		for _, w := range want {
			if !strings.Contains(strings.Join(got, " "), w) {
				t.Errorf("left %q without %q", got, w)
			}
		}
	}
	tidy := func() {
		t.Helper()
		if err := tokens.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	tidy()
	left(unused.ID, used.ID, revoked.ID, long.ID, shared.ID, stays.SPKI, goes.SPKI, denied.SPKI)
	clk.advance(20 * 24 * time.Hour)
	waits(t, claimErr(tokens, t, stays)) // its token expired long ago
	clk.advance(12 * 24 * time.Hour)
	tidy()
	left(used.ID, long.ID, shared.ID, stays.SPKI, denied.SPKI)
	clk.advance(10 * 24 * time.Hour)
	// A box that never got its certificate comes again after however long.
	clk.advance(400 * 24 * time.Hour)
	tidy()
	left(used.ID, denied.SPKI)
	if node, again, err := tokens.Claim(t.Context(), lost); err != nil || !again || node.Name != "edge-1" {
		t.Errorf("%+v, %v, %v", node, again, err)
	}
	if err := nodes.Remove(t.Context(), "acme", "edge-1"); err != nil {
		t.Fatal(err)
	}
	tidy()
	left(denied.SPKI)
}

// Boxes of a token that leaked make room once it is revoked, with no hand on each of them.
func TestTidyForgetsBoxesOfRevokedTokens(t *testing.T) {
	s := openStore(t)
	tokens := NewTokens(s, nil, discard)
	leaked, good := createToken(t, tokens, TokenSpec{Uses: 5}), createToken(t, tokens, TokenSpec{Uses: 5})
	denied, stays := box(leaked, "", "denied"), box(good, "", "stays")
	for _, c := range []Claim{denied, stays, box(leaked, "", "goes")} {
		waits(t, claimErr(tokens, t, c))
	}
	if _, err := tokens.Deny(t.Context(), denied.SPKI); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tokens.Revoke(t.Context(), leaked.ID), tokens.Tidy(t.Context())); err != nil {
		t.Fatal(err)
	}
	list, err := tokens.Pending(t.Context())
	if err != nil || len(list) != 2 || list[0].SPKI != denied.SPKI || list[1].SPKI != stays.SPKI {
		t.Errorf("%+v, %v; want the denied box and that of the other token", list, err)
	}
}

// The list has room for so many of a token, and so many in all; denied ones don't count.
func TestPendingBounded(t *testing.T) {
	s := openStore(t)
	clk := newClock()
	tokens := NewTokens(s, clk.now, discard)
	tokens.maxPending, tokens.maxPendingPerToken = 5, 3
	one, two := createToken(t, tokens, TokenSpec{Uses: 99}), createToken(t, tokens, TokenSpec{Uses: 99})
	fill := func(tok enrollapi.Token, n int) (in int) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				_, _, err := tokens.Claim(t.Context(), box(tok, "", fmt.Sprint(tok.ID, i)))
				mu.Lock()
				defer mu.Unlock()
				if _, waits := errors.AsType[*PendingError](err); waits {
					in++
				} else if !errors.Is(err, ErrPendingFull) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return in
	}
	if n := fill(one, 10); n != 3 {
		t.Errorf("%d of the first token wait, want 3", n)
	}
	if n := fill(two, 10); n != 2 {
		t.Errorf("%d of the second token wait, want 2", n)
	}
	list, err := tokens.Pending(t.Context())
	if err != nil || len(list) != 5 {
		t.Fatal(len(list), err)
	}
	for _, p := range list { // those that wait go on waiting
		c := box(one, "", "")
		if c.SPKI = p.SPKI; p.TokenID == two.ID {
			c.Token = two
		}
		waits(t, claimErr(tokens, t, c))
	}
	i := slices.IndexFunc(list, func(p PendingRecord) bool { return p.TokenID == one.ID })
	if _, err := tokens.Deny(t.Context(), list[i].SPKI); err != nil {
		t.Fatal(err)
	}
	clk.advance(fullFor)
	waits(t, claimErr(tokens, t, box(one, "", "late")))
}

// A box that says something else each time costs a write a minute, and the operator as many lines.
func TestPendingChangesAreBounded(t *testing.T) {
	s, clk := openStore(t), newClock()
	writes := &counted{Store: s}
	tokens := NewTokens(writes, clk.now, discard)
	tok := createToken(t, tokens, TokenSpec{Uses: 5})
	writes.n = 0
	told := 0
	for i := range 100 {
		c := box(tok, fmt.Sprint("SN", i), "k1")
		c.Hostname = fmt.Sprint("h", i)
		if waits(t, claimErr(tokens, t, c)).New {
			told++
		}
	}
	if writes.n != 1 || told != 1 {
		t.Errorf("%d writes, told %d times; want one of each", writes.n, told)
	}
	clk.advance(changeEvery)
	if p := waits(t, claimErr(tokens, t, box(tok, "other", "k1"))); !p.New || writes.n != 2 {
		t.Errorf("%+v after %d writes: what changed is not noted later", p, writes.n)
	}
}

type counted struct {
	Store
	n int
}

func (c *counted) Commit(ctx context.Context, ops ...store.Op) error {
	c.n++
	return c.Store.Commit(ctx, ops...)
}
