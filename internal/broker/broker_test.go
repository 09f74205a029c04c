package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// dialID is what an answer says at its end.
var dialID = regexp.MustCompile(`\(dial [0-9a-f]{16}\)$`)

func TestTwoTenantsWithTheSameNodeNameAndAddress(t *testing.T) {
	for _, transport := range []tunnel.Transport{tunnel.TransportQUIC, tunnel.TransportTCP} {
		t.Run(string(transport), func(t *testing.T) {
			r := startBroker(t, t.TempDir())
			r.addTenant(t, "acme")
			r.addTenant(t, "globex")
			for _, n := range []struct{ tenant, node string }{{"acme", "edge-1"}, {"acme", "edge-2"}, {"globex", "edge-1"}} {
				b := newBox(t, r.bundle(t, n.tenant, 1), n.node)
				if _, err := b.connect(t, transport, r.cfg.Front.Listen, "192.168.1.10"); err != nil {
					t.Fatal(err)
				}
				r.logs.await(t, fmt.Sprintf(`msg="node connected" tenant=%s node=%s`, n.tenant, n.node))
			}
			for _, c := range []struct{ tenant, target, want string }{
				{"acme", "edge-1:10250", "acme/edge-1 was asked for edge-1:10250"},
				{"acme", "EDGE-2:10250", "acme/edge-2 was asked for EDGE-2:10250"},
				{"globex", "edge-1:10250", "globex/edge-1 was asked for edge-1:10250"},
				{"globex", "192.168.1.10:10250", "globex/edge-1 was asked for 192.168.1.10:10250"},
			} {
				if status, said := r.dialNode(t, c.tenant, c.target); said != c.want {
					t.Errorf("%s to %s: %s %q; want %q", c.tenant, c.target, status, said, c.want)
				}
			}
			foreign, _ := r.dialNode(t, "globex", "edge-2:10250")
			absent, _ := r.dialNode(t, "globex", "edge-9:10250")
			foreign, absent = dialID.ReplaceAllString(foreign, ""), dialID.ReplaceAllString(absent, "")
			if !strings.HasPrefix(foreign, "404 ") || strings.ReplaceAll(foreign, "edge-2", "edge-9") != absent {
				t.Errorf("another tenant's node: %q, one that does not exist: %q; want both the same 404", foreign, absent)
			}
			if status, _ := r.dialNode(t, "acme", "192.168.1.10:10250"); !strings.Contains(status, "2 nodes have the address") ||
				!strings.Contains(status, "--kubelet-preferred-address-types=Hostname") {
				t.Errorf("an address that two nodes have: %q; want what to set", status)
			}
			nodes, err := r.client.Nodes(context.Background(), "acme")
			if err != nil || len(nodes) != 2 || !nodes[0].Connected || nodes[0].Session.Transport != string(transport) {
				t.Errorf("node list = %+v, %v", nodes, err)
			}
		})
	}
}

func TestAnotherStartKnowsItAll(t *testing.T) {
	dir := t.TempDir()
	r := startBroker(t, dir)
	r.addTenant(t, "acme")
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	before, err := r.client.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	r.stop()

	r = startBroker(t, dir)
	after, err := r.client.Status(context.Background())
	if err != nil || after.CACertHash != before.CACertHash || after.Tenants != 1 || after.Nodes != 1 {
		t.Fatalf("status = %+v, %v; before: %+v", after, err, before)
	}
	if _, err := b.connect(t, tunnel.TransportTCP, r.cfg.Front.Listen); err != nil {
		t.Fatalf("the node's certificate of the first start: %v", err)
	}
	r.logs.await(t, `msg="node connected" tenant=acme node=edge-1`)
}

func TestRemovedNodeIsCutAndStaysOut(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	s, err := b.connect(t, tunnel.TransportQUIC, r.cfg.Front.Listen)
	if err != nil {
		t.Fatal(err)
	}
	r.logs.await(t, `msg="node connected"`)
	if err := r.client.RemoveNode(context.Background(), "acme", "edge-1"); err != nil {
		t.Fatal(err)
	}
	wantRevoked := func(s *tunnel.Session) {
		t.Helper()
		select {
		case <-s.Done():
		case <-time.After(10 * time.Second):
			t.Fatal("the session of a removed node lives on")
		}
		if e, ok := errors.AsType[*tunnel.ClosedError](s.Err()); !ok || e.Code != wire.Revoked {
			t.Fatalf("session ended with %v; want code %s", s.Err(), wire.Revoked)
		}
	}
	wantRevoked(s)
	if s, err = b.connect(t, tunnel.TransportTCP, r.cfg.Front.Listen); err == nil {
		wantRevoked(s)
	}
	// Its stream to the API server is refused too, however early it comes.
	if s != nil {
		if _, err := s.Open(context.Background(), wire.KindAPI, ""); err == nil {
			t.Error("a removed node got a stream to the API server")
		}
	}
}

