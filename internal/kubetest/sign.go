package kubetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
)

const (
	requestsPath = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	tokensPath   = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-"
	kubeletLife  = 24 * time.Hour // whatever the request's expirationSeconds say
)

// signer signs kubelets' certificates.
type signer struct {
	cert *x509.Certificate
	key  crypto.Signer
	pool *x509.CertPool
}

// SignCertificates makes it a server that a kubelet bootstraps against: it lets in who has a bootstrap token that is stored, approves and signs
// kubelets' client certificates, and lets them in by these. Nobody else's approval is waited for. Requests to other signers stay as they are, pending.
func (s *Server) SignCertificates() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubetest"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(kubeletLife),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signer = &signer{cert, key, pool}
	return nil
}

// bootstrapUser tells who has a bootstrap token. s.mu is held.
func (s *Server) bootstrapUser(token string) (string, bool) {
	id, secret, ok := strings.Cut(token, ".")
	if s.signer == nil || !ok || secret == "" {
		return "", false
	}
	data, _ := s.objects[tokensPath+id]["stringData"].(map[string]any) // which an API server would make data of
	want, _ := data["token-secret"].(string)
	return "system:bootstrap:" + id, secret == want
}

// certificateUser tells who has a certificate of its own. s.mu is held.
func (s *Server) certificateUser(r *http.Request) (string, bool) {
	if s.signer == nil || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", false
	}
	cert := r.TLS.PeerCertificates[0]
	_, err := cert.Verify(x509.VerifyOptions{Roots: s.signer.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return cert.Subject.CommonName, err == nil
}

// sign approves and signs a certificate request, or says in it why not. s.mu is held.
func (s *Server) sign(o map[string]any) {
	if spec, _ := o["spec"].(map[string]any); spec["signerName"] != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return
	}
	condition := map[string]any{"type": "Approved", "status": "True", "reason": "Kubetest"}
	status := map[string]any{"conditions": []any{condition}}
	if cert, err := s.signer.kubelet(o); err != nil {
		condition["type"], condition["message"] = "Failed", err.Error()
	} else {
		status["certificate"] = base64.StdEncoding.EncodeToString(cert)
	}
	o["status"] = status
}

// kubelet makes what a certificate request asks for.
func (s *signer) kubelet(o map[string]any) ([]byte, error) {
	spec, _ := o["spec"].(map[string]any)
	encoded, _ := spec["request"].(string)
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(req.Subject.CommonName, "system:node:") {
		return nil, fmt.Errorf("%q is no kubelet", req.Subject.CommonName)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: req.Subject, NotBefore: time.Now().Add(-time.Minute), NotAfter: s.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, s.cert, req.PublicKey, s.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
