package enroll

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// box is the wish of a box with a serial number and a key of its own. It was not told its tenant.
func box(tok enrollapi.Token, serial, key string) Claim {
	return Claim{Token: tok, Hostname: "localhost-" + key, Serial: serial, SPKI: "sha256:" + hashSecret(key), Remote: "198.51.100.7:4711", NotAfter: time.Unix(2e9, 0).UTC()}
}

func fileClaim(t *testing.T, s Store, spec ClaimSpec) {
	t.Helper()
	if _, err := NewClaims(s, nil, discard).Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
}

func waits(t *testing.T, err error) *PendingError {
	t.Helper()
	p, ok := errors.AsType[*PendingError](err)
	if !ok {
		t.Fatalf("%v, want the box to wait", err)
	}
	return p
}

func TestNormalSerial(t *testing.T) {
	for in, want := range map[string]string{
		"5CG0123XYZ": "5cg0123xyz", " /7XK2/CN 12 /\n": "/7xk2/cn 12 /", "a  b": "a b", "1": "1",
		"": "", "  ": "", "To Be Filled By O.E.M.": "", "Default string": "", "0000000000": "", "XXXXXXXX": "", "0": "", "None": "",
		"a\x00b": "", "ünïcode": "", strings.Repeat("ab", 65): "",
	} {
		if got, ok := normalSerial(in); got != want || ok != (want != "") {
			t.Errorf("normalSerial(%q) = %q, %v; want %q", in, got, ok, want)
		}
	}
}

