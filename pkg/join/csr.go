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

	certsv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/mooring-edge/mooring/pkg/join/kubelet"
)

// requestCertificate gets the kubelet's client certificate from the control plane's own signer, by way of
// the local API endpoint.
func (j *Joiner) requestCertificate(ctx context.Context, node string, g *grant, key *ecdsa.PrivateKey) ([]byte, error) {
	api, closeIdle, err := apiClient(j.cfg.APIAddress, j.cfg.RequestTimeout, j.clock.Now, g)
	if err != nil {
		return nil, err
	}
	defer closeIdle()
	want, err := newCSR(node, key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, j.cfg.IssueTimeout)
	defer cancel()
	j.cfg.Report(Progress{Step: StepBootstrap, Doing: fmt.Sprintf("asking the API server of tenant %s for the kubelet's certificate (%s)", g.record.Tenant, want.Name)})
	err = api.Post().Resource("certificatesigningrequests").Body(want).Do(ctx).Error()
	// "Already exists" is this key's own request, made before this process was killed.
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, j.apiError("create", want.Name, err)
	}
	if err := j.reached(csrCreated); err != nil {
		return nil, err
	}
	return j.awaitCertificate(ctx, api, want.Name)
}

// awaitCertificate looks again and again, at a growing pace: the answer takes well under a second as a
// rule, and a watch through a tunnel that may break is no simpler.
func (j *Joiner) awaitCertificate(ctx context.Context, api rest.Interface, name string) ([]byte, error) {
	const longest = 5 * time.Second
	for pace := 200 * time.Millisecond; ; pace = min(pace*3/2, longest) {
		var csr certsv1.CertificateSigningRequest
		if err := api.Get().Resource("certificatesigningrequests").Name(name).Do(ctx).Into(&csr); err != nil {
			if apierrors.IsNotFound(err) {
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
func verdict(csr *certsv1.CertificateSigningRequest) error {
	for _, c := range csr.Status.Conditions {
		if (c.Type == certsv1.CertificateDenied || c.Type == certsv1.CertificateFailed) && c.Status != corev1.ConditionFalse {
			return fmt.Errorf("certificate request %s: %s: %s %s", csr.Name, c.Type, c.Reason, c.Message)
		}
	}
	return nil
}

// apiError says what to make of an error from the API server.
func (j *Joiner) apiError(verb, name string, err error) error {
	if apierrors.IsUnauthorized(err) {
		j.grant = nil // the bootstrap token has died: the next attempt asks for another
		return fmt.Errorf("%s certificate request %s: the API server does not know the bootstrap token (yet, or any more): %w", verb, name, err)
	}
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("%s certificate request %s: the control plane lacks the broker's role bindings for joining nodes: %w", verb, name, err)
	}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return fmt.Errorf("%s certificate request %s: the API server says: %w", verb, name, err)
	}
	return fmt.Errorf("%s certificate request %s at %s (tunnel down, or API server away?): %w", verb, name, j.cfg.APIAddress, err)
}

// newCSR is the request that the kubelet itself would make, under a name that belongs to the key.
func newCSR(node string, key *ecdsa.PrivateKey) (*certsv1.CertificateSigningRequest, error) {
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
	return &certsv1.CertificateSigningRequest{
		TypeMeta:   metav1.TypeMeta{APIVersion: certsv1.SchemeGroupVersion.String(), Kind: "CertificateSigningRequest"},
		ObjectMeta: metav1.ObjectMeta{Name: "mooring-node-" + hex.EncodeToString(sum[:20])},
		Spec: certsv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: certsv1.KubeAPIServerClientKubeletSignerName,
			Usages:     []certsv1.KeyUsage{certsv1.UsageDigitalSignature, certsv1.UsageClientAuth},
		},
	}, nil
}

// apiClient speaks to the tenant's API server with the bootstrap token. The second result frees its connections.
// now is the time to judge its certificate by.
func apiClient(address string, timeout time.Duration, now func() time.Time, g *grant) (rest.Interface, func(), error) {
	scheme := runtime.NewScheme()
	if err := certsv1.AddToScheme(scheme); err != nil {
		return nil, nil, err
	}
	conf := &rest.Config{
		Host: "https://" + address, APIPath: "/apis", BearerToken: g.token, UserAgent: "edge-agent",
		TLSClientConfig: rest.TLSClientConfig{ServerName: g.record.APIServerName, CAData: []byte(g.record.APIServerCA)},
		QPS:             -1, // its pace is awaitCertificate's
		ContentConfig: rest.ContentConfig{
			GroupVersion:         &certsv1.SchemeGroupVersion,
			NegotiatedSerializer: serializer.NewCodecFactory(scheme).WithoutConversion(),
			ContentType:          runtime.ContentTypeJSON,
		},
	}
	tlsConf, err := rest.TLSConfigFor(conf)
	if err != nil {
		return nil, nil, err
	}
	tlsConf.Time = now
	// A transport of its own: client-go keeps its shared ones, with their connections, for ever.
	transport := &http.Transport{TLSClientConfig: tlsConf}
	wrapped, err := rest.HTTPWrappersForConfig(conf, transport)
	if err != nil {
		return nil, nil, err
	}
	client, err := rest.RESTClientForConfigAndClient(conf, &http.Client{Transport: wrapped, Timeout: timeout})
	return client, transport.CloseIdleConnections, err
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
