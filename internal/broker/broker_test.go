package broker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// klog's flush daemon is started by the import of client-go and has no end.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// running is a broker in this process.
type running struct {
	cfg    *config.Broker
	client *admin.Client
	logs   *syncBuffer
	stop   func()
}

// syncBuffer keeps the log and signals each write.
type syncBuffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	written chan struct{}
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.written <- struct{}{}:
	default:
	}
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await returns when the log holds text.
func (s *syncBuffer) await(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !strings.Contains(s.String(), text) {
		select {
		case <-s.written:
		case <-deadline:
			t.Fatalf("the log never said %q:\n%s", text, s.String())
		}
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func startBroker(t *testing.T, dir string, options ...func(*config.Broker)) *running {
	t.Helper()
	cfg := config.DefaultBroker()
	cfg.DataDir = filepath.Join(dir, "data")
	cfg.AdminSocket = filepath.Join(dir, "b.sock")
	cfg.HealthAddress = ""
	cfg.Front.Listen = freeAddr(t)
	cfg.Front.PublicEndpoint = cfg.Front.Listen
	cfg.Egress.Listen = freeAddr(t)
	cfg.Egress.PublicEndpoint = "https://" + cfg.Egress.Listen
	for _, set := range options {
		set(cfg)
	}
	r := &running{cfg: cfg, client: admin.NewClient(cfg.AdminSocket), logs: &syncBuffer{written: make(chan struct{}, 1)}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, cfg, slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	r.logs.await(t, "condition=Egress status=True")
	return r
}

// kubeconfig of an API server that listens at addr.
func kubeconfig(t *testing.T, addr string) string {
	t.Helper()
	ca, err := pki.NewCA("k8s.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := clientcmdapi.NewConfig()
	c.Clusters["c"] = &clientcmdapi.Cluster{Server: "https://" + addr, CertificateAuthorityData: ca.CertPEM()}
	c.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: "x"}
	c.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	c.CurrentContext = "x"
	b, err := clientcmd.Write(*c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// box is an edge node, as far as the broker can tell.
type box struct {
	id     pki.Identity
	keyPEM []byte
	enrol  enrollapi.EnrolResponse
	bundle config.JoinBundle
}

func newBox(t *testing.T, bundle config.JoinBundle, hostname string) *box {
	t.Helper()
	keyPEM, _, err := pki.MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	b := &box{keyPEM: keyPEM, bundle: bundle}
	status, body := b.post(t, hostname)
	if status != http.StatusOK {
		t.Fatalf("enrol %s: %d %s", hostname, status, body)
	}
	if err := json.Unmarshal(body, &b.enrol); err != nil {
		t.Fatal(err)
	}
	b.id = pki.Identity{TrustDomain: b.enrol.TrustDomain, Role: pki.RoleNode, Tenant: b.enrol.Tenant, Name: b.enrol.Node}
	return b
}

// post asks to be enrolled, over HTTPS with the CA pinned.
func (b *box) post(t *testing.T, hostname string) (int, []byte) {
	t.Helper()
	key, err := pki.ParseKeyPEM(b.keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.MakeCSR(key, hostname)
	if err != nil {
		t.Fatal(err)
	}
	cfg := pki.ClientTLS(nil, pki.VerifyPinned(b.bundle.CACertHashes, time.Now, nil))
	cfg.NextProtos = []string{enrollapi.ALPN}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	body, _ := json.Marshal(enrollapi.EnrolRequest{Token: b.bundle.Token, Tenant: b.bundle.Tenant, CSR: string(csr), Hostname: hostname})
	resp, err := client.Post("https://"+b.bundle.Endpoint+enrollapi.PathEnrol, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, answer
}

// connect opens the node's tunnel. What the broker dials at it is answered with the node's name.
func (b *box) connect(t *testing.T, transport tunnel.Transport, endpoint string, addrs ...string) (*tunnel.Session, error) {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(b.enrol.Certificate), b.keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(b.enrol.CABundle))
	hello := wire.Hello{Version: "test", Node: b.enrol.Node}
	for _, a := range addrs {
		hello.Addresses = append(hello.Addresses, netip.MustParseAddr(a))
	}
	d := &tunnel.Dialer{
		Endpoint: endpoint, Transport: transport,
		TLS: pki.ClientTLS(func() (*tls.Certificate, error) { return &pair, nil },
			pki.VerifyPeer(func() *x509.CertPool { return roots }, x509.ExtKeyUsageServerAuth, time.Now, nil)),
		Config: tunnel.Config{
			Hello: func() wire.Hello { return hello },
			Handler: func(_ context.Context, _ *tunnel.Session, r *tunnel.Request) {
				s, err := r.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(s, "%s/%s was asked for %s", b.enrol.Tenant, b.enrol.Node, r.Target)
				s.Close()
			},
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := d.Dial(ctx)
	if err == nil {
		t.Cleanup(func() { s.Close(wire.Shutdown, "the test is over") })
	}
	return s, err
}

// dialNode does what kube-apiserver does: CONNECT over mTLS. It returns the status line and what the node said.
func (r *running) dialNode(t *testing.T, tenant, target string) (status, said string) {
	t.Helper()
	return dialWith(t, r.issueEgress(t, tenant), target)
}

func (r *running) issueEgress(t *testing.T, tenant string) admin.EgressResponse {
	t.Helper()
	e, err := r.client.IssueEgress(context.Background(), admin.EgressRequest{Tenant: tenant, TTL: config.Duration{Duration: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func dialWith(t *testing.T, e admin.EgressResponse, target string) (status, said string) {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(e.CA))
	conn, err := tls.Dial("tcp", strings.TrimPrefix(e.Endpoint, "https://"), &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		return resp.Status, ""
	}
	all, err := io.ReadAll(br)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status, string(all)
}

func (r *running) addTenant(t *testing.T, name, apiAddr string) {
	t.Helper()
	if _, err := r.client.AddTenant(context.Background(), admin.TenantRequest{Name: name, Kubeconfig: kubeconfig(t, apiAddr)}); err != nil {
		t.Fatal(err)
	}
	r.logs.await(t, `msg="tenant changed" tenant=`+name+" removed=false")
}

func (r *running) bundle(t *testing.T, tenant string, uses int) config.JoinBundle {
	t.Helper()
	resp, err := r.client.CreateToken(context.Background(), admin.TokenRequest{Tenant: tenant, Uses: uses, TTL: config.Duration{Duration: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Bundle
}

func TestTwoTenantsWithTheSameNodeNameAndAddress(t *testing.T) {
	for _, transport := range []tunnel.Transport{tunnel.TransportQUIC, tunnel.TransportTCP} {
		t.Run(string(transport), func(t *testing.T) {
			r := startBroker(t, t.TempDir())
			r.addTenant(t, "acme", "127.0.0.1:1")
			r.addTenant(t, "globex", "127.0.0.1:1")
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
	r.addTenant(t, "acme", "127.0.0.1:1")
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
	r.addTenant(t, "acme", "127.0.0.1:1")
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
	r.addTenant(t, "acme", "127.0.0.1:1")
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

// A node's stream to its API server reaches the tenant's, and only opaque bytes do.
func TestNodeReachesItsOwnAPIServer(t *testing.T) {
	r := startBroker(t, t.TempDir())
	for _, name := range []string{"acme", "globex"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var conns sync.WaitGroup
		t.Cleanup(func() { l.Close(); conns.Wait() })
		conns.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				conns.Go(func() {
					defer c.Close()
					// The broker's own client, which begins TLS, is turned away at once.
					ping := make([]byte, 4)
					if _, err := io.ReadFull(c, ping); err == nil && string(ping) == "ping" {
						io.WriteString(c, "pong of "+name)
					}
				})
			}
		})
		r.addTenant(t, name, l.Addr().String())
	}
	b := newBox(t, r.bundle(t, "globex", 1), "edge-1")
	s, err := b.connect(t, tunnel.TransportTCP, r.cfg.Front.Listen)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := s.Open(context.Background(), wire.KindAPI, "")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(stream, "ping")
	stream.CloseWrite()
	if got, err := io.ReadAll(stream); err != nil || string(got) != "pong of globex" {
		t.Fatalf("read %q, %v", got, err)
	}
	if _, err := s.Open(context.Background(), wire.KindDial, "127.0.0.1:2379"); err == nil {
		t.Error("a node dialled through the broker")
	}
}

func TestTokenIsUsedOnce(t *testing.T) {
	r := startBroker(t, t.TempDir())
	r.addTenant(t, "acme", "127.0.0.1:1")
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
	r.addTenant(t, "acme", "127.0.0.1:1")
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
