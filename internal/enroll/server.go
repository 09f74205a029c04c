package enroll

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

const (
	// DefaultCertificateTTL holds where ServerConfig.CertificateTTL is 0.
	DefaultCertificateTTL = 7 * 24 * time.Hour

	defaultMaxEnrolments     = 64
	defaultMaxJoinsPerTenant = 16
	// requestTimeout bounds the work for one request; an agent waits longer than that.
	requestTimeout = 20 * time.Second
	maxCSRPEM      = 16 << 10
	retryAfter     = "5"
)

// ServerConfig is what a Server is made of. Issuer, Roots, Tokens, Nodes, Tenants, Clients and Minter are needed.
type ServerConfig struct {
	// Issuer is asked for the keyring once for each request: a rotation of the CA may change it at any time.
	Issuer func() *pki.Keyring
	// Roots verify the client certificates of joining nodes. The Server verifies by itself: whoever serves it
	// only has to ask for client certificates. Asking must not refuse expired ones (pki.ClientUnverified, that is
	// tls.RequestClientCert and nothing else), or those who come to renew them are shut out.
	Roots   func() *x509.CertPool
	Tokens  *Tokens
	Nodes   *Nodes
	Tenants TenantSource
	Clients *Clients
	Minter  Minter
	// CertificateTTL of node certificates; 0 = 7 days.
	CertificateTTL time.Duration
	// ExpiredGrace is for how long after its certificate's end a node may be renewed by its pinned key; 0 = not at all.
	ExpiredGrace time.Duration
	// KubeletConfig lies over each tenant's own KubeletConfiguration; nil = nothing.
	KubeletConfig map[string]any
	// MaxEnrolments at work at once, and as many renewals; 0 = 64. More are told to come again.
	MaxEnrolments int
	// MaxJoinsPerTenant at work at once; 0 = 16. For each tenant its own, as they wait for the tenant's API server.
	MaxJoinsPerTenant int
	// Now tells the time; nil = time.Now.
	Now     Clock
	Logger  *slog.Logger
	Metrics *Metrics   // nil = count and show nobody
	Audit   *audit.Log // nil = no record
}

// Server answers the enrolment protocol. Read and write deadlines are the http.Server's that runs it.
type Server struct {
	cfg    ServerConfig
	verify pki.Verify
	mux    *http.ServeMux
	limit  limiter
	paces  pacer // by key: enrolments, renewals and joins together
	// issue makes a node's certificate; a test puts a failure in its place.
	issue func(ca *pki.Keyring, csr *x509.CertificateRequest, id pki.Identity, now time.Time, ttl time.Duration) ([]byte, error)
}

// NewServer makes the handler; it starts nothing.
func NewServer(cfg ServerConfig) *Server {
	if cfg.CertificateTTL == 0 {
		cfg.CertificateTTL = DefaultCertificateTTL
	}
	if cfg.MaxEnrolments == 0 {
		cfg.MaxEnrolments = defaultMaxEnrolments
	}
	if cfg.MaxJoinsPerTenant == 0 {
		cfg.MaxJoinsPerTenant = defaultMaxJoinsPerTenant
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux(), limit: limiter{busy: map[string]int{}}, issue: (*pki.Keyring).IssueNode}
	s.verify = pki.VerifyPeer(cfg.Roots, x509.ExtKeyUsageClientAuth, cfg.Now, nil)
	s.mux.HandleFunc(enrollapi.PathEnrol, s.serveEnrol)
	s.mux.HandleFunc(enrollapi.PathRenew, s.serveRenew)
	s.mux.HandleFunc(enrollapi.PathJoin, s.serveJoin)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, http.StatusNotFound, badRequest("there are "+enrollapi.PathEnrol+", "+enrollapi.PathRenew+" and "+enrollapi.PathJoin+" here, and nothing else"))
	})
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store") // answers hold credentials
	h.Set("X-Content-Type-Options", "nosniff")
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	s.mux.ServeHTTP(w, r.WithContext(ctx))
}

func badRequest(msg string) *enrollapi.Error {
	return &enrollapi.Error{Code: enrollapi.CodeBadRequest, Message: msg}
}

// errOverloaded asks to come again.
func errOverloaded() *enrollapi.Error {
	return &enrollapi.Error{Code: enrollapi.CodeOverloaded, Message: "the broker is busy with other nodes; try again"}
}

// errRefused is the one answer to all that is wrong with a token or an identity. It must not differ.
func errRefused() *enrollapi.Error {
	return &enrollapi.Error{Code: enrollapi.CodeRefused, Message: "not accepted: ask whoever runs the broker, whose log says why"}
}

func errInternal() *enrollapi.Error {
	return &enrollapi.Error{Code: enrollapi.CodeInternal, Message: "the broker failed to do this; its log says why"}
}

// read decodes a POST of one JSON object into v, or answers and returns false.
func read(w http.ResponseWriter, r *http.Request, v any) bool {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeError(w, http.StatusMethodNotAllowed, badRequest("use POST"))
		return false
	}
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		writeError(w, http.StatusUnsupportedMediaType, badRequest("send Content-Type: application/json"))
		return false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, enrollapi.MaxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		writeError(w, http.StatusRequestEntityTooLarge, badRequest(fmt.Sprintf("the body is larger than %d bytes", enrollapi.MaxBody)))
		return false
	case err != nil:
		writeError(w, http.StatusBadRequest, badRequest("the body broke off"))
		return false
	}
	// Unknown fields are a newer agent's, and passed over. Unmarshal takes one value and nothing after it.
	if err := json.Unmarshal(body, v); err != nil {
		writeError(w, http.StatusBadRequest, badRequest("the body is not the JSON object expected here"))
		return false
	}
	return true
}

// answer writes v, or err, and returns the outcome for the metric.
func answer(w http.ResponseWriter, v any, err *enrollapi.Error) {
	if err != nil {
		writeError(w, err.Code.HTTPStatus(), err)
		return
	}
	write(w, http.StatusOK, v)
}

func writeError(w http.ResponseWriter, status int, err *enrollapi.Error) {
	switch {
	case err.RetryAfter > 0:
		w.Header().Set("Retry-After", strconv.Itoa(err.RetryAfter))
	case err.Code.Retryable():
		w.Header().Set("Retry-After", retryAfter)
	}
	write(w, status, err)
}

func write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // of our own types: can't be
		http.Error(w, "encode answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that left is its own trouble
}
