package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/konnectivity"
	"github.com/mooring-edge/mooring/internal/kubetest"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func withKonnectivity(c *config.Broker) {
	c.Front.Domain, c.Konnectivity.Enabled = "edge.example", true
}

// agentOfAcme connects acme's agent on edge-1, and returns when API servers reach the node by it.
func agentOfAcme(t *testing.T, r *running) *tls.Conn {
	t.Helper()
	e := r.issueEgress(t, "acme")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(e.CA))
	c, err := agentConn(t, r, roots, "acme.konnectivity.edge.example", "good")
	if err != nil {
		t.Fatal(err)
	}
	dialUntil(t, e, "edge-1:22", "403") // of the agent, which is for the kubelet's port
	return c
}

// wantCut reads until the broker ends the connection.
func wantCut(t *testing.T, c *tls.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	var late net.Error
	if _, err := io.Copy(io.Discard, c); errors.As(err, &late) && late.Timeout() {
		t.Fatal("the agent of a tenant that was removed is still connected")
	}
}

// TestAgentIsCutWithItsTenantElsewhere: a tenant is removed by one broker while an agent of it is connected to the other. The agent is
// cut there too, and is no way to a node of the next tenant of that name. Mechanism: the recheck that serveKonnectivity has
// made when a tenant is removed. Seen failing without it (the agent stays, and the next acme is led to it).
func TestAgentIsCutWithItsTenantElsewhere(t *testing.T) {
	pair := startPairWith(t, withPeers(t), withKonnectivity)
	knowAgent(pair[0].addTenant(t, "acme"))
	pair[1].logs.await(t, `msg="tenant changed" tenant=acme removed=false`)
	c := agentOfAcme(t, pair[1])
	if err := pair[0].client.RemoveTenant(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	wantCut(t, c)
	pair[1].logs.await(t, `msg="konnectivity agent's session ended" tenant=acme node=edge-1`)
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // certificates count in seconds
	pair[0].addTenant(t, "acme")
	for i, r := range pair {
		dialUntil(t, r.issueEgress(t, "acme"), "edge-1:22", "404")
		nodes, err := r.client.Nodes(t.Context(), "")
		if err != nil || len(nodes) > 0 {
			t.Errorf("broker %d lists %+v, %v", i, nodes, err)
		}
	}
}

// TestAgentIsCutWithTenantReplaced: a broker that reads the store anew sees of a removal and an addition only that the record is another.
// What else changes of a tenant cuts nothing. Mechanism: whenRemoved compares CreatedAt, and so does an agent's Still. Seen failing
// without each of them, and without the recheck.
func TestAgentIsCutWithTenantReplaced(t *testing.T) {
	st, run := openStore(t)
	r := startBrokerBy(t, t.TempDir(), run, withKonnectivity)
	knowAgent(r.addTenant(t, "acme"))
	c := agentOfAcme(t, r)

	put := func(change func(*tenant.Tenant)) {
		t.Helper()
		it, err := st.Get(t.Context(), tenant.Key("acme"))
		if err != nil {
			t.Fatal(err)
		}
		var rec tenant.Tenant
		if err := json.Unmarshal(it.Value, &rec); err != nil {
			t.Fatal(err)
		}
		change(&rec)
		b, err := json.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Commit(t.Context(), store.Put(it.Key, b)); err != nil {
			t.Fatal(err)
		}
	}
	put(func(rec *tenant.Tenant) { rec.Access.Warnings = []string{"a change"} })
	put(func(rec *tenant.Tenant) { rec.CreatedAt = rec.CreatedAt.Add(time.Second) })
	wantCut(t, c)
	if n := strings.Count(r.logs.String(), "node's agent is cut"); n != 1 {
		t.Errorf("agents were cut %d times", n)
	}
}

// TestAgentOfTenantReplacedMeanwhile: a tenant is removed, and another of its name added, after the API server of the first has said
// whose an agent is, and before the agent is entered. It is not taken for the second's. Mechanism: ByToken notes which tenant has
// the name before it asks. Seen failing without the comparison in same. And the session's own recheck takes a tenant that is gone for a
// node that is gone: seen failing without that in Whereabouts.
func TestAgentOfTenantReplacedMeanwhile(t *testing.T) {
	st, _ := openStore(t)
	log := slog.New(slog.DiscardHandler)
	tenants := tenant.NewRegistry(st, log)
	var work errgroup.Group
	ctx, cancel := context.WithCancel(t.Context())
	work.Go(func() error { return tenants.Run(ctx) })
	t.Cleanup(func() { cancel(); _ = work.Wait() })
	changes := make(chan bool, 16)
	defer tenants.Subscribe(func(_ tenant.Tenant, deleted bool) { changes <- deleted })()
	await := func(deleted bool) {
		t.Helper()
		select {
		case was := <-changes:
			if was != deleted {
				t.Fatalf("removed: %v, want %v", was, deleted)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the registry does not tell of a change")
		}
	}
	api := kubetest.New(t)
	knowAgent(api)
	rec, err := tenant.FromKubeconfig("acme", []byte(api.Kubeconfig()))
	if err != nil {
		t.Fatal(err)
	}
	add := func() {
		t.Helper()
		rec.CreatedAt = rec.CreatedAt.Add(time.Second)
		if err := tenants.Add(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		await(false)
	}
	b := &broker{cfg: config.DefaultBroker(), tenants: tenants, nodes: enroll.NewNodes(st, log), eventsCtx: ctx}
	k := &konnectivityAgents{b: b, clients: enroll.NewClients(tenants, nil)}

	add()
	id, err := k.ByToken(t.Context(), "acme", "good")
	if err != nil {
		t.Fatal(err)
	}
	if code, err := agentMayStay(id.Still()); err != nil {
		t.Fatal("cut for nothing:", code, err)
	}
	if err := tenants.Remove(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	await(true)
	if code, err := agentMayStay(id.Still()); code != wire.Revoked {
		t.Error("its tenant is gone:", code, err)
	}
	if _, err := k.Whereabouts(t.Context(), "acme", id); !errors.Is(err, konnectivity.ErrNoNode) {
		t.Error("its tenant is gone, and with it the node:", err)
	}
	add()
	if code, err := agentMayStay(id.Still()); code != wire.Revoked {
		t.Error("its tenant is another:", code, err)
	}
}
