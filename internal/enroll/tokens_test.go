package enroll

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
)

func createToken(t *testing.T, tokens *Tokens, spec TokenSpec) enrollapi.Token {
	t.Helper()
	tok, _, err := tokens.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func claimOf(tok enrollapi.Token, box string) Claim {
	return Claim{Token: tok, Tenant: "acme", Hostname: box, SPKI: "key of " + box, NotAfter: time.Unix(2e9, 0).UTC()}
}

func TestCreateToken(t *testing.T) {
	s := openStore(t)
	tokens := NewTokens(s, nil, discard)
	tok, rec, err := tokens.Create(t.Context(), TokenSpec{Tenant: "acme", Labels: map[string]string{"site": "north", "node.kubernetes.io/x": "y"}})
	if err != nil {
		t.Fatal(err)
	}
	if rec.Uses != 1 || rec.ExpiresAt.Sub(rec.CreatedAt) != DefaultTokenTTL || rec.Status(time.Now()) != "active" {
		t.Errorf("defaults: %+v", rec)
	}
	it, err := s.Get(t.Context(), tokenKey(tok.ID))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(it.Value), tok.Secret) {
		t.Error("the store holds the secret")
	}
	if _, _, err := tokens.Create(t.Context(), TokenSpec{Tenant: "nobody"}); !errors.Is(err, tenant.ErrNotFound) {
		t.Errorf("unknown tenant: %v", err)
	}
	createToken(t, tokens, TokenSpec{Tenant: "beta"})
	for who, want := range map[string]int{"acme": 1, "beta": 1, "": 2} {
		if l, err := tokens.List(t.Context(), who); err != nil || len(l) != want {
			t.Errorf("List(%q) = %d tokens, %v; want %d", who, len(l), err, want)
		}
	}
}

func TestTokenSpecRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		spec TokenSpec
		want []string
	}{
		"all at once":        {TokenSpec{Tenant: "A", TTL: -1, Uses: -1, NodeName: "UP"}, []string{`"A"`, "lifetime", "uses -1", `"UP"`}},
		"too long":           {TokenSpec{Tenant: "acme", TTL: 400 * 24 * time.Hour, Uses: 1001}, []string{"lifetime", "1 to 1000"}},
		"one name for many":  {TokenSpec{Tenant: "acme", NodeName: "a", Uses: 2}, []string{"makes one node"}},
		"name of a service":  {TokenSpec{Tenant: "acme", NodeName: "kubernetes.default.svc"}, []string{"service"}},
		"name of the API":    {TokenSpec{Tenant: "acme", NodeName: "kubernetes"}, []string{"service"}},
		"localhost":          {TokenSpec{Tenant: "acme", NodeName: "localhost"}, []string{"every machine itself"}},
		"name is an address": {TokenSpec{Tenant: "acme", NodeName: "10.96.0.1"}, []string{"reads as an IP"}},
		"label of the cluster": {TokenSpec{Tenant: "acme", Labels: map[string]string{
			"node-role.kubernetes.io/control-plane": "", "node-restriction.kubernetes.io/a": "b", "kubernetes.io/x": "", "foo.k8s.io/x": ""}},
			[]string{"node-role.kubernetes.io", "node-restriction.kubernetes.io", `"kubernetes.io/x"`, "foo.k8s.io", "kubectl label node"}},
		"label malformed": {TokenSpec{Tenant: "acme", Labels: map[string]string{"a b": "c", "d": "e f"}}, []string{`"a b"`, `"e f"`}},
		"taint": {TokenSpec{Tenant: "acme", Taints: []enrollapi.Taint{{Key: "", Effect: "NoSchedule"}, {Key: "k", Value: "a b", Effect: "Never"}, {Key: "x", Effect: "NoExecute"}, {Key: "x", Value: "1", Effect: "NoExecute"}}},
			[]string{`taint ""`, `"a b"`, `"Never"`, "twice"}},
		"description": {TokenSpec{Tenant: "acme", Description: strings.Repeat("x", 300)}, []string{"description"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.spec.complete()
			if err == nil {
				t.Fatal("took it")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error does not say %q:\n%v", w, err)
				}
			}
		})
	}
}

