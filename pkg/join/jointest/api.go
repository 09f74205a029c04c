package jointest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	certsv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// APIServerName is the only name in the API server's certificate.
const APIServerName = "acme.tenants.test"

// API is a tenant's API server as far as certificate requests go; it approves and signs them itself.
type API struct {
	Authority
	CAPEM   []byte
	Address string

	mu sync.Mutex // guards the following fields
	// Decide, if set, may put conditions on a request; without any it is signed.
	decide func(*certsv1.CertificateSigningRequest)
	csrs   map[string]*certsv1.CertificateSigningRequest
	token  string
	minted int
	reject int // requests to answer with 401
	cidrs  []string
}

// NewAPI starts an API server; it is stopped with the test.
func NewAPI(t testing.TB) *API {
	t.Helper()
	ca := NewAuthority(t, "kubernetes")
	a := &API{Authority: ca, CAPEM: ca.PEM, csrs: map[string]*certsv1.CertificateSigningRequest{}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ca.Issue(&x509.Certificate{
		DNSNames: []string{APIServerName}, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(certPEM)
	cert := tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
	mux := http.NewServeMux()
	const path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	mux.HandleFunc("POST "+path, a.authenticated(a.create))
	mux.HandleFunc("GET "+path+"/{name}", a.authenticated(a.get))
	mux.HandleFunc("GET /api/v1/nodes/{name}", a.node)
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(ca.PEM)
	a.Address = serve(t, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients}, mux)
	return a
}

// Decide has f look at each request before it is signed.
func (a *API) Decide(f func(*certsv1.CertificateSigningRequest)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.decide = f
}

// RejectNext answers the next n requests with 401.
func (a *API) RejectNext(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reject = n
}

// SetPodCIDRs gives the node some; none: it has not registered.
func (a *API) SetPodCIDRs(cidrs ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cidrs = cidrs
}

// node gives the node's kubelet its own object.
func (a *API) node(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case len(r.TLS.PeerCertificates) == 0 || r.TLS.PeerCertificates[0].Subject.CommonName != "system:node:"+r.PathValue("name"):
		status(w, http.StatusForbidden, metav1.StatusReasonForbidden)
	case len(a.cidrs) == 0:
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	default:
		reply(w, http.StatusOK, corev1.Node{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: r.PathValue("name")},
			Spec: corev1.NodeSpec{PodCIDR: a.cidrs[0], PodCIDRs: a.cidrs},
		})
	}
}

// Requests returns how many certificate requests there are.
func (a *API) Requests() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.csrs)
}

// mint replaces the bootstrap token.
func (a *API) mint() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.minted++
	a.token = fmt.Sprintf("boots%d.0123456789abcdef", a.minted%10)
	return a.token
}

func (a *API) authenticated(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.reject > 0 || r.Header.Get("Authorization") != "Bearer "+a.token {
			a.reject = max(a.reject-1, 0)
			status(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized)
			return
		}
		h(w, r)
	}
}

func status(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	reply(w, code, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: string(reason),
	})
}

func (a *API) create(w http.ResponseWriter, r *http.Request) {
	csr := &certsv1.CertificateSigningRequest{}
	if err := json.NewDecoder(r.Body).Decode(csr); err != nil {
		status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	if a.csrs[csr.Name] != nil {
		status(w, http.StatusConflict, metav1.StatusReasonAlreadyExists)
		return
	}
	if err := a.sign(csr); err != nil {
		csr.Status.Conditions = []certsv1.CertificateSigningRequestCondition{
			{Type: certsv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SigningFailed", Message: err.Error()},
		}
	}
	a.csrs[csr.Name] = csr
	reply(w, http.StatusCreated, csr)
}

// sign does what the approver and kube-controller-manager do, and checks what they would.
func (a *API) sign(csr *certsv1.CertificateSigningRequest) error {
	if a.decide != nil {
		if a.decide(csr); len(csr.Status.Conditions) > 0 {
			return nil
		}
	}
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil {
		return fmt.Errorf("no PEM")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	node, isNode := strings.CutPrefix(req.Subject.CommonName, "system:node:")
	if csr.Spec.SignerName != certsv1.KubeAPIServerClientKubeletSignerName || !isNode || node != Node ||
		len(req.Subject.Organization) != 1 || req.Subject.Organization[0] != "system:nodes" || len(csr.Spec.Usages) != 2 {
		return fmt.Errorf("not a kubelet's request: %v", req.Subject)
	}
	csr.Status.Certificate, err = a.Issue(kubeletTemplate(node, time.Now().Add(time.Hour)), req.PublicKey)
	return err
}

func (a *API) get(w http.ResponseWriter, r *http.Request) {
	csr := a.csrs[r.PathValue("name")]
	if csr == nil {
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	reply(w, http.StatusOK, csr)
}
