package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// bench is a Server on real TLS, over the real store, with a fake API server for each tenant.
type bench struct {
	t      *testing.T
	store  *store.Store
	clk    *clock
	ca     *pki.CA
	tokens *Tokens
	nodes  *Nodes
	kube   *fake.Clientset
	minter Minter
	reg    *prometheus.Registry
	log    *lockedBuffer
	audit  *lockedBuffer
	url    string
	server *Server
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newBench(t *testing.T, edit func(*ServerConfig)) *bench {
	t.Helper()
	b := &bench{t: t, clk: newClock(), kube: fake.NewClientset(), reg: prometheus.NewRegistry(), log: &lockedBuffer{}, audit: &lockedBuffer{}}
	ring, err := pki.NewKeyring("example.org", b.clk.now())
	if err != nil {
		t.Fatal(err)
	}
	b.ca = ring.Issuer()
	s := openStore(t)
	b.store = s
	b.tokens, b.nodes = NewTokens(s, b.clk.now, discard), NewNodes(s, discard)
	tenants := fixedTenants{"acme": someTenant("acme"), "beta": someTenant("beta")}
	clients := NewClients(tenants, func(tenant.Tenant) (kubernetes.Interface, error) { return b.kube, nil })
	cfg := ServerConfig{
		Issuer: func() *pki.Keyring { return ring }, Roots: ring.Pool, Tokens: b.tokens, Nodes: b.nodes, Tenants: tenants, Clients: clients,
		Minter: NewMinter(s, clients, b.clk.now), Now: b.clk.now, Metrics: NewMetrics(b.reg),
		ExpiredGrace: 10 * 365 * 24 * time.Hour, Audit: audit.New(b.audit, nil, nil),
		Logger: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	if edit != nil {
		edit(&cfg)
	}
	b.minter = cfg.Minter
	b.server = NewServer(cfg)
	cert, err := b.ca.IssueBroker("b", []string{"localhost"}, nil, b.clk.now(), 5*year)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(b.server)
	// Deliberately the laxest TLS that may be put in front: certificates asked for, none verified.
	ts.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
	ts.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	ts.StartTLS()
	t.Cleanup(ts.Close)
	b.url = ts.URL
	return b
}

// post sends body (a string as it is, all else as JSON) with the client certificate, if any.
func (b *bench) post(path string, cert *tls.Certificate, body any) (int, []byte) {
	b.t.Helper()
	raw, ok := body.(string)
	if !ok {
		j, err := json.Marshal(body)
		if err != nil {
			b.t.Fatal(err)
		}
		raw = string(j)
	}
	cfg := &tls.Config{RootCAs: b.ca.Pool(), ServerName: "localhost", Time: b.clk.now}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	tr := &http.Transport{TLSClientConfig: cfg}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: patience}).Post(b.url+path, "application/json", strings.NewReader(raw))
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, out
}

func (b *bench) request(tok enrollapi.Token, key *ecdsa.PrivateKey, host string) enrollapi.EnrolRequest {
	b.t.Helper()
	csr, err := pki.MakeCSR(key, "system:masters")
	if err != nil {
		b.t.Fatal(err)
	}
	return enrollapi.EnrolRequest{Token: tok.String(), Tenant: "acme", CSR: string(csr), Hostname: host}
}

// enrol makes a node and returns its certificate.
func (b *bench) enrol(host string) tls.Certificate {
	b.t.Helper()
	key := newKey(b.t)
	status, body := b.post(enrollapi.PathEnrol, nil, b.request(createToken(b.t, b.tokens, TokenSpec{Tenant: "acme", Labels: map[string]string{"a": "b"}}), key, host))
	var resp enrollapi.EnrolResponse
	if err := json.Unmarshal(body, &resp); err != nil || status != 200 {
		b.t.Fatalf("enrol: %d %s", status, body)
	}
	block, _ := pem.Decode([]byte(resp.Certificate))
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
}

func wantError(t *testing.T, status int, body []byte, code enrollapi.ErrorCode) enrollapi.Error {
	t.Helper()
	var e enrollapi.Error
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatalf("answer %d %q: %v", status, body, err)
	}
	if e.Code != code || status < 400 || e.Message == "" {
		t.Errorf("answer %d %+v, want %s", status, e, code)
	}
	return e
}

func TestServerEnrol(t *testing.T) {
	b := newBench(t, nil)
	key := newKey(t)
	tok := createToken(t, b.tokens, TokenSpec{Tenant: "acme"})
	for _, outcome := range []string{"enrolled", "again"} {
		status, body := b.post(enrollapi.PathEnrol, nil, b.request(tok, key, "Edge-1"))
		var resp enrollapi.EnrolResponse
		if err := json.Unmarshal(body, &resp); err != nil || status != 200 {
			t.Fatalf("answer %d %s", status, body)
		}
		block, _ := pem.Decode([]byte(resp.Certificate))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		id, err := pki.ParseIdentity(cert)
		if err != nil || id.String() != "spiffe://example.org/tenant/acme/node/edge-1" || resp.Node != "edge-1" || resp.CABundle != string(b.ca.CertPEM()) {
			t.Errorf("identity %v, %v; answer %+v", id, err, resp)
		}
		if err := b.nodes.Authorize(t.Context(), id, cert); err != nil {
			t.Error(err)
		}
		rec, err := b.nodes.Get(t.Context(), "acme", "edge-1")
		if err != nil || !rec.CertificateNotAfter.Equal(cert.NotAfter) {
			t.Errorf("record says %v, certificate %v (%v)", rec.CertificateNotAfter, cert.NotAfter, err)
		}
		if n := testutil.ToFloat64(b.server.cfg.Metrics.enrolments.WithLabelValues(outcome)); n != 1 {
			t.Errorf("%v counted as %s", n, outcome)
		}
	}
	if strings.Contains(b.log.String(), tok.Secret) {
		t.Error("the log holds the token's secret")
	}
}

