package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/mooring-edge/mooring/pkg/join/kubelet"
)

// csrPath is where certificate requests are, at an API server.
const csrPath = "/apis/certificates.k8s.io/v1/certificatesigningrequests"

// certificateRequest is a CertificateSigningRequest of certificates.k8s.io/v1, as far as it is written and read here.
type certificateRequest struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		Request    []byte   `json:"request"` // PEM
		SignerName string   `json:"signerName"`
		Usages     []string `json:"usages"`
	} `json:"spec"`
	Status struct {
		Certificate []byte `json:"certificate,omitempty"` // PEM
		Conditions  []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Reason  string `json:"reason"`
			Message string `json:"message"`
		} `json:"conditions,omitempty"`
	} `json:"status"`
}

// requestCertificate gets the kubelet's client certificate from the control plane's own signer, by way of
// the local API endpoint.
func (j *Joiner) requestCertificate(ctx context.Context, node string, g *grant, key *ecdsa.PrivateKey) ([]byte, error) {
	api, err := j.newAPIServer(g.record.APIServerName, []byte(g.record.APIServerCA), nil)
	if err != nil {
		return nil, err
	}
	defer api.close()
	api.token = g.token
	want, err := newCSR(node, key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, j.cfg.IssueTimeout)
	defer cancel()
	j.cfg.Report(Progress{Step: StepBootstrap, Doing: fmt.Sprintf("asking the API server of tenant %s for the kubelet's certificate (%s)", g.record.Tenant, want.Metadata.Name)})
	err = api.do(ctx, http.MethodPost, csrPath, want, nil)
	// "Already exists" is this key's own request, made before this process was killed.
	if err != nil && !isStatus(err, http.StatusConflict, "AlreadyExists") {
		return nil, j.apiError("create", want.Metadata.Name, err)
	}
	if err := j.reached(csrCreated); err != nil {
		return nil, err
	}
	return j.awaitCertificate(ctx, api, want.Metadata.Name)
}

// awaitCertificate looks again and again, at a growing pace: the answer takes well under a second as a
// rule, and a watch through a tunnel that may break is no simpler.
func (j *Joiner) awaitCertificate(ctx context.Context, api *apiServer, name string) ([]byte, error) {
	const longest = 5 * time.Second
	for pace := 200 * time.Millisecond; ; pace = min(pace*3/2, longest) {
		var csr certificateRequest
		if err := api.do(ctx, http.MethodGet, csrPath+"/"+name, nil, &csr); err != nil {
			if isStatus(err, http.StatusNotFound, "") {
				return nil, fmt.Errorf("certificate request %s is gone from the API server; making it again", name)
			}
			return nil, j.apiError("read", name, err)
		}
		if err := verdict(&csr); err != nil {
			// The same request would get the same verdict: the next attempt makes one with another key.
			if dropErr := j.dropPendingKey(); dropErr != nil {
				return nil, dropErr
			}
			return nil, needsHand(err)
		}
		if len(csr.Status.Certificate) > 0 {
			return csr.Status.Certificate, nil
		}
		if err := j.wait(ctx, pace); err != nil {
			return nil, fmt.Errorf("certificate request %s was made, but neither approved and signed nor denied so far "+
				"(is the broker's approver allowed to, and kube-controller-manager running?): %w", name, err)
		}
	}
}

// verdict is the error for a request that will not get a certificate.
func verdict(csr *certificateRequest) error {
	for _, c := range csr.Status.Conditions {
		if (c.Type == "Denied" || c.Type == "Failed") && c.Status != "False" {
			return fmt.Errorf("certificate request %s: %s: %s %s", csr.Metadata.Name, c.Type, c.Reason, c.Message)
		}
	}
	return nil
}

// apiError says what to make of an error from the API server.
func (j *Joiner) apiError(verb, name string, err error) error {
	if isStatus(err, http.StatusUnauthorized, "") {
		j.grant = nil // the bootstrap token has died: the next attempt asks for another
		return fmt.Errorf("%s certificate request %s: the API server does not know the bootstrap token (yet, or any more): %w", verb, name, err)
	}
	if isStatus(err, http.StatusForbidden, "") {
		return fmt.Errorf("%s certificate request %s: the control plane lacks the broker's role bindings for joining nodes: %w", verb, name, err)
	}
	var status *statusError
	if errors.As(err, &status) {
		return fmt.Errorf("%s certificate request %s: the API server says: %w", verb, name, err)
	}
	return fmt.Errorf("%s certificate request %s at %s (tunnel down, or API server away?): %w", verb, name, j.cfg.APIAddress, err)
}

// newCSR is the request that the kubelet itself would make, under a name that belongs to the key.
func newCSR(node string, key *ecdsa.PrivateKey) (*certificateRequest, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: kubelet.UserName(node), Organization: []string{"system:nodes"}},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("make the kubelet's certificate request: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append(spki, node...))
	csr := &certificateRequest{APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest"}
	csr.Metadata.Name = "mooring-node-" + hex.EncodeToString(sum[:20])
	csr.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	csr.Spec.SignerName = "kubernetes.io/kube-apiserver-client-kubelet"
	csr.Spec.Usages = []string{"digital signature", "client auth"}
	return csr, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func pemCertificates(data []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, cert)
		}
	}
}