func TestNodeNameFromHostname(t *testing.T) {
	for in, want := range map[string]string{
		"edge-1": "edge-1", " Edge-1\n": "edge-1", "edge-1.shop.example.": "edge-1.shop.example", "1": "1",
		"": "", "  ": "", "under_score": "", "localhost": "", "localhost.localdomain": "", "-a": "", "a..b": "",
		"kubernetes": "", "kubernetes.default": "", "api.x.svc": "", "api.x.svc.cluster.local": "", "ünïcode": "",
		"192.168.1.10": "", "a\x00b": "", strings.Repeat("a", 64): "",
	} {
		got, err := nodeNameFromHostname(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("nodeNameFromHostname(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzNodeNameFromHostname(f *testing.F) {
	f.Add("edge-1")
	f.Add("Kubernetes.Default.SVC.")
	f.Fuzz(func(t *testing.T, in string) {
		name, err := nodeNameFromHostname(in)
		if err != nil {
			return
		}
		if again, err := nodeNameFromHostname(name); err != nil || again != name {
			t.Fatalf("%q gave %q, which gives %q, %v", in, name, again, err)
		}
		if strings.HasPrefix(name, "kubernetes.") || strings.ContainsAny(name, "/ \n_") {
			t.Fatalf("%q gave %q", in, name)
		}
	})
}

// The same box asking many times at once takes one use.
func TestClaimSameKeyRaced(t *testing.T) {
	s := openStore(t)
	tokens := NewTokens(s, nil, discard)
	tok := createToken(t, tokens, TokenSpec{Tenant: "acme", Uses: 5})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if node, _, err := tokens.Claim(t.Context(), claimOf(tok, "edge-1")); err != nil || node.Name != "edge-1" {
				t.Errorf("Claim = %+v, %v", node, err)
			}
		})
	}
	wg.Wait()
	recs, err := tokens.List(t.Context(), "acme")
	if err != nil || len(recs[0].Used) != 1 {
		t.Fatalf("uses taken: %+v, %v; want one", recs, err)
	}
}

// Boxes that share a hostname: one gets it, the others are told of it and cost nothing.
func TestClaimNameRaced(t *testing.T) {
	s := openStore(t)
	tokens := NewTokens(s, nil, discard)
	tok := createToken(t, tokens, TokenSpec{Tenant: "acme", Uses: 10})
	var wg sync.WaitGroup
	errs := make([]error, 10)
	for i := range errs {
		wg.Go(func() {
			c := claimOf(tok, "edge-1")
			c.SPKI = fmt.Sprint(i)
			_, _, errs[i] = tokens.Claim(t.Context(), c)
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), "edge-1"):
			t.Errorf("%v, want ErrNameTaken naming the node", err)
		}
	}
	recs, err := tokens.List(t.Context(), "")
	if err != nil || won != 1 || len(recs[0].Used) != 1 {
		t.Fatalf("%d won, uses %+v, %v", won, recs, err)
	}
}

