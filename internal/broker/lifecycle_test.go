package broker

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// startPair starts two brokers over one store.
func startPair(t *testing.T) [2]*running { return startPairWith(t) }

func startPairWith(t *testing.T, options ...func(*config.Broker)) [2]*running {
	t.Helper()
	_, run := openStore(t)
	return [2]*running{startBrokerBy(t, t.TempDir(), run, options...), startBrokerBy(t, t.TempDir(), run, options...)}
}

// openStore opens a store of the test's; run is for startBrokerBy.
func openStore(t *testing.T) (st *store.Store, run func(context.Context, *config.Broker, *slog.Logger) error) {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st, func(ctx context.Context, cfg *config.Broker, log *slog.Logger) error {
		if err := runOver(ctx, cfg, log, st); ctx.Err() == nil {
			return err
		}
		return nil
	}
}

// line is a box's past.
type line struct {
	instance   string
	ancestors  []string
	generation uint64
}

func instance(n int) string { return fmt.Sprintf("%016x", n) }

// connectAs opens the node's tunnel with a past.
func (b *box) connectAs(t *testing.T, r *running, l line) *tunnel.Session {
	t.Helper()
	s, err := b.connectWith(t, tunnel.TransportTCP, r.cfg.Front.Listen, wire.Hello{
		Version: "test", Node: b.enrol.Node, Instance: l.instance, Ancestors: l.ancestors, Generation: l.generation,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantEnd(t *testing.T, s *tunnel.Session, code wire.Code, what string) {
	t.Helper()
	select {
	case <-s.Done():
	case <-time.After(5 * time.Second):
		t.Fatalf("%s: the session lives on", what)
	}
	if e, ok := errors.AsType[*tunnel.ClosedError](s.Err()); !ok || e.Code != code {
		t.Fatalf("%s: ended with %v; want code %s", what, s.Err(), code)
	}
}

// awaitAccepted returns when the broker has let the session in: a stream to the API server is not refused as denied.
func awaitAccepted(t *testing.T, s *tunnel.Session) {
	t.Helper()
	stream, err := s.Open(t.Context(), wire.KindAPI, "")
	if err == nil {
		stream.Close()
		return
	}
	if e, ok := errors.AsType[*tunnel.RefusedError](err); !ok || e.Code != wire.Unavailable { // there is no API server
		t.Fatalf("a session that should be let in: %v", err)
	}
}

func (b *box) ask(t *testing.T, path string, body any) (int, []byte) {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(b.enrol.Certificate), b.keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return b.postAs(t, &pair, path, body)
}

func (b *box) renewal(t *testing.T) (int, []byte) {
	t.Helper()
	key, err := pki.ParseKeyPEM(b.keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.MakeCSR(key, "x")
	if err != nil {
		t.Fatal(err)
	}
	return b.ask(t, enrollapi.PathRenew, enrollapi.RenewRequest{CSR: string(csr)})
}

// A node that is revoked at one broker is cut at the other, and stays out of both, also after they start again.
func TestFault44RevokedNodeIsCutOnEveryBroker(t *testing.T) {
	pair := startPair(t)
	pair[0].addTenant(t, "acme")
	pair[1].logs.await(t, `msg="tenant changed" tenant=acme`)
	b := newBox(t, pair[0].bundle(t, "acme", 1), "edge-1")
	bystander := newBox(t, pair[0].bundle(t, "acme", 1), "edge-2")
	s := b.connectAs(t, pair[1], line{instance: instance(1), generation: 1})
	awaitAccepted(t, s)
	other := bystander.connectAs(t, pair[1], line{instance: instance(9), generation: 1})
	awaitAccepted(t, other)
	if status, body := b.renewal(t); status != http.StatusOK {
		t.Fatalf("renewal before: %d %s", status, body)
	}

	out, err := pair[0].client.RevokeNode(t.Context(), "acme", "edge-1", admin.RevokeRequest{Reason: "stolen"})
	if err != nil || out.Node.State != admin.StateRevoked || out.BootstrapError != "" {
		t.Fatalf("revoke = %+v, %v", out, err)
	}
	wantEnd(t, s, wire.Revoked, "the session at the other broker")
	refused := func(r *running, generation int) {
		t.Helper()
		again := b.connectAs(t, r, line{instance: instance(2), ancestors: []string{instance(1)}, generation: uint64(generation)})
		if _, err := again.Open(t.Context(), wire.KindAPI, ""); err == nil {
			t.Error("a revoked node got a stream to the API server")
		}
		wantEnd(t, again, wire.Revoked, "a new session")
		b.bundle.Endpoint = r.cfg.Front.Listen
		for what, status := range map[string]int{"renew": first(b.renewal(t)), "join": first(b.ask(t, enrollapi.PathJoin, enrollapi.JoinRequest{})), "enrol": first(b.post(t, "edge-1"))} {
			if status != http.StatusForbidden {
				t.Errorf("%s of a revoked node: %d", what, status)
			}
		}
	}
	refused(pair[0], 2)
	refused(pair[1], 3)
	if err := other.Err(); err != nil {
		t.Errorf("the bystander's session ended: %v", err)
	}
	if audit := pair[0].auditLog(t); !strings.Contains(audit, `"event":"revoke","outcome":"ok"`) || !strings.Contains(audit, `"reason":"stolen"`) {
		t.Errorf("audit log:\n%s", audit)
	}
}

func TestFault44RevocationHoldsAfterRestart(t *testing.T) {
	dir := t.TempDir()
	r := startBroker(t, dir)
	r.addTenant(t, "acme")
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	s := b.connectAs(t, r, line{instance: instance(1), generation: 1})
	awaitAccepted(t, s)
	r.logs.await(t, `msg="node connected" tenant=acme node=edge-1`) // where revoke finds it
	if out, err := r.client.RevokeNode(t.Context(), "acme", "edge-1", admin.RevokeRequest{}); err != nil || !out.Cut {
		t.Fatalf("revoke = %+v, %v", out, err)
	}
	wantEnd(t, s, wire.Revoked, "the session")
	r.stop()
	r = startBroker(t, dir)
	b.bundle.Endpoint = r.cfg.Front.Listen
	wantEnd(t, b.connectAs(t, r, line{instance: instance(2), generation: 2}), wire.Revoked, "a session after the restart")
	if status, body := b.renewal(t); status != http.StatusForbidden {
		t.Errorf("renewal after the restart: %d %s", status, body)
	}
	n, err := r.client.Node(t.Context(), "acme", "edge-1")
	if err != nil || n.State != admin.StateRevoked || n.RevokedAt == nil {
		t.Errorf("node = %+v, %v", n, err)
	}
}

// The box that is replaced is cut when another has taken its name, and not before.
func TestReplacedBoxIsCut(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	bundle := r.bundle(t, "acme", 2)
	old := newBox(t, bundle, "edge-1")
	s := old.connectAs(t, r, line{instance: instance(1), generation: 1})
	awaitAccepted(t, s)
	keyPEM, _, err := pki.MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	fresh := &box{keyPEM: keyPEM, bundle: bundle}
	if status, body := fresh.post(t, "edge-1"); status != http.StatusConflict {
		t.Fatalf("a second box, not allowed to: %d %s", status, body)
	}
	n, err := r.client.ReplaceNode(t.Context(), "acme", "edge-1", admin.ReplaceRequest{TTL: config.Duration{Duration: time.Hour}})
	if err != nil || n.ReplaceUntil == nil {
		t.Fatalf("replace = %+v, %v", n, err)
	}
	awaitAccepted(t, s)
	status, body := fresh.post(t, "edge-1")
	if err := json.Unmarshal(body, &fresh.enrol); status != http.StatusOK || err != nil {
		t.Fatalf("the new box: %d %s", status, body)
	}
	wantEnd(t, s, wire.Revoked, "the old box's session")
	awaitAccepted(t, fresh.connectAs(t, r, line{instance: instance(7), generation: 1}))
	wantEnd(t, old.connectAs(t, r, line{instance: instance(2), ancestors: []string{instance(1)}, generation: 2}), wire.Revoked, "the old box again")
}

// What an operator tried and was not done is on record too.
func TestRefusedDecisionsAreRecorded(t *testing.T) {
	r := startBroker(t, t.TempDir())
	nobody := strings.Repeat("ab", 16)
	if _, err := r.client.Approve(t.Context(), admin.ApproveRequest{Fingerprint: nobody, Tenant: "acme"}); err == nil {
		t.Error("a box that does not wait was approved")
	}
	for _, forget := range []bool{false, true} {
		if _, err := r.client.Deny(t.Context(), nobody, forget); err == nil {
			t.Errorf("a box that does not wait was denied (forget: %v)", forget)
		}
	}
	log := r.auditLog(t)
	if n := strings.Count(log, `"outcome":"refused"`); n != 3 || strings.Count(log, nobody) < 3 ||
		strings.Count(log, `"event":"approve"`) != 1 || strings.Count(log, `"event":"deny"`) != 2 {
		t.Errorf("audit log:\n%s", log)
	}
}

// Two boxes from one disk: both are cut, told why and kept out, until an operator chooses.
func TestFault20ClonedDisk(t *testing.T) {
	r := startBroker(t, t.TempDir())
	api := r.addTenant(t, "acme")
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	disk := instance(1)
	s := b.connectAs(t, r, line{instance: disk, generation: 1})
	awaitAccepted(t, s)
	// Both boots of the same disk: each goes on from its last instance.
	first := b.connectAs(t, r, line{instance(2), []string{disk}, 2})
	awaitAccepted(t, first)
	wantEnd(t, s, wire.Superseded, "the session before")
	second := b.connectAs(t, r, line{instance(3), []string{disk}, 2})
	if _, err := second.Open(t.Context(), wire.KindAPI, ""); err == nil {
		t.Error("the second box got a stream to the API server")
	}
	wantEnd(t, second, wire.Quarantined, "the second box")
	wantEnd(t, first, wire.Quarantined, "the first box")
	wantEnd(t, b.connectAs(t, r, line{instance(4), []string{instance(2), disk}, 3}), wire.Quarantined, "the first box again")
	wantEnd(t, b.connectAs(t, r, line{instance(3), []string{disk}, 3}), wire.Quarantined, "the second box again")

	n, err := r.client.Node(t.Context(), "acme", "edge-1")
	if err != nil || n.State != admin.StateQuarantined || len(n.Boxes) != 2 || n.Boxes[0].ID != instance(2) || n.Boxes[1].ID != instance(3) {
		t.Fatalf("node = %+v, %v", n, err)
	}
	r.logs.await(t, "condition=Clones status=False")
	// The message follows the store, as each attempt to get in changes it; only the status is logged.
	for told, limit := false, time.Now().Add(10*time.Second); !told; {
		st, err := r.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range st.Conditions {
			told = told || c.Type == "Clones" && c.Status == "False" && strings.Contains(c.Message, n.Boxes[0].RemoteAddr) && strings.Contains(c.Message, n.Boxes[1].RemoteAddr)
		}
		if !told && time.Now().After(limit) {
			t.Fatalf("no condition names both addresses: %+v", st.Conditions)
		}
	}
	r.logs.await(t, "event about a cloned node written")
	events := api.Paths("/api/v1/namespaces/default/events/mooring-node-")
	if len(events) != 1 {
		t.Fatalf("events at the tenant: %q", events)
	}
	if e := fmt.Sprint(api.Object(events[0])); !strings.Contains(e, "kind:Node") || !strings.Contains(e, first.LocalAddr().String()) || !strings.Contains(e, second.LocalAddr().String()) {
		t.Errorf("the event names not both boxes of the node: %s", e)
	}
	if _, err := r.client.ResolveNode(t.Context(), "acme", "edge-1", admin.ResolveRequest{Keep: "nobody"}); err == nil || !strings.Contains(err.Error(), instance(3)) {
		t.Errorf("resolve for a box that is not there: %v; want the IDs that are", err)
	}
	if _, err := r.client.ResolveNode(t.Context(), "acme", "edge-1", admin.ResolveRequest{Keep: instance(3)}); err != nil {
		t.Fatal(err)
	}
	r.logs.await(t, "condition=Clones status=True reason=None")
	kept := b.connectAs(t, r, line{instance(3), []string{disk}, 4})
	awaitAccepted(t, kept)
	wantEnd(t, b.connectAs(t, r, line{instance(5), []string{instance(4), instance(2), disk}, 4}), wire.Quarantined, "the box that was put out")
	awaitAccepted(t, kept)
	if audit := r.auditLog(t); strings.Count(audit, `"event":"quarantine"`) != 1 || !strings.Contains(audit, `"event":"resolve","outcome":"ok"`) {
		t.Errorf("audit log:\n%s", audit)
	}
}

// The same over two brokers: the first box's session is at one, the second comes to the other.
func TestFault20ClonedDiskOverTwoBrokers(t *testing.T) {
	pair := startPair(t)
	pair[0].addTenant(t, "acme")
	pair[1].logs.await(t, `msg="tenant changed" tenant=acme`)
	b := newBox(t, pair[0].bundle(t, "acme", 1), "edge-1")
	awaitAccepted(t, b.connectAs(t, pair[0], line{instance: instance(1), generation: 1}))
	first := b.connectAs(t, pair[0], line{instance(2), []string{instance(1)}, 2})
	awaitAccepted(t, first)
	wantEnd(t, b.connectAs(t, pair[1], line{instance(3), []string{instance(1)}, 2}), wire.Quarantined, "the second box")
	wantEnd(t, first, wire.Quarantined, "the first box, at the other broker")
	for _, r := range pair {
		r.logs.await(t, "condition=Clones status=False")
	}
}

// A box whose disk forgot its past is no clone if the older session is dead, and one if that answers.
func TestFault20BoxWithoutAPast(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	s := b.connectAs(t, r, line{instance: instance(1), generation: 7})
	awaitAccepted(t, s)
	s.Close(wire.Shutdown, "the disk is lost")
	r.logs.await(t, `msg="node's session ended"`)
	s = b.connectAs(t, r, line{instance: instance(2), generation: 1})
	awaitAccepted(t, s)
	if audit := r.auditLog(t); !strings.Contains(audit, "lineage restarted") {
		t.Errorf("audit log:\n%s", audit)
	}
	wantEnd(t, b.connectAs(t, r, line{instance: instance(3), generation: 1}), wire.Quarantined, "another without a past")
	wantEnd(t, s, wire.Quarantined, "the box that was there and alive")
}

// An attempt that comes late loses; the newest session wins, and the one before it is fenced.
func TestFault21StaleSession(t *testing.T) {
	pair := startPair(t)
	pair[0].addTenant(t, "acme")
	pair[1].logs.await(t, `msg="tenant changed" tenant=acme`)
	b := newBox(t, pair[0].bundle(t, "acme", 1), "edge-1")
	one := b.connectAs(t, pair[0], line{instance: instance(1), generation: 1})
	awaitAccepted(t, one)
	// The attempt with instance 2 is on its way when the box gives it up, and comes through with 3.
	three := b.connectAs(t, pair[1], line{instance(3), []string{instance(2), instance(1)}, 3})
	awaitAccepted(t, three)
	wantEnd(t, one, wire.Superseded, "the session before, at the other broker")
	for _, r := range pair {
		wantEnd(t, b.connectAs(t, r, line{instance(2), []string{instance(1)}, 2}), wire.Superseded, "an attempt that comes late")
		wantEnd(t, b.connectAs(t, r, line{instance(3), []string{instance(2), instance(1)}, 2}), wire.Superseded, "an earlier one with the same instance")
	}
	awaitAccepted(t, three)
	again := b.connectAs(t, pair[1], line{instance(3), []string{instance(2), instance(1)}, 4})
	awaitAccepted(t, again)
	wantEnd(t, three, wire.Superseded, "the session that the same instance had before")
	if n, err := pair[0].client.Node(t.Context(), "acme", "edge-1"); err != nil || n.State != admin.StateActive {
		t.Errorf("node = %+v, %v", n, err)
	}
}

func first(status int, _ []byte) int { return status }

func (r *running) auditLog(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(r.cfg.DataDir, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
