package harness

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

// KonnectivityDomain is the zone of the names that agents of konnectivity connect to.
const KonnectivityDomain = "konnectivity." + BrokerName

// Konnectivity is upstream's agent, built if it is absent.
func (e *Env) Konnectivity(ctx context.Context) (string, error) {
	root, err := tools.Root()
	if err != nil {
		return "", err
	}
	return tools.Konnectivity(ctx, root, e.Logf)
}

// KonnectivityAgent is one that runs beside the broker, as upstream built it.
type KonnectivityAgent struct {
	*Proc
	n int
}

// StartKonnectivityAgent starts the n-th agent, which connects to the name of the tenant called to; ca is the broker's bundle, and
// flags say who it is. It starts draining at its first SIGTERM, and ends at its second.
func (p *Platform) StartKonnectivityAgent(ctx context.Context, n int, to, ca string, flags ...string) (*KonnectivityAgent, error) {
	program, err := p.env.Konnectivity(ctx)
	if err != nil {
		return nil, err
	}
	name := to + "." + KonnectivityDomain
	hosts := filepath.Join(p.env.Dir(), "konnectivity-hosts-"+to)
	if err := os.WriteFile(hosts, fmt.Appendf(nil, "%s %s\n", BrokerAddress, name), 0o644); err != nil {
		return nil, err
	}
	const script = `mount --bind "$0" /etc/hosts && exec "$@"`
	argv := p.Net.Argv(append([]string{"unshare", "--mount", "--", "sh", "-c", script, hosts, program,
		"--proxy-server-host=" + name, "--proxy-server-port=" + BrokerPort, "--ca-cert=" + ca, "--v=2",
		"--sync-interval=500ms", "--sync-interval-cap=2s",
		fmt.Sprintf("--health-server-port=%d", 21000+2*n), fmt.Sprintf("--admin-server-port=%d", 21001+2*n)}, flags...)...)
	proc, err := p.env.start(fmt.Sprintf("konnectivity-agent-%d", n), false, argv)
	if err != nil {
		return nil, err
	}
	return &KonnectivityAgent{proc, n}, nil
}

// Said is all that the process has logged.
func (p *Proc) Said() string {
	data, _ := os.ReadFile(p.Log)
	return string(data)
}

// Expect says that the process's end will be the test's doing.
func (p *Proc) Expect() { p.expected.Store(true) }

// StandInKubelet serves what an API server asks kubelets for, at an address of the platform's loopback, with a certificate of the
// tenant's CA: each answer is the node's name and the path.
func (t *Tenant) StandInKubelet(ctx context.Context, node, address string) (stop func(), err error) {
	ca, err := tls.LoadX509KeyPair(t.pki("ca.crt"), t.pki("ca.key"))
	if err != nil {
		return nil, err
	}
	issuer, err := x509.ParseCertificate(ca.Certificate[0])
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{node}, IPAddresses: []net.IP{net.ParseIP(host)},
	}, issuer, &key.PublicKey, ca.PrivateKey)
	if err != nil {
		return nil, err
	}
	ln, err := t.platform.Net.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s/%s %s\n", t.Name, node, r.URL.Path)
		if r.URL.Query().Get("follow") != "" { // until the caller leaves
			_ = http.NewResponseController(w).Flush()
			for r.Context().Err() == nil {
				select {
				case <-time.After(200 * time.Millisecond):
					fmt.Fprintln(w, "still here")
					_ = http.NewResponseController(w).Flush()
				case <-r.Context().Done():
				}
			}
		}
	}), TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}}
	go func() { _ = srv.ServeTLS(ln, "", "") }()
	return func() { _ = srv.Close() }, nil
}

// MakeNode makes a Node object, as a kubelet would, with one address and its kubelet's port.
func (t *Tenant) MakeNode(ctx context.Context, node, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if err := t.Apply(ctx, fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: %s}\n", node)); err != nil {
		return err
	}
	_, err = t.Kubectl(ctx, "patch", "node", node, "--subresource=status", "--type=merge", "-p", fmt.Sprintf(
		`{"status":{"addresses":[{"type":"Hostname","address":%q},{"type":"InternalIP","address":%q}],"daemonEndpoints":{"kubeletEndpoint":{"Port":%s}}}}`, node, host, port))
	return err
}

// BoundToken is a token of the agents' ServiceAccount that is bound to an object, such as Node or Pod, or to none ("").
func (t *Tenant) BoundToken(ctx context.Context, account, kind, name string) (string, error) {
	args := []string{"create", "token", account, "-n", "kube-system", "--audience=system:konnectivity-server", "--duration=10m"}
	if kind != "" {
		args = append(args, "--bound-object-kind="+kind, "--bound-object-name="+name)
	}
	token, err := t.Kubectl(ctx, args...)
	return strings.TrimSpace(token), err
}
