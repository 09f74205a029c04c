package enroll

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
)

func TestApprove(t *testing.T) {
	s := openStore(t)
	clk := newClock()
	tokens, nodes := NewTokens(s, clk.now, discard), NewNodes(s, discard)
	shared := createToken(t, tokens, TokenSpec{Uses: 2, Labels: map[string]string{"from": "token"}})
	c := box(shared, "SN 1", "k1")
	waits(t, claimErr(tokens, t, c))
	list, err := tokens.Pending(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if p := list[0]; p.SPKI != c.SPKI || p.Serial != "SN 1" || p.Remote != "198.51.100.7" || p.TokenID != shared.ID || p.Tenant != "" || p.Hostname != c.Hostname {
		t.Errorf("%+v", p)
	}

	approve := func(fp, tenant, name string) (NodeRecord, error) {
		node, _, err := tokens.Approve(t.Context(), Approval{Fingerprint: fp, Tenant: tenant, NodeName: name})
		return node, err
	}
	prefix := hexOf(c.SPKI)[:16]
	for want, got := range map[error]error{
		ErrNoTenant:        second(approve(prefix, "", "pump")),
		ErrPendingNotFound: second(approve("ffffffffffffffff", "acme", "")),
		ErrBadName:         second(approve(prefix, "acme", "acme.edge.example")),
	} {
		if !errors.Is(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	for _, bad := range []string{"", prefix[:15], "sha256:" + prefix[:15], "xyzxyzxyzxyzxyzxyz", strings.Repeat("a", 65)} {
		if _, err := approve(bad, "acme", ""); err == nil || !strings.Contains(err.Error(), "16 to 64 hex digits") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// The name is taken: the operator hears it, and the box still waits.
	taken := createToken(t, tokens, TokenSpec{Tenant: "acme", NodeName: "pump-0"})
	if err := claimErr(tokens, t, claimOf(taken, "other")); err != nil {
		t.Fatal(err)
	}
	if _, err := approve(prefix, "acme", "pump-0"); !errors.Is(err, ErrNameTaken) {
		t.Errorf("%v", err)
	}

	// The token expired while the box waited; the box came in time, and is let in.
	clk.advance(25 * time.Hour)
	waits(t, claimErr(tokens, t, c))
	late := box(shared, "SN 2", "k2")
	if refused, ok := errors.AsType[*RefusedError](claimErr(tokens, t, late)); !ok || refused.Reason != ReasonExpired {
		t.Error("a box that came too late is not refused")
	}
	node, err := approve("SHA256:"+strings.ToUpper(prefix), "acme", "pump-1")
	if err != nil || node.Name != "pump-1" || node.Tenant != "acme" || node.Labels["from"] != "token" || node.Serial != "SN 1" {
		t.Fatalf("%+v, %v", node, err)
	}
	if list, err := tokens.Pending(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("still waits: %+v, %v", list, err)
	}
	for i, again := range []bool{false, true} { // its first certificate, and once more
		if got, a, err := tokens.Claim(t.Context(), c); err != nil || a != again || got.Name != "pump-1" {
			t.Errorf("time %d: %+v, %v, %v", i, got, a, err)
		}
	}
	if rec, err := nodes.Get(t.Context(), "acme", "pump-1"); err != nil || rec.SPKI != c.SPKI || !rec.CertificateNotAfter.Equal(c.NotAfter) {
		t.Errorf("%+v, %v", rec, err)
	}
}

func second[T any](_ T, err error) error { return err }

// What claim and token say holds at the approval too.
func TestApproveFollowsClaim(t *testing.T) {
	s := openStore(t)
	tokens, claims := NewTokens(s, nil, discard), NewClaims(s, nil, discard)
	tok := createToken(t, tokens, TokenSpec{Uses: 5, NodeName: "shop-{serial}"})
	fileClaim(t, s, ClaimSpec{Serial: "sn1", Tenant: "acme", Approval: ApprovalManual, Labels: map[string]string{"a": "b"}})
	c := box(tok, "SN1", "k1")
	waits(t, claimErr(tokens, t, c))
	node, seen, err := tokens.Approve(t.Context(), Approval{Fingerprint: c.SPKI})
	if err != nil || node.Tenant != "acme" || node.Name != "shop-sn1" || node.Labels["a"] != "b" || seen.Tenant != "acme" {
		t.Fatalf("%+v, %+v, %v", node, seen, err)
	}
	if recs, err := claims.List(t.Context(), ""); err != nil || recs[0].Consumed == nil || recs[0].Consumed.Node != "shop-sn1" {
		t.Errorf("%+v, %v", recs, err)
	}
	// Another key with the serial: the operator may let it in, elsewhere too; the claim stays the first one's.
	other := box(tok, "SN1", "k2")
	waits(t, claimErr(tokens, t, other))
	if node, _, err = tokens.Approve(t.Context(), Approval{Fingerprint: other.SPKI, Tenant: "beta"}); err != nil || node.Tenant != "beta" || node.Labels["a"] != "" {
		t.Errorf("%+v, %v", node, err)
	}
	if recs, err := claims.List(t.Context(), ""); err != nil || recs[0].Consumed.SPKI != c.SPKI {
		t.Errorf("%+v, %v", recs, err)
	}
	// A claim that comes while the box waits lets it in.
	third := box(tok, "SN3", "k3")
	waits(t, claimErr(tokens, t, third))
	fileClaim(t, s, ClaimSpec{Serial: "sn3", Tenant: "acme"})
	if node, _, err := tokens.Claim(t.Context(), third); err != nil || node.Name != "shop-sn3" {
		t.Errorf("%+v, %v", node, err)
	}
	if list, err := tokens.Pending(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("still waits: %+v, %v", list, err)
	}
	// A token of a tenant makes nodes of no other.
	acme := createToken(t, tokens, TokenSpec{Tenant: "acme", Approval: ApprovalManual})
	fourth := claimOf(acme, "edge-4")
	fourth.SPKI = "sha256:" + hashSecret("k4")
	waits(t, claimErr(tokens, t, fourth))
	if _, _, err := tokens.Approve(t.Context(), Approval{Fingerprint: fourth.SPKI, Tenant: "beta"}); err == nil || !strings.Contains(err.Error(), "token of tenant acme") {
		t.Errorf("%v", err)
	}
	if err := tokens.Revoke(t.Context(), acme.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tokens.Approve(t.Context(), Approval{Fingerprint: fourth.SPKI}); !errors.Is(err, ErrTokenEnded) {
		t.Errorf("%v", err)
	}
}

func TestDeny(t *testing.T) {
	s := openStore(t)
	tokens := NewTokens(s, nil, discard)
	manual := createToken(t, tokens, TokenSpec{Tenant: "acme", Approval: ApprovalManual, Uses: 5})
	auto := createToken(t, tokens, TokenSpec{Tenant: "acme", Uses: 5})
	c := claimOf(manual, "edge-1")
	c.SPKI = "sha256:" + hashSecret("k1")
	waits(t, claimErr(tokens, t, c))
	if _, err := tokens.Deny(t.Context(), c.SPKI); err != nil {
		t.Fatal(err)
	}
	for _, tok := range []enrollapi.Token{manual, auto} {
		c.Token = tok
		if refused, ok := errors.AsType[*RefusedError](claimErr(tokens, t, c)); !ok || refused.Reason != ReasonDenied {
			t.Error("a denied box is not refused")
		}
	}
	if _, _, err := tokens.Approve(t.Context(), Approval{Fingerprint: c.SPKI}); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "--forget") {
		t.Errorf("%v", err)
	}
	if _, err := tokens.Forget(t.Context(), hexOf(c.SPKI)[:16]); err != nil {
		t.Fatal(err)
	}
	if _, err := tokens.Forget(t.Context(), c.SPKI); !errors.Is(err, ErrPendingNotFound) {
		t.Errorf("%v", err)
	}
	c.Token = manual
	if p := waits(t, claimErr(tokens, t, c)); !p.New {
		t.Error("a forgotten box is not new")
	}
}

func TestPendingPrefixAmbiguous(t *testing.T) {
	s := openStore(t)
	tokens := NewTokens(s, nil, discard)
	tok := createToken(t, tokens, TokenSpec{Uses: 5})
	for _, end := range []string{"a", "b"} {
		c := box(tok, "", "")
		c.SPKI = "sha256:" + strings.Repeat("0", 63) + end
		waits(t, claimErr(tokens, t, c))
	}
	if _, err := tokens.Deny(t.Context(), "0000000000000000"); err == nil || !strings.Contains(err.Error(), "2 waiting boxes") {
		t.Errorf("%v", err)
	}
	if _, err := tokens.Deny(t.Context(), strings.Repeat("0", 63)+"b"); err != nil {
		t.Error(err)
	}
}

// What a waiting box gets, what the log, the audit log and the metrics say of it, and what it gets in the end.
func TestServerPending(t *testing.T) {
	var line bytes.Buffer
	b := newBench(t, func(c *ServerConfig) { c.Audit = audit.New(&line, nil, nil) })
	counted := make(chan struct{})
	ran := make(chan error, 1)
	go func() { ran <- b.tokens.Run(t.Context(), notifying{b.store, counted}, b.server.cfg.Metrics) }()
	t.Cleanup(func() { <-ran })
	key := newKey(t)
	req := b.request(createToken(t, b.tokens, TokenSpec{Tenant: "acme", Approval: ApprovalManual}), key, "edge-1")
	req.Serial = "SN\x1b[31m1"
	for range 2 {
		status, body := b.post(enrollapi.PathEnrol, nil, req)
		var e enrollapi.Error
		if err := json.Unmarshal(body, &e); err != nil || status != 202 || e.Code != enrollapi.CodePending || e.RetryAfter != 30 || !strings.Contains(e.Message, pki.SPKIHash(key.Public())) {
			t.Fatalf("%d %s, %v", status, body, err)
		}
	}
	<-counted
	if n := testutil.ToFloat64(b.server.cfg.Metrics.pending); n != 1 {
		t.Errorf("gauge says %v", n)
	}
	list, err := b.tokens.Pending(t.Context())
	if err != nil || len(list) != 1 || strings.Contains(list[0].Serial, "\x1b") {
		t.Fatalf("%+v, %v", list, err)
	}
	if _, _, err := b.tokens.Approve(t.Context(), Approval{Fingerprint: list[0].SPKI}); err != nil {
		t.Fatal(err)
	}
	<-counted
	status, body := b.post(enrollapi.PathEnrol, nil, req)
	var resp enrollapi.EnrolResponse
	if err := json.Unmarshal(body, &resp); err != nil || status != 200 || resp.Node != "edge-1" || !resp.Time.Equal(b.clk.now()) {
		t.Errorf("%d %s, %v", status, body, err)
	}
	req.Serial = strings.Repeat("x", enrollapi.MaxSerial+1)
	status, body = b.post(enrollapi.PathEnrol, nil, req)
	wantError(t, status, body, enrollapi.CodeBadRequest)
	req.Token = enrollapi.NewToken().String()
	req.Serial = ""
	status, body = b.post(enrollapi.PathEnrol, nil, req)
	wantError(t, status, body, enrollapi.CodeRefused)
	for outcome, want := range map[string]float64{"pending": 2, "enrolled": 1, "again": 0, "unknown": 1} {
		if n := testutil.ToFloat64(b.server.cfg.Metrics.enrolments.WithLabelValues(outcome)); n != want {
			t.Errorf("%v counted as %s, want %v", n, outcome, want)
		}
	}
	if n := strings.Count(b.log.String(), "box waits for approval"); n != 1 {
		t.Errorf("the log says %d times that the box waits", n)
	}
	var got []string
	for l := range strings.Lines(line.String()) {
		var ev audit.Event
		if err := json.Unmarshal([]byte(l), &ev); err != nil {
			t.Fatal(err)
		}
		got = append(got, ev.Event+" "+ev.Outcome+" "+ev.Reason)
		if ev.Actor != "key "+pki.SPKIHash(key.Public()) || ev.Source == "" || ev.Detail["token"] == "" {
			t.Errorf("%+v", ev)
		}
	}
	if want := "enrol pending the token asks for approval; enrol ok enrolled; enrol refused unknown"; strings.Join(got, "; ") != want {
		t.Errorf("audit: %q", got)
	}
}

// notifying tells of each event after it was seen to.
type notifying struct {
	Watcher
	seen chan struct{}
}

func (n notifying) WatchSynced(ctx context.Context, prefix string, synced func(), fn func(store.Event)) error {
	return n.Watcher.WatchSynced(ctx, prefix, synced, func(ev store.Event) {
		fn(ev)
		select {
		case n.seen <- struct{}{}:
		case <-ctx.Done():
		}
	})
}

// A box that was told its tenant is never let in by itself to another, so an approval for another is no approval.
func TestApproveForTheTenantThatTheBoxKnows(t *testing.T) {
	s := openStore(t)
	tokens := NewTokens(s, nil, discard)
	c := box(createToken(t, tokens, TokenSpec{}), "", "k1")
	c.Tenant = "acme"
	waits(t, claimErr(tokens, t, c))
	if _, _, err := tokens.Approve(t.Context(), Approval{Fingerprint: c.SPKI, Tenant: "beta"}); err == nil || !strings.Contains(err.Error(), `told that its tenant is "acme"`) {
		t.Errorf("%v", err)
	}
	if _, _, err := tokens.Approve(t.Context(), Approval{Fingerprint: c.SPKI, Tenant: "acme"}); err != nil {
		t.Error(err)
	}
	if err := claimErr(tokens, t, c); err != nil {
		t.Error(err)
	}
}
