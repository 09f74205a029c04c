package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	k8stesting "k8s.io/client-go/testing"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

func TestServerJoin(t *testing.T) {
	b := newBench(t, func(c *ServerConfig) { c.KubeletConfig = map[string]any{"maxPods": 20} })
	cert := b.enrol("edge-1")
	status, body := b.post(enrollapi.PathJoin, &cert, enrollapi.JoinRequest{KubeletVersion: "v1.37.2"})
	var resp enrollapi.JoinResponse
	if err := json.Unmarshal(body, &resp); err != nil || status != 200 {
		t.Fatalf("answer %d %s", status, body)
	}
	if resp.APIServerCA != "the CA of acme" || resp.APIServerName != "acme.edge.example" || resp.Labels["a"] != "b" {
		t.Errorf("answer %+v", resp)
	}
	var cfg map[string]any
	if err := json.Unmarshal(resp.KubeletConfiguration, &cfg); err != nil || cfg["maxPods"] != 20.0 || cfg["serverTLSBootstrap"] != true {
		t.Errorf("kubelet configuration %s, %v", resp.KubeletConfiguration, err)
	}
	id, secret, _ := strings.Cut(resp.BootstrapToken, ".")
	s, err := b.kube.CoreV1().Secrets("kube-system").Get(t.Context(), "bootstrap-token-"+id, metav1.GetOptions{})
	if err != nil || s.StringData["token-secret"] != secret || s.Type != corev1.SecretTypeBootstrapToken {
		t.Errorf("secret %+v, %v", s, err)
	}
	if strings.Contains(b.log.String(), secret) {
		t.Error("the log holds the bootstrap token")
	}
}

func TestServerJoinRefuses(t *testing.T) {
	b := newBench(t, nil)
	cert := b.enrol("edge-1")
	removed := b.enrol("edge-2")
	if err := b.nodes.Remove(t.Context(), "acme", "edge-2"); err != nil {
		t.Fatal(err)
	}
	rogue, err := pki.NewCA("example.org", b.clk.now())
	if err != nil {
		t.Fatal(err)
	}
	node := pki.Identity{TrustDomain: "example.org", Role: pki.RoleNode, Tenant: "acme", Name: "edge-1"}
	issue := func(ca *pki.CA, now time.Time) tls.Certificate {
		key := newKey(t)
		p, err := pki.MakeCSR(key, "x")
		if err != nil {
			t.Fatal(err)
		}
		csr, err := pki.ParseCSR(p, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ca.IssueNode(csr, node, now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(chain)
		return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
	}
	apiCert, apiKey, err := b.ca.IssueAPIServer("acme", b.clk.now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	apiserver, err := tls.X509KeyPair(apiCert, apiKey)
	if err != nil {
		t.Fatal(err)
	}
	rogueCert, otherKey := issue(rogue, b.clk.now()), issue(b.ca, b.clk.now())
	first := ""
	for name, c := range map[string]*tls.Certificate{
		"no certificate": nil, "node removed": &removed, "another CA": &rogueCert, "another key": &otherKey, "not a node": &apiserver,
	} {
		t.Run(name, func(t *testing.T) {
			status, body := b.post(enrollapi.PathJoin, c, "{}")
			wantError(t, status, body, enrollapi.CodeRefused)
			if first == "" {
				first = string(body)
			}
			if string(body) != first {
				t.Errorf("answer %s differs from %s", body, first)
			}
		})
	}
	if n := len(b.kube.Actions()); n != 0 {
		t.Errorf("the tenant's API server was asked %d times", n)
	}
	b.clk.advance(8 * 24 * time.Hour)
	r := httptest.NewRequest("POST", enrollapi.PathJoin, strings.NewReader("{}"))
	r.Header.Set("Content-Type", "application/json")
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	r.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}}
	w := httptest.NewRecorder()
	b.server.ServeHTTP(w, r)
	wantError(t, w.Code, w.Body.Bytes(), enrollapi.CodeRefused)
	if !strings.Contains(b.log.String(), "expired") {
		t.Error("the log does not say that the certificate has expired")
	}
}

func TestServerJoinUnavailable(t *testing.T) {
	b := newBench(t, nil)
	cert := b.enrol("edge-1")
	b.kube.PrependReactor("create", "secrets", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	})
	status, body := b.post(enrollapi.PathJoin, &cert, "{}")
	e := wantError(t, status, body, enrollapi.CodeUnavailable)
	if strings.Contains(e.Message, "refused") || !strings.Contains(b.log.String(), "connection refused") {
		t.Errorf("the cause belongs in the log alone: %s", e.Message)
	}
}

// blockingMinter holds its callers until released.
type blockingMinter struct {
	entered chan struct{}
	release chan struct{}
}

func (m *blockingMinter) Mint(context.Context, string, string) (string, time.Time, error) {
	m.entered <- struct{}{}
	<-m.release
	return "abcdef.0123456789abcdef", time.Now(), nil
}