// A claim is consumed with the use of the token, by the first key; that key gets its node again, another waits.
func TestClaimConsumed(t *testing.T) {
	s := openStore(t)
	var line bytes.Buffer
	tokens, claims, nodes := NewTokens(s, nil, discard), NewClaims(s, nil, discard), NewNodes(s, discard)
	tokens.Audit = audit.New(&line, nil, nil)
	tok := createToken(t, tokens, TokenSpec{Uses: 5, Labels: map[string]string{"a": "token", "b": "token"}, Taints: []enrollapi.Taint{{Key: "x", Value: "token", Effect: "NoSchedule"}}})
	fileClaim(t, s, ClaimSpec{
		Serial: "SN/1", Tenant: "acme", NodeName: "pump-1", Labels: map[string]string{"b": "claim"},
		Taints: []enrollapi.Taint{{Key: "x", Value: "claim", Effect: "NoSchedule"}},
	})
	for i, again := range []bool{false, true} {
		node, got, err := tokens.Claim(t.Context(), box(tok, " sn/1 ", "k1"))
		if err != nil || got != again || node.Tenant != "acme" || node.Name != "pump-1" || node.Labels["a"] != "token" || node.Labels["b"] != "claim" || len(node.Taints) != 1 || node.Taints[0].Value != "claim" {
			t.Fatalf("time %d: %+v, %v, %v", i+1, node, got, err)
		}
	}
	recs, err := claims.List(t.Context(), "acme")
	if err != nil || len(recs) != 1 || recs[0].Consumed == nil || recs[0].Consumed.Node != "pump-1" || recs[0].Consumed.SPKI != box(tok, "", "k1").SPKI {
		t.Fatalf("claims %+v, %v", recs, err)
	}
	if rec, err := nodes.Get(t.Context(), "acme", "pump-1"); err != nil || rec.Serial != "sn/1" {
		t.Errorf("node %+v, %v", rec, err)
	}
	if toks, err := tokens.List(t.Context(), ""); err != nil || len(toks[0].Used) != 1 || toks[0].Used[0].Tenant != "acme" {
		t.Errorf("token %+v, %v", toks, err)
	}
	if got := line.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"action":"consumed"`) || !strings.Contains(got, `"node":"pump-1"`) {
		t.Errorf("audit: %s", got)
	}

	for _, n := range []bool{true, false} { // told once
		_, _, err = tokens.Claim(t.Context(), box(tok, "SN/1", "k2"))
		if p := waits(t, err); p.New != n || !strings.Contains(p.Reason, "another key") || !strings.Contains(p.Reason, "acme/pump-1") {
			t.Errorf("%+v", p)
		}
	}
	var refused *RefusedError
	lost := box(tok, "SN/1", "k1")
	if lost.Tenant = "beta"; !errors.As(claimErr(tokens, t, lost), &refused) || refused.Reason != ReasonOtherTenant {
		t.Error("a box that was told another tenant got acme's node")
	}
	if err := Purge(t.Context(), s, "acme", discard); !errors.Is(err, tenant.ErrExists) {
		t.Fatal(err)
	}
	if err := purgeClaims(t.Context(), s, "acme", discard); err != nil {
		t.Fatal(err)
	}
	if recs, err := claims.List(t.Context(), ""); err != nil || len(recs) != 0 {
		t.Errorf("claims of a tenant that is gone: %+v, %v", recs, err)
	}
}

func claimErr(tokens *Tokens, t *testing.T, c Claim) error {
	t.Helper()
	_, _, err := tokens.Claim(t.Context(), c)
	return err
}

// Who may consume a claim, and who has to wait for what.
func TestClaimPlaces(t *testing.T) {
	s := openStore(t)
	tokens := NewTokens(s, nil, discard)
	shared := createToken(t, tokens, TokenSpec{Uses: 50})
	manual := createToken(t, tokens, TokenSpec{Uses: 50, Approval: ApprovalManual})
	acme := createToken(t, tokens, TokenSpec{Tenant: "acme", Uses: 50, NodeName: "{tenant}-{serial}"})
	fileClaim(t, s, ClaimSpec{Serial: "auto", Tenant: "acme"})
	fileClaim(t, s, ClaimSpec{Serial: "own", Tenant: "acme", NodeName: "named"})
	fileClaim(t, s, ClaimSpec{Serial: "manual", Tenant: "acme", Approval: ApprovalManual})
	fileClaim(t, s, ClaimSpec{Serial: "bound", Tenant: "acme", Fingerprint: strings.ToUpper(hashSecret("right"))})
	fileClaim(t, s, ClaimSpec{Serial: "beta", Tenant: "beta"})
	fileClaim(t, s, ClaimSpec{Serial: "both", Tenant: "acme"})
	told := func(c Claim) Claim { c.Tenant = "acme"; return c }
	for _, tc := range []struct {
		name string
		c    Claim
		node string // tenant/node, or
		wait string
	}{
		{"no tenant, claimed", box(shared, "auto", "1"), "acme/localhost-1", ""},
		{"no tenant, no claim", box(shared, "other", "2"), "", `serial "other" no claim`},
		{"no tenant, no serial", box(shared, "", "3"), "", "no serial number to find a claim by"},
		{"no tenant, serial of nobody", box(shared, "Default String", "4"), "", "no serial number"},
		{"the claim asks for approval", box(shared, "manual", "5"), "", "the claim asks"},
		{"the token asks for approval", box(manual, "both", "6"), "", "the token asks"},
		{"the claim is of another key", box(shared, "bound", "7"), "", "names another key"},
		{"the claim is of this key", box(shared, "bound", "right"), "acme/localhost-right", ""},
		{"token and claim of a tenant", told(box(acme, "OWN", "9")), "acme/named", ""},
		{"claim of another tenant", told(box(acme, "beta", "10")), "acme/acme-beta", ""},
		{"token of a tenant, no claim", told(box(acme, "S.N/7", "11")), "acme/acme-s-n-7", ""},
		{"no tenant, claimed, beta now", box(shared, "beta", "12"), "beta/localhost-12", ""},
	} { // in order: the key that a claim is for comes after another that tries
		t.Run(tc.name, func(t *testing.T) {
			node, _, err := tokens.Claim(t.Context(), tc.c)
			if tc.wait != "" {
				if p := waits(t, err); !strings.Contains(p.Reason, tc.wait) {
					t.Errorf("waits because %q, want %q", p.Reason, tc.wait)
				}
				return
			}
			if err != nil || node.Tenant+"/"+node.Name != tc.node {
				t.Errorf("%s/%s, %v; want %s", node.Tenant, node.Name, err, tc.node)
			}
		})
	}
	t.Run("told another tenant than the claim's", func(t *testing.T) {
		c := box(shared, "manual", "20")
		c.Tenant = "beta"
		if refused, ok := errors.AsType[*RefusedError](claimErr(tokens, t, c)); !ok || refused.Reason != ReasonOtherTenant {
			t.Error("not refused")
		}
	})
	t.Run("template without a serial", func(t *testing.T) {
		if err := claimErr(tokens, t, told(box(acme, "", "21"))); !errors.Is(err, ErrBadName) || !strings.Contains(err.Error(), "no serial number of its own") {
			t.Errorf("%v", err)
		}
	})
}

func TestNodeNameRule(t *testing.T) {
	for rule, want := range map[string]string{
		"": "edge-1", "{hostname}": "edge-1", "{serial}": "5cg-12", "{tenant}-{serial}": "acme-5cg-12", "pump-7": "pump-7", "a.{hostname}.b": "a.edge-1.b",
	} {
		if err := nameRule(rule).valid(); err != nil {
			t.Errorf("%q: %v", rule, err)
		}
		if got, err := nameRule(rule).expand("acme", "Edge-1\n", "#5CG/12."); err != nil || got != want {
			t.Errorf("%q gives %q, %v; want %q", rule, got, err, want)
		}
	}
	for rule, want := range map[string]string{
		"{uuid}": "unknown placeholder", "{hostname": "brace", "a}": "brace", "{}": "unknown placeholder", "{{serial}}": "unknown placeholder", "-{serial}": "node name", "A{serial}": "node name",
		"{serial}.svc": "service", strings.Repeat("a", 64) + "{serial}": "node name",
	} {
		if err := nameRule(rule).valid(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", rule, err, want)
		}
	}
	for _, serial := range []string{"", "///", "None", strings.Repeat("ab", 60)} {
		if got, err := nameRule("{serial}").expand("acme", "edge-1", serial); err == nil {
			t.Errorf("serial %q gives %q", serial, got)
		}
	}
	for rule, many := range map[string]bool{"": true, "{tenant}": false, "a": false, "{tenant}-{serial}": true, "{hostname}": true} {
		spec := TokenSpec{Tenant: "acme", NodeName: rule, Uses: 2}
		if err := spec.complete(); (err == nil) != many {
			t.Errorf("%q for two nodes: %v", rule, err)
		}
	}
}

func FuzzNodeNameRule(f *testing.F) {
	f.Add("shop-{serial}", "Edge-1", "5CG 123")
	f.Add("{hostname}", "", "")
	f.Fuzz(func(t *testing.T, rule, hostname, serial string) {
		if nameRule(rule).valid() != nil {
			return
		}
		if name, err := nameRule(rule).expand("acme", hostname, serial); err == nil && validNodeName(name) != nil {
			t.Fatalf("%q, %q, %q gave %q", rule, hostname, serial, name)
		}
	})
}

// Two boxes with one serial number, at once: one is in, the other waits.
func TestClaimRaced(t *testing.T) {
	s := openStore(t)
	tokens := NewTokens(s, nil, discard)
	tok := createToken(t, tokens, TokenSpec{Uses: 100})
	fileClaim(t, s, ClaimSpec{Serial: "sn1", Tenant: "acme", NodeName: "pump-1"})
	errs := make([]error, 20)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, _, errs[i] = tokens.Claim(t.Context(), box(tok, "SN1", fmt.Sprint(i))) })
	}
	wg.Wait()
	in := 0
	for _, err := range errs {
		if err == nil {
			in++
			continue
		}
		waits(t, err)
	}
	pending, err := tokens.Pending(t.Context())
	if err != nil || in != 1 || len(pending) != 19 {
		t.Errorf("%d in, %d wait, %v; want 1 and 19", in, len(pending), err)
	}
}

func TestCreateCSV(t *testing.T) {
	s := openStore(t)
	var log bytes.Buffer
	claims := NewClaims(s, nil, slog.New(slog.NewTextHandler(&log, nil)))
	var file strings.Builder
	file.WriteString("\ufeffserial,tenant,node-name,labels,taints\r\n")
	for i := range 600 { // ten batches
		fmt.Fprintf(&file, "SN%d,%s,pump-%d,\"site=north; row=%d\",edge=true:NoSchedule;cold:NoExecute\r\n", i, []string{"acme", "beta"}[i%2], i, i)
	}
	broken := &failing{Store: s, after: 2}
	filed, err := NewClaims(broken, nil, discard).CreateCSV(t.Context(), []byte(file.String()), "")
	if err == nil || len(filed.Created) != 120 || !strings.Contains(err.Error(), "120 claims are filed, 480 are not (from serial \"sn120\" on)") {
		t.Fatalf("%d filed, %v", len(filed.Created), err)
	}
	filed, err = claims.CreateCSV(t.Context(), []byte(file.String()), "")
	if err != nil || len(filed.Created) != 480 || filed.Unchanged != 120 {
		t.Fatalf("%d filed, %d unchanged, %v", len(filed.Created), filed.Unchanged, err)
	}
	recs, err := claims.List(t.Context(), "beta")
	if err != nil || len(recs) != 300 || recs[0].Labels["site"] != "north" || len(recs[0].Taints) != 2 || recs[0].Taints[1] != (enrollapi.Taint{Key: "cold", Effect: "NoExecute"}) {
		t.Fatalf("%d claims, first %+v, %v", len(recs), recs[0], err)
	}

	head := "serial,tenant,node-name,labels,taints\n"
	for name, tc := range map[string]struct {
		in   string
		want []string
	}{
		"empty":       {"", []string{"line 1: want the header"}},
		"header only": {head, []string{"no claims"}},
		"header":      {"serial,tenant\na,acme\n", []string{"line 1: want the header"}},
		"too large":   {strings.Repeat("x", MaxClaimsCSV+1), []string{"split the file"}},
		"too many":    {head + strings.Repeat("x,acme,,,\n", MaxClaimsAtOnce+1), []string{"more than 5000", "problems more"}},
		"quote":       {head + "a,acme,,,\n\"b,acme,,,\n", []string{"line 3"}},
		"all at once": {head + "a,acme,,,\nA,acme,,,\n\"To be\nfilled\",Acme,UP,x,y\nb,nobody,,,\nc,acme,kubernetes,,\nSN0,beta,,,\nd,acme\ne,acme,twin,,\nf,acme,twin,,\ng,acme,acme.edge.example,,\n",
			[]string{`line 3: serial "a" is on line 2`, `line 4: `, `"UP"`, `label "x"`, `taint "y"`, `line 6: .*nobody`, `line 7: .*service`, `line 8: .*claimed already`, `line 9: 2 fields`, `line 11: .*"twin" is on line 10`, `line 12: .*API server`}},
	} {
		t.Run(name, func(t *testing.T) {
			filed, err := claims.CreateCSV(t.Context(), []byte(tc.in), "")
			if err == nil || len(filed.Created) != 0 {
				t.Fatalf("filed %d, %v", len(filed.Created), err)
			}
			for _, w := range tc.want {
				if !matches(w, err.Error()) {
					t.Errorf("not told %q:\n%v", w, err)
				}
			}
		})
	}
	if recs, err := claims.List(t.Context(), ""); err != nil || len(recs) != 600 {
		t.Errorf("%d claims after the bad files, %v", len(recs), err)
	}
}

// failing is a store whose disk fails after some commits.
type failing struct {
	Store
	after int
}

func (f *failing) Commit(ctx context.Context, ops ...store.Op) error {
	if f.after--; f.after < 0 {
		return errors.New("disk is gone")
	}
	return f.Store.Commit(ctx, ops...)
}

func FuzzParseClaims(f *testing.F) {
	f.Add([]byte("serial,tenant,node-name,labels,taints\na,acme,n,x=y;z=,k=v:NoSchedule\n"))
	f.Add([]byte("serial,tenant,node-name,labels,taints\n\"a\n\",acme,,,\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		specs, err := ParseClaims(data)
		if err != nil {
			if specs != nil || strings.Count(err.Error(), "\n") > maxCSVProblems {
				t.Fatalf("%d claims and %v", len(specs), err)
			}
			return
		}
		if len(specs) == 0 || len(specs) > MaxClaimsAtOnce {
			t.Fatalf("%d claims", len(specs))
		}
		for _, spec := range specs {
			rec, err := spec.record(time.Time{})
			if err != nil || spec.line < 2 {
				t.Fatalf("line %d: %v", spec.line, err)
			}
			if again, ok := normalSerial(rec.Serial); !ok || again != rec.Serial || strings.Contains(strings.TrimPrefix(claimKey(rec.Serial), claimPrefix), "/") {
				t.Fatalf("serial %q, key %s", rec.Serial, claimKey(rec.Serial))
			}
		}
	})
}

func matches(pattern, s string) bool { return regexp.MustCompile(pattern).MatchString(s) }