func TestNewestSessionWins(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	b := newBox(t, r.bundle(t, "acme", 1), "edge-1")
	first, err := b.connect(t, tunnel.TransportTCP, r.cfg.Front.Listen)
	if err != nil {
		t.Fatal(err)
	}
	r.logs.await(t, `msg="node connected"`)
	second, err := b.connect(t, tunnel.TransportQUIC, r.cfg.Front.Listen)
	if err != nil {
		t.Fatal(err)
	}
	<-first.Done()
	if e, ok := errors.AsType[*tunnel.ClosedError](first.Err()); !ok || e.Code != wire.Superseded {
		t.Errorf("first session ended with %v; want code %s", first.Err(), wire.Superseded)
	}
	if status, said := r.dialNode(t, "acme", "edge-1:10250"); said == "" {
		t.Errorf("dial after the change: %s", status)
	}
	if err := second.Err(); err != nil {
		t.Errorf("second session: %v", err)
	}
}

// A node's stream to its API server reaches its own tenant's, and TLS goes through it end to end.
func TestNodeReachesItsOwnAPIServer(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	api := r.addTenant(t, "globex")
	b := newBox(t, r.bundle(t, "globex", 1), "edge-1")
	s, err := b.connect(t, tunnel.TransportTCP, r.cfg.Front.Listen)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(api.CA())
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.Open(ctx, wire.KindAPI, "") },
	}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://127.0.0.1:6443/version", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+api.AdminToken())
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(got), api.Address()) {
		t.Fatalf("read %q, %v; want globex's API server at %s", got, err, api.Address())
	}
	if _, err := s.Open(context.Background(), wire.KindDial, "127.0.0.1:2379"); err == nil {
		t.Error("a node dialled through the broker")
	}
}

func TestTokenIsUsedOnce(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	bundle := r.bundle(t, "acme", 1)
	b := newBox(t, bundle, "edge-1")
	if status, _ := b.post(t, "edge-1"); status != http.StatusOK {
		t.Errorf("the same key again: %d; want the same node", status)
	}
	keyPEM, _, err := pki.MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	other := &box{keyPEM: keyPEM, bundle: bundle}
	if status, body := other.post(t, "edge-2"); status != http.StatusForbidden || strings.Contains(string(body), "used up") {
		t.Errorf("another key: %d %s; want a refusal that does not say why", status, body)
	}
	r.logs.await(t, "used up")
}

func TestTrustDomainCannotChange(t *testing.T) {
	dir := t.TempDir()
	r := startBroker(t, dir)
	r.stop()
	r.cfg.TrustDomain = "other.example"
	err := Run(context.Background(), r.cfg, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), `trustDomain is "other.example", but the CA was made for "mooring.local"`) {
		t.Fatalf("Run = %v", err)
	}
}

func TestPortTakenIsAnErrorAtOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	cfg := config.DefaultBroker()
	cfg.DataDir, cfg.AdminSocket, cfg.HealthAddress = filepath.Join(dir, "data"), filepath.Join(dir, "b.sock"), ""
	cfg.Front.Listen, cfg.Front.PublicEndpoint = freeAddr(t), "e:1"
	cfg.Egress.Listen = l.Addr().String()
	if err := Run(context.Background(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "egress.listen") {
		t.Fatalf("Run = %v; want an error that names egress.listen", err)
	}
}

// A tenant that was removed and added again is another tenant: its old API servers' certificates are
// worth nothing.
func TestEgressCertificateIsItsOwnTenants(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme")
	e := r.issueEgress(t, "acme")
	if status, _ := dialWith(t, e, "edge-1:10250"); !strings.HasPrefix(status, "404 ") {
		t.Errorf("a current certificate: %s; want 404 for the node", status)
	}
	if err := r.client.RemoveTenant(context.Background(), "acme"); err != nil {
		t.Fatal(err)
	}
	r.logs.await(t, `msg="tenant changed" tenant=acme removed=true`)
	if status, _ := dialWith(t, e, "edge-1:10250"); !strings.HasPrefix(status, "403 ") {
		t.Errorf("the certificate of a tenant that is gone: %s; want 403", status)
	}

	issued := time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	ca, err := pki.NewCA("mooring.test", issued)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, _, err := ca.IssueAPIServer("acme", issued, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for after, want := range map[time.Duration]bool{-time.Hour: true, -100 * time.Millisecond: true, time.Second: false, time.Hour: false} {
		if got := issuedTo(tenant.Tenant{CreatedAt: issued.Add(after)}, cert); got != want {
			t.Errorf("tenant added %s after the certificate was issued: issuedTo = %v, want %v", after, got, want)
		}
	}
}
