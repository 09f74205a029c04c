// Package jointest has stand-ins for what a node joins: a broker's enrolment endpoint and a tenant's API
// server, with real TLS and real certificates, in the test's process. They do what the protocol says,
// count what they are asked, and can be told to fail. It is for tests only.
package jointest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

// Tenant and Node are what every token here is for.
const (
	Tenant = "acme"
	Node   = "edge-1"
)

// Broker answers the enrolment protocol on a TCP port.
type Broker struct {
	CA       *pki.CA
	Token    enrollapi.Token
	Endpoint string
	API      *API // the control plane that it mints tokens for

	// TTL of node certificates. Default one hour.
	TTL time.Duration
	// Configuration is the answer's KubeletConfiguration.
	Configuration string
	// Now is the broker's clock. Default: the machine's.
	Now func() time.Time

	ring *pki.Keyring
	cert atomic.Pointer[tls.Certificate]

	mu sync.Mutex // guards the following fields
	// fail are the errors to answer next, in order.
	fail []*enrollapi.Error
	// tamper changes a good answer to an enrolment before it goes out.
	tamper func(*enrollapi.EnrolResponse)
	owner  string // SPKI hash of the key that used the token
	serial string // that the last enrolment told
	gone   bool   // the node's record
	enrols int
	joins  int
	renews int
}

// NewBroker starts a broker; it is stopped with the test.
func NewBroker(t testing.TB, api *API) *Broker {
	t.Helper()
	ring, err := pki.NewKeyring("mooring.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b := &Broker{ring: ring, Token: enrollapi.NewToken(), API: api, TTL: time.Hour, Now: time.Now,
		Configuration: `{"apiVersion":"kubelet.config.k8s.io/v1beta1","kind":"KubeletConfiguration","maxPods":42}`}
	b.use(t, ring)
	// A certificate that has expired is let in, for a renewal; the other handlers look closer.
	verify := func(tls.ConnectionState) error { return nil }
	conf := pki.ServerTLS(func() (*tls.Certificate, error) { return b.cert.Load(), nil }, verify,
		pki.ServerOptions{Clients: pki.ClientOptional})
	// net/http serves no protocols that it does not know, so the ALPN is checked here and not answered.
	conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Equal(hello.SupportedProtos, []string{enrollapi.ALPN}) {
			return nil, fmt.Errorf("the client offers %v", hello.SupportedProtos)
		}
		return nil, nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+enrollapi.PathEnrol, b.enrol)
	mux.HandleFunc("POST "+enrollapi.PathJoin, b.join)
	mux.HandleFunc("POST "+enrollapi.PathRenew, b.renew)
	b.Endpoint = serve(t, conf, mux)
	return b
}

// use makes ring the broker's.
func (b *Broker) use(t testing.TB, ring *pki.Keyring) {
	t.Helper()
	b.mu.Lock()
	b.ring, b.CA = ring, ring.Issuer()
	b.mu.Unlock()
	b.Serve(t, time.Now(), time.Hour)
}

// Serve gives the broker a certificate of that life, as issued at the given time.
func (b *Broker) Serve(t testing.TB, at time.Time, life time.Duration) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	cert, err := b.ring.IssueBroker("b1", []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, at, life)
	if err != nil {
		t.Fatal(err)
	}
	b.cert.Store(&cert)
}

// Rotate replaces the broker's CA, all the way: the one before is not trusted any more.
func (b *Broker) Rotate(t testing.TB) {
	t.Helper()
	ring, err := b.ring.Add(time.Now())
	if err == nil {
		ring, err = ring.Switch()
	}
	if err == nil {
		ring, err = ring.Retire()
	}
	if err != nil {
		t.Fatal(err)
	}
	b.use(t, ring)
}

// serve serves h over TLS on a port of its own until the test ends.
func serve(t testing.TB, conf *tls.Config, h http.Handler) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(tls.NewListener(l, conf)) }()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return l.Addr().String()
}

// FailNext has the next requests answered with these errors.
func (b *Broker) FailNext(errs ...*enrollapi.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = append(b.fail, errs...)
}

// Tamper changes good answers to enrolments.
func (b *Broker) Tamper(f func(*enrollapi.EnrolResponse)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tamper = f
}

// Counts returns how many enrolments and joins were asked for, and the key that owns the node.
func (b *Broker) Counts() (enrols, joins int, owner string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.enrols, b.joins, b.owner
}

// Renews returns how many renewals were asked for.
func (b *Broker) Renews() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.renews
}

// Serial returns the serial number that the last enrolment told.
func (b *Broker) Serial() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.serial
}

// Remove ends the node: it is neither renewed nor let in until the token of a new bundle enrols it again.
func (b *Broker) Remove() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
}

// NewToken replaces the token; it returns the new one.
func (b *Broker) NewToken() enrollapi.Token {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Token = enrollapi.NewToken()
	return b.Token
}

