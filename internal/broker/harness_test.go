package broker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/kubetest"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestMain(m *testing.M) {
	if os.Getenv(noiseEnv) != "" {
		os.Exit(makeNoise())
	}
	goleak.VerifyTestMain(m,
		// klog's flush daemon is started by the import of client-go and has no end.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// running is a broker in this process.
type running struct {
	cfg    *config.Broker
	client *admin.Client
	logs   *syncBuffer
	run    func(context.Context, *config.Broker, *slog.Logger) error
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

// freeAddr is a port that is free in TCP and UDP, and that the system gives to no socket which leaves the choice to it: what is
// started there may be started again.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		tcp, udp, err := listenBoth(t.Context(), addr)
		if err == nil {
			tcp.Close()
			udp.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

func startBroker(t *testing.T, dir string, options ...func(*config.Broker)) *running {
	t.Helper()
	return startBrokerBy(t, dir, Run, options...)
}

// startBrokerBy starts a broker by run, which is Run or does the same over a store of the test's.
func startBrokerBy(t *testing.T, dir string, run func(context.Context, *config.Broker, *slog.Logger) error, options ...func(*config.Broker)) *running {
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
	r := &running{cfg: cfg, client: admin.NewClient(cfg.AdminSocket), run: run}
	r.start(t)
	return r
}

// start starts the broker, again if it was stopped.
func (r *running) start(t *testing.T) {
	t.Helper()
	r.logs = &syncBuffer{written: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- r.run(ctx, r.cfg, slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	r.logs.await(t, "condition=Egress status=True")
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
	return b.postAs(t, nil, enrollapi.PathEnrol, enrollapi.EnrolRequest{Token: b.bundle.Token, Tenant: b.bundle.Tenant, CSR: string(csr), Hostname: hostname})
}

// postAs asks the enrolment server, with a certificate if there is one.
func (b *box) postAs(t *testing.T, pair *tls.Certificate, path string, req any) (int, []byte) {
	t.Helper()
	var certificate func() (*tls.Certificate, error)
	if pair != nil {
		certificate = func() (*tls.Certificate, error) { return pair, nil }
	}
	cfg := pki.ClientTLS(certificate, pki.VerifyPinned(b.bundle.CACertHashes, time.Now, nil))
	cfg.NextProtos = []string{enrollapi.ALPN}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	body, _ := json.Marshal(req)
	resp, err := client.Post("https://"+b.bundle.Endpoint+path, "application/json", bytes.NewReader(body))
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
	hello := wire.Hello{Version: "test", Node: b.enrol.Node}
	for _, a := range addrs {
		hello.Addresses = append(hello.Addresses, netip.MustParseAddr(a))
	}
	return b.connectWith(t, transport, endpoint, hello)
}

func (b *box) connectWith(t *testing.T, transport tunnel.Transport, endpoint string, hello wire.Hello) (*tunnel.Session, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := b.dialer(t, transport, endpoint, func() wire.Hello { return hello }).Dial(ctx)
	if err == nil {
		t.Cleanup(func() { s.Close(wire.Shutdown, "the test is over") })
	}
	return s, err
}

// dialer makes the node's sessions. Port 7 gives back what it is sent, others say a sentence.
func (b *box) dialer(t *testing.T, transport tunnel.Transport, endpoint string, hello func() wire.Hello) *tunnel.Dialer {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(b.enrol.Certificate), b.keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(b.enrol.CABundle))
	return &tunnel.Dialer{
		Endpoint: endpoint, Transport: transport,
		TLS: pki.ClientTLS(func() (*tls.Certificate, error) { return &pair, nil },
			pki.VerifyPeer(func() *x509.CertPool { return roots }, x509.ExtKeyUsageServerAuth, time.Now, nil)),
		Config: tunnel.Config{
			Hello: hello,
			Handler: func(_ context.Context, _ *tunnel.Session, r *tunnel.Request) {
				s, err := r.Accept()
				if err != nil {
					return
				}
				defer s.Close()
				if _, port, _ := net.SplitHostPort(r.Target); port == echoPort {
					_, _ = io.Copy(s, s)
					return
				}
				fmt.Fprintf(s, "%s/%s was asked for %s", b.enrol.Tenant, b.enrol.Node, r.Target)
			},
		},
	}
}

// echoPort is the port by which a node gives back what it is sent.
const echoPort = "7"

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
	conn, status, err := connectBy(e, target)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if !strings.HasPrefix(status, "200") {
		return status, ""
	}
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return status, string(all)
}

// connectBy asks for a connection as kube-apiserver does. It has ten seconds in all.
func connectBy(e admin.EgressResponse, target string) (conn net.Conn, status string, err error) {
	return connectWith(&net.Dialer{}, e, target)
}

func connectWith(d *net.Dialer, e admin.EgressResponse, target string) (conn net.Conn, status string, err error) {
	pair, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
	if err != nil {
		return nil, "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(e.CA))
	conn, err = tls.DialWithDialer(d, "tcp", strings.TrimPrefix(e.Endpoint, "https://"), &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}})
	if err != nil {
		return nil, "", err
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		conn.Close()
		return nil, "", err
	}
	return &answered{conn.(*tls.Conn), br}, resp.Status, nil
}

// answered is a connection whose answer to CONNECT was read.
type answered struct {
	*tls.Conn
	br *bufio.Reader
}

func (c *answered) Read(p []byte) (int, error) { return c.br.Read(p) }

// addTenant adds a tenant with a stand-in for its API server, which ends with the test.
func (r *running) addTenant(t *testing.T, name string) *kubetest.Server {
	t.Helper()
	api := kubetest.New(t)
	if _, err := r.client.AddTenant(context.Background(), admin.TenantRequest{Name: name, Kubeconfig: api.Kubeconfig()}); err != nil {
		t.Fatal(err)
	}
	r.logs.await(t, `msg="tenant changed" tenant=`+name+" removed=false")
	return api
}

func (r *running) bundle(t *testing.T, tenant string, uses int) config.JoinBundle {
	t.Helper()
	resp, err := r.client.CreateToken(context.Background(), admin.TokenRequest{Tenant: tenant, Uses: uses, TTL: config.Duration{Duration: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Bundle
}