// All that may be wrong with a token has its own line in the log, and one answer for the box.
func TestServerRefusesAlike(t *testing.T) {
	b := newBench(t, nil)
	short := createToken(t, b.tokens, TokenSpec{Tenant: "acme", TTL: time.Minute})
	used := createToken(t, b.tokens, TokenSpec{Tenant: "acme"})
	revoked := createToken(t, b.tokens, TokenSpec{Tenant: "acme"})
	beta := createToken(t, b.tokens, TokenSpec{Tenant: "beta"})
	if status, body := b.post(enrollapi.PathEnrol, nil, b.request(used, newKey(t), "u")); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	if err := b.tokens.Revoke(t.Context(), revoked.ID); err != nil {
		t.Fatal(err)
	}
	b.clk.advance(2 * time.Minute)
	first := ""
	for _, tc := range []struct {
		token  string
		reason Reason
	}{
		{"not a token", ReasonMalformed}, {enrollapi.NewToken().String(), ReasonUnknown},
		{used.ID + "." + short.Secret, ReasonWrongSecret}, {beta.String(), ReasonOtherTenant},
		{revoked.String(), ReasonRevoked}, {short.String(), ReasonExpired}, {used.String(), ReasonUsedUp},
	} {
		req := b.request(used, newKey(t), "x")
		req.Token = tc.token
		status, body := b.post(enrollapi.PathEnrol, nil, req)
		wantError(t, status, body, enrollapi.CodeRefused)
		if first == "" {
			first = string(body)
		}
		if string(body) != first || status != 403 {
			t.Errorf("%s: answer %d %s differs from %s", tc.reason, status, body, first)
		}
		if n := testutil.ToFloat64(b.server.cfg.Metrics.enrolments.WithLabelValues(string(tc.reason))); n != 1 {
			t.Errorf("%v counted as %q", n, tc.reason)
		}
		if log := b.log.String(); !strings.Contains(log, `reason="`+string(tc.reason)+`"`) && !strings.Contains(log, "reason="+string(tc.reason)) {
			t.Errorf("the log does not say %q:\n%s", tc.reason, log)
		}
	}
}

func TestServerEnrolErrors(t *testing.T) {
	b := newBench(t, nil)
	b.enrol("edge-1")
	tok := createToken(t, b.tokens, TokenSpec{Tenant: "acme", Uses: 10})

	status, body := b.post(enrollapi.PathEnrol, nil, b.request(tok, newKey(t), "edge-1"))
	if e := wantError(t, status, body, enrollapi.CodeNameTaken); !strings.Contains(e.Message, "edge-1") {
		t.Errorf("the answer does not name the node: %s", e.Message)
	}
	status, body = b.post(enrollapi.PathEnrol, nil, b.request(tok, newKey(t), "under_score"))
	wantError(t, status, body, enrollapi.CodeBadRequest)
	for name, csr := range map[string]string{"none": "", "garbage": "x", "oversized": strings.Repeat("x", maxCSRPEM+1)} {
		req := b.request(tok, newKey(t), "edge-2")
		req.CSR = csr
		status, body := b.post(enrollapi.PathEnrol, nil, req)
		t.Run("CSR "+name, func(t *testing.T) { wantError(t, status, body, enrollapi.CodeBadRequest) })
	}
	for name, in := range map[string]string{
		"empty": "", "array": "[]", "two values": "{}{}", "cut short": `{"token":`, "wrong type": `{"token":1}`,
		"too large": `{"token":"` + strings.Repeat("x", enrollapi.MaxBody) + `"}`,
	} {
		status, body := b.post(enrollapi.PathEnrol, nil, in)
		t.Run("body "+name, func(t *testing.T) { wantError(t, status, body, enrollapi.CodeBadRequest) })
	}
	status, body = b.post("/v1/other", nil, "{}")
	if wantError(t, status, body, enrollapi.CodeBadRequest); status != 404 {
		t.Errorf("unknown path: %d", status)
	}
	for _, r := range []*http.Request{
		httptest.NewRequest("GET", enrollapi.PathEnrol, nil),
		httptest.NewRequest("POST", enrollapi.PathEnrol, strings.NewReader("a=b")),
	} {
		w := httptest.NewRecorder()
		b.server.ServeHTTP(w, r)
		wantError(t, w.Code, w.Body.Bytes(), enrollapi.CodeBadRequest)
	}
}