func TestClaimReasons(t *testing.T) {
	s := openStore(t)
	clk := newClock()
	tokens, nodes := NewTokens(s, clk.now, discard), NewNodes(s, discard)
	claim := func(c Claim) error {
		_, _, err := tokens.Claim(t.Context(), c)
		return err
	}
	short := createToken(t, tokens, TokenSpec{Tenant: "acme", TTL: time.Minute, Uses: 2})
	used := createToken(t, tokens, TokenSpec{Tenant: "acme"})
	revoked := createToken(t, tokens, TokenSpec{Tenant: "acme", Uses: 2})
	beta := createToken(t, tokens, TokenSpec{Tenant: "beta"})
	many := createToken(t, tokens, TokenSpec{Tenant: "acme", Uses: 5})
	for tok, box := range map[enrollapi.Token]string{short: "s", used: "u", revoked: "r", many: "m"} {
		if err := claim(claimOf(tok, box)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tokens.Revoke(t.Context(), revoked.ID), tokens.Revoke(t.Context(), revoked.ID)); err != nil {
		t.Fatal(err)
	}
	if err := tokens.Revoke(t.Context(), enrollapi.NewToken().ID); !errors.Is(err, ErrTokenNotFound) {
		t.Errorf("Revoke of an unknown token: %v", err)
	}
	if err := nodes.Remove(t.Context(), "acme", "m"); err != nil {
		t.Fatal(err)
	}
	clk.advance(2 * time.Minute)

	wrong := enrollapi.Token{ID: used.ID, Secret: many.Secret}
	for name, tc := range map[string]struct {
		c    Claim
		want Reason
	}{
		"unknown":                            {claimOf(enrollapi.NewToken(), "x"), ReasonUnknown},
		"wrong secret":                       {claimOf(wrong, "x"), ReasonWrongSecret},
		"wrong secret, key that used it":     {claimOf(wrong, "u"), ReasonWrongSecret},
		"other tenant":                       {claimOf(beta, "x"), ReasonOtherTenant},
		"no tenant":                          {Claim{Token: many, Hostname: "x", SPKI: "x"}, ReasonOtherTenant},
		"revoked":                            {claimOf(revoked, "x"), ReasonRevoked},
		"revoked, key that used it":          {claimOf(revoked, "r"), ""},
		"expired":                            {claimOf(short, "x"), ReasonExpired},
		"used up":                            {claimOf(used, "x"), ReasonUsedUp},
		"node removed, with uses still left": {claimOf(many, "m"), ReasonNodeRemoved},
		"expired, key that used it":          {claimOf(short, "s"), ""},
		"used up, key that used it":          {claimOf(used, "u"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := claim(tc.c)
			var refused *RefusedError
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("%v, want the same node again", err)
			case tc.want != "" && (!errors.As(err, &refused) || refused.Reason != tc.want):
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
	t.Run("bad hostname", func(t *testing.T) {
		if err := claim(claimOf(many, "_")); !errors.Is(err, ErrBadName) {
			t.Errorf("%v, want ErrBadName", err)
		}
	})
	t.Run("called like the API server", func(t *testing.T) {
		if err := claim(claimOf(many, "Acme.edge.example")); !errors.Is(err, ErrBadName) {
			t.Errorf("%v, want ErrBadName", err)
		}
	})
	t.Run("tenant gone", func(t *testing.T) {
		it, err := s.Get(t.Context(), tenant.Key("acme"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context(), store.Delete(it.Key, it.Rev)); err != nil {
			t.Fatal(err)
		}
		var refused *RefusedError
		for _, c := range []Claim{claimOf(many, "new"), claimOf(used, "u")} {
			if err := claim(c); !errors.As(err, &refused) || refused.Reason != ReasonTenantGone {
				t.Errorf("%v, want %q", err, ReasonTenantGone)
			}
		}
		if err := Purge(t.Context(), s, "acme", discard); err != nil {
			t.Fatal(err)
		}
		for _, prefix := range []string{tokenPrefix, nodePrefix} {
			items, err := s.List(t.Context(), prefix)
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range items {
				if it.Key != tokenKey(beta.ID) {
					t.Errorf("%s is left after Purge", it.Key)
				}
			}
		}
	})
}

func TestClaimGivesTheTokensSpec(t *testing.T) {
	s := openStore(t)
	clk := newClock()
	tokens, nodes := NewTokens(s, clk.now, discard), NewNodes(s, discard)
	tok := createToken(t, tokens, TokenSpec{
		Tenant: "acme", NodeName: "pump-7", Labels: map[string]string{"site": "north"},
		Taints: []enrollapi.Taint{{Key: "edge", Effect: "NoSchedule"}},
	})
	c := claimOf(tok, "some_Host")
	c.NotAfter = clk.now().Add(time.Hour).UTC()
	node, again, err := tokens.Claim(t.Context(), c)
	if err != nil || again || node.Name != "pump-7" || node.Labels["site"] != "north" || len(node.Taints) != 1 {
		t.Fatalf("Claim = %+v, %v, %v", node, again, err)
	}
	c.NotAfter = clk.now().Add(2 * time.Hour).UTC()
	if _, again, err := tokens.Claim(t.Context(), c); err != nil || !again {
		t.Fatalf("second Claim: %v, %v", again, err)
	}
	rec, err := nodes.Get(t.Context(), "acme", "pump-7")
	if err != nil || !rec.CertificateNotAfter.Equal(c.NotAfter) || rec.TokenID != tok.ID || rec.SPKI != c.SPKI {
		t.Fatalf("record %+v, %v", rec, err)
	}
	// The same key with a new token is the same node, with what the new token gives.
	fresh := createToken(t, tokens, TokenSpec{Tenant: "acme", NodeName: "pump-7", Labels: map[string]string{"site": "south"}})
	c.Token = fresh
	node, _, err = tokens.Claim(t.Context(), c)
	if err != nil || node.Labels["site"] != "south" || node.TokenID != fresh.ID {
		t.Fatalf("with a new token: %+v, %v", node, err)
	}
}

// beaten is a store in which somebody else is always first.
type beaten struct{ Store }

func (beaten) Commit(context.Context, ...store.Op) error { return store.ErrConflict }

func TestClaimConflictsEndWithTheContext(t *testing.T) {
	s := openStore(t)
	tok := createToken(t, NewTokens(s, nil, discard), TokenSpec{Tenant: "acme"})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := NewTokens(beaten{s}, nil, discard).Claim(ctx, claimOf(tok, "edge-1")); err == nil {
		t.Fatal("claimed without a commit")
	}
}