// Joins that wait for one tenant's API server hold up neither enrolments nor more than their share.
func TestServerOverloaded(t *testing.T) {
	m := &blockingMinter{entered: make(chan struct{}, 8), release: make(chan struct{})}
	b := newBench(t, func(c *ServerConfig) { c.Minter, c.MaxJoinsPerTenant, c.MaxEnrolments = m, 1, 1 })
	cert := b.enrol("edge-1")
	done := make(chan int, 1)
	go func() {
		status, _ := b.post(enrollapi.PathJoin, &cert, "{}")
		done <- status
	}()
	<-m.entered
	status, body := b.post(enrollapi.PathJoin, &cert, "{}")
	wantError(t, status, body, enrollapi.CodeOverloaded)
	b.enrol("edge-2")
	close(m.release)
	if s := <-done; s != 200 {
		t.Errorf("the first join got %d", s)
	}
	if status, body := b.post(enrollapi.PathJoin, &cert, "{}"); status != 200 {
		t.Errorf("afterwards: %d %s", status, body)
	}
	leave, ok := b.server.limit.enter(enrolKey, 1)
	if !ok {
		t.Fatal("an enrolment's place was not given back")
	}
	defer leave()
	status, body = b.post(enrollapi.PathEnrol, nil, "{}")
	wantError(t, status, body, enrollapi.CodeOverloaded)
}

func (b *bench) auditLine(t *testing.T, parts ...string) {
	t.Helper()
	for l := range strings.Lines(b.audit.String()) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(l, p) }) {
			return
		}
	}
	t.Errorf("no audit line with %q in\n%s", parts, b.audit.String())
}

func TestServerJoinIsRecorded(t *testing.T) {
	b := newBench(t, nil)
	cert := b.enrol("edge-1")
	key := pki.SPKIHash(cert.PrivateKey.(*ecdsa.PrivateKey).Public())
	status, body := b.post(enrollapi.PathJoin, &cert, "{}")
	var resp enrollapi.JoinResponse
	if err := json.Unmarshal(body, &resp); err != nil || status != 200 {
		t.Fatalf("answer %d %s", status, body)
	}
	id, secret, _ := strings.Cut(resp.BootstrapToken, ".")
	b.auditLine(t, `"event":"join"`, `"outcome":"ok"`, `"actor":"key `+key+`"`, `"tenant":"acme"`, `"node":"edge-1"`, `"source":"127.0.0.1`, `"bootstrapToken":"`+id+`"`)
	if strings.Contains(b.audit.String(), secret) {
		t.Error("the audit log holds the bootstrap token")
	}
	if _, err := b.nodes.Revoke(t.Context(), "acme", "edge-1", "", b.clk.now()); err != nil {
		t.Fatal(err)
	}
	b.post(enrollapi.PathJoin, &cert, "{}")
	b.auditLine(t, `"event":"join"`, `"outcome":"refused"`, `"node":"edge-1"`, "revoked by an operator")
	b.post(enrollapi.PathJoin, nil, "{}")
	b.auditLine(t, `"event":"join"`, `"outcome":"refused"`, `"actor":"unknown"`)
}

// While nobody knows which of two boxes is the right one, neither gets a way into the cluster.
func TestServerJoinInQuarantine(t *testing.T) {
	b := newBench(t, nil)
	cert := b.enrol("edge-1")
	spki := pki.SPKIHash(cert.PrivateKey.(*ecdsa.PrivateKey).Public())
	for i, instance := range []string{"aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"} {
		h := Lineage{Instance: instance, Generation: uint64(i + 1), SPKI: spki, Now: b.clk.now()}
		if _, err := b.nodes.Admit(t.Context(), "acme", "edge-1", h, func() bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	status, body := b.post(enrollapi.PathJoin, &cert, "{}")
	if e := wantError(t, status, body, enrollapi.CodeUnavailable); !strings.Contains(e.Message, "broker node resolve") {
		t.Errorf("%q does not say what to do", e.Message)
	}
	if n := len(b.kube.Actions()); n != 0 {
		t.Errorf("the tenant's API server was asked %d times", n)
	}
	b.auditLine(t, `"event":"join"`, `"outcome":"refused"`, reasonClone)
	if _, err := b.nodes.Resolve(t.Context(), "acme", "edge-1", "aaaaaaaaaaaaaaaa"); err != nil {
		t.Fatal(err)
	}
	if status, body := b.post(enrollapi.PathJoin, &cert, "{}"); status != 200 {
		t.Errorf("after it was resolved: %d %s", status, body)
	}
}

// A box in wrong hands that asks without end fills neither the store nor the audit log.
func TestServerPacesAKey(t *testing.T) {
	b := newBench(t, nil)
	cert := b.enrol("edge-1") // the first of its burst
	key := cert.PrivateKey.(*ecdsa.PrivateKey)
	req := renewRequest(t, key)
	for i := 1; i < keyBurst; i++ {
		if status, body := b.post(enrollapi.PathRenew, &cert, req); status != 200 {
			t.Fatalf("renewal %d: %d %s", i, status, body)
		}
	}
	before := strings.Count(b.audit.String(), "\n")
	for path, body := range map[string]any{
		enrollapi.PathRenew: req, enrollapi.PathJoin: "{}",
		enrollapi.PathEnrol: b.request(createToken(t, b.tokens, TokenSpec{Tenant: "acme"}), key, "edge-1"),
	} {
		status, answer := b.post(path, &cert, body)
		wantError(t, status, answer, enrollapi.CodeOverloaded)
	}
	if n := strings.Count(b.audit.String(), "\n"); n != before {
		t.Errorf("%d lines of audit more", n-before)
	}
	b.enrol("edge-2") // others are served
	b.clk.advance(time.Second)
	if status, body := b.post(enrollapi.PathRenew, &cert, req); status != 200 {
		t.Errorf("a second later: %d %s", status, body)
	}
}