func (b *Broker) enrol(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.enrols++
	if b.failed(w) {
		return
	}
	var req enrollapi.EnrolRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, enrollapi.MaxBody)).Decode(&req); err != nil {
		refuse(w, enrollapi.CodeBadRequest, err.Error())
		return
	}
	csr, err := pki.ParseCSR([]byte(req.CSR), enrollapi.MaxBody)
	if err != nil {
		refuse(w, enrollapi.CodeBadRequest, err.Error())
		return
	}
	spki := pki.SPKIHash(csr.PublicKey)
	b.serial = req.Serial
	if req.Token != b.Token.String() || req.Tenant != Tenant && req.Tenant != "" || b.owner != "" && b.owner != spki {
		refuse(w, enrollapi.CodeRefused, "token not accepted")
		return
	}
	b.owner, b.gone = spki, false
	b.issue(w, csr)
}

// renew goes by the key of the certificate alone, as the real one does.
func (b *Broker) renew(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.renews++
	if b.failed(w) {
		return
	}
	var req enrollapi.RenewRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, enrollapi.MaxBody)).Decode(&req); err != nil {
		refuse(w, enrollapi.CodeBadRequest, err.Error())
		return
	}
	csr, err := pki.ParseCSR([]byte(req.CSR), enrollapi.MaxBody)
	if err != nil {
		refuse(w, enrollapi.CodeBadRequest, err.Error())
		return
	}
	id, err := pki.PeerIdentity(*r.TLS)
	if err != nil || b.gone || id.Name != Node || id.Tenant != Tenant || pki.SPKIHash(csr.PublicKey) != b.owner ||
		pki.SPKIHash(r.TLS.PeerCertificates[0].PublicKey) != b.owner {
		refuse(w, enrollapi.CodeRefused, "identity not accepted")
		return
	}
	b.issue(w, csr)
}

func (b *Broker) issue(w http.ResponseWriter, csr *x509.CertificateRequest) {
	chain, err := b.CA.IssueNode(csr, pki.Identity{TrustDomain: b.CA.TrustDomain(), Role: pki.RoleNode, Tenant: Tenant, Name: Node}, b.Now(), b.TTL)
	if err != nil {
		refuse(w, enrollapi.CodeInternal, err.Error())
		return
	}
	answer := enrollapi.EnrolResponse{
		Tenant: Tenant, Node: Node, TrustDomain: b.CA.TrustDomain(), Certificate: string(chain), CABundle: string(b.ring.BundlePEM()), Time: b.Now(),
	}
	if b.tamper != nil {
		b.tamper(&answer)
	}
	reply(w, http.StatusOK, answer)
}

func (b *Broker) join(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.joins++
	if b.failed(w) {
		return
	}
	err := pki.VerifyPeer(b.CA.Pool, x509.ExtKeyUsageClientAuth, b.Now, nil)(*r.TLS)
	if err == nil && (b.gone || pki.SPKIHash(r.TLS.PeerCertificates[0].PublicKey) != b.owner) {
		err = errors.New("not the node's key")
	}
	if err != nil {
		refuse(w, enrollapi.CodeRefused, "identity not accepted")
		return
	}
	reply(w, http.StatusOK, enrollapi.JoinResponse{
		APIServerCA: string(b.API.CAPEM), APIServerName: APIServerName, BootstrapToken: b.API.mint(), BootstrapExpires: time.Now().Add(10 * time.Minute),
		KubeletConfiguration: json.RawMessage(b.Configuration), Labels: map[string]string{"site": "shop-7"},
		Taints: []enrollapi.Taint{{Key: "edge", Effect: "NoSchedule"}},
	})
}

func (b *Broker) failed(w http.ResponseWriter) bool {
	if len(b.fail) == 0 {
		return false
	}
	reply(w, b.fail[0].Code.HTTPStatus(), b.fail[0])
	b.fail = b.fail[1:]
	return true
}

func refuse(w http.ResponseWriter, code enrollapi.ErrorCode, message string) {
	reply(w, code.HTTPStatus(), enrollapi.Error{Code: code, Message: message})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// Authority is a CA of a control plane.
type Authority struct {
	Cert *x509.Certificate
	PEM  []byte
	Key  *ecdsa.PrivateKey
}

// NewAuthority makes one.
func NewAuthority(t testing.TB, name string) Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Authority{cert, encode("CERTIFICATE", der), key}
}

// Issue signs a certificate for pub.
func (a Authority) Issue(tmpl *x509.Certificate, pub any) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber = serial
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore = time.Now().Add(-time.Minute)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.Cert, pub, a.Key)
	if err != nil {
		return nil, err
	}
	return encode("CERTIFICATE", der), nil
}

// KubeletPair makes a kubelet's client certificate and key.
func (a Authority) KubeletPair(t testing.TB, node string, notAfter time.Time) (certPEM, keyPEM []byte) {
	t.Helper()
	keyPEM, key, err := pki.MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err = a.Issue(kubeletTemplate(node, notAfter), &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return certPEM, keyPEM
}

func kubeletTemplate(node string, notAfter time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
		NotBefore: notAfter.Add(-2 * time.Hour), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

func encode(typ string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}
