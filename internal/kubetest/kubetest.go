// Package kubetest is a stand-in for a tenant's API server, for tests: it keeps objects, as JSON, that clients
// send, over HTTPS, and issues tokens of ServiceAccounts that it takes back.
//
// It is not an API server. It has no RBAC, no defaults, no validation and no controllers, but that it signs certificates where SignCertificates was
// called. Of admission policies it knows one thing: where one stands, a ServiceAccount's Opaque Secrets are refused. Whether rights are right,
// and a policy does what it says, shows against the real one (e2e) only.
//
//	api := kubetest.New(t)
//	client.AddTenant(ctx, admin.TenantRequest{Name: "acme", Kubeconfig: api.Kubeconfig()})
package kubetest

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// Server is one stand-in. Its methods are safe for concurrent use.
type Server struct {
	http  *httptest.Server
	admin string
	done  chan struct{}

	mu        sync.Mutex                // guards the following fields
	objects   map[string]map[string]any // by path
	users     map[string]string         // by token
	requests  []string
	version   int64
	policies  bool
	tokenLife time.Duration
	reviews   map[string]authenticationv1.TokenReviewStatus // by token
	signer    *signer                                       // nil: certificates are not signed
}

// New starts a server; it is stopped with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := Start()
	t.Cleanup(s.Close)
	return s
}

// Start starts a server that Close stops.
func Start() *Server {
	s := &Server{
		admin: rand.Text(), done: make(chan struct{}), objects: map[string]map[string]any{},
		reviews: map[string]authenticationv1.TokenReviewStatus{},
		users:   map[string]string{}, policies: true, tokenLife: 1 << 62,
	}
	s.users[s.admin] = "admin"
	s.http = httptest.NewUnstartedServer(s)
	s.http.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.http.StartTLS()
	return s
}

// Close ends all connections, and the server.
func (s *Server) Close() {
	close(s.done)
	s.http.CloseClientConnections()
	s.http.Close()
}

// Address is the host:port that it listens on.
func (s *Server) Address() string { return strings.TrimPrefix(s.http.URL, "https://") }

// CA is the PEM certificate that its clients verify it by.
func (s *Server) CA() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
}

// AdminToken is the credential in Kubeconfig.
func (s *Server) AdminToken() string { return s.admin }

// Kubeconfig is an administrator's.
func (s *Server) Kubeconfig() string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: x
contexts: [{name: x, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: u, user: {token: %q}}]
`, s.http.URL, base64.StdEncoding.EncodeToString(s.CA()), s.admin)
}

// LimitTokens has tokens live no longer than this.
func (s *Server) LimitTokens(life time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokenLife = life
}

// ForgetPolicies makes it a server that knows no admission policies.
func (s *Server) ForgetPolicies() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policies = false
}

// RevokeTokens refuses all tokens that were issued so far.
func (s *Server) RevokeTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.users)
	s.users[s.admin] = "admin"
}

// Review has a TokenReview of a token answered so; others are answered that nobody knows the token.
func (s *Server) Review(token string, status authenticationv1.TokenReviewStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reviews[token] = status
}

// Object returns what is stored under the API's path, such as /api/v1/namespaces/x/secrets/y; nil if nothing is.
// The caller must not change it.
func (s *Server) Object(path string) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[path]
}

// Paths returns the paths of all objects below the prefix, in order.
func (s *Server) Paths(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for p := range s.objects {
		if strings.HasPrefix(p, prefix) {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// Put stores an object, given as JSON, as an administrator would; "" removes it.
func (s *Server) Put(path, object string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if object == "" {
		delete(s.objects, path)
		return
	}
	var o map[string]any
	if err := json.Unmarshal([]byte(object), &o); err != nil {
		panic(fmt.Sprintf("kubetest: %s: %v", path, err))
	}
	s.store(path, o)
}

// Requests returns all requests that were answered, as "METHOD path by user".
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// store keeps an object. s.mu is held.
func (s *Server) store(path string, o map[string]any) map[string]any {
	meta, _ := o["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
		o["metadata"] = meta
	}
	s.version++
	meta["resourceVersion"] = fmt.Sprint(s.version)
	if meta["uid"] == nil {
		meta["uid"] = fmt.Sprintf("uid-%d", s.version)
	}
	s.objects[path] = o
	return o
}

// user tells whose request it is.
func (s *Server) user(r *http.Request) (string, bool) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	defer s.mu.Unlock()
	if u, ok := s.users[token]; ok {
		return u, true
	}
	if u, ok := s.bootstrapUser(token); ok {
		return u, true
	}
	return s.certificateUser(r)
}

func isDryRun(q url.Values) bool { return q.Get("dryRun") == "All" }
