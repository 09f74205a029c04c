package harness

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// FrontName is the DNS name by which the tenant's API server is reached through the broker's port.
func (t *Tenant) FrontName() string { return t.Name + "." + BrokerName }

// KubectlThroughFront runs kubectl with the tenant's kubeconfig against https://NAME:PORT of the broker, on a machine whose resolver knows
// the names of all tenants.
func (t *Tenant) KubectlThroughFront(ctx context.Context, name string, args ...string) (string, error) {
	p := t.platform
	hosts := filepath.Join(p.env.Dir(), "home", "front-hosts")
	line := "127.0.0.1 localhost\n" + BrokerAddress
	for _, tenant := range p.tenants {
		line += " " + tenant.FrontName()
	}
	if err := os.WriteFile(hosts, []byte(line+"\n"), 0o644); err != nil {
		return "", err
	}
	const script = `mount --bind "$0" /etc/hosts && exec "$@"`
	argv := append([]string{"unshare", "--mount", "--", "sh", "-c", script, hosts, p.env.Tool("kubectl"), "--kubeconfig", t.Kubeconfig(),
		"--cache-dir", filepath.Join(p.env.Dir(), "home", "kube-cache"), "--server", "https://" + net.JoinHostPort(name, BrokerPort)}, args...)
	cmd := p.env.command(ctx, p.Net.Argv(argv...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: kubectl at %s %s: %w: %s", t.Name, name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), err
}

// FrontCertificate is what a client is shown that comes to the broker's port by the tenant's name, verified by the tenant's CA for that name.
func (t *Tenant) FrontCertificate(ctx context.Context) (*x509.Certificate, error) {
	roots, err := certPool(t.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	raw, err := t.platform.Net.Dial(ctx, "tcp", net.JoinHostPort(BrokerAddress, BrokerPort))
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: t.FrontName()})
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS with the broker's port as %s: %w", t.FrontName(), err)
	}
	return c.ConnectionState().PeerCertificates[0], nil
}
