package tenant

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mooring-edge/mooring/internal/pki"
)

// MaxKubeconfig limits a kubeconfig, in bytes. An admin kubeconfig has about 6 KiB; a record of the
// store must stay below etcd's 1.5 MiB.
const MaxKubeconfig = 256 << 10

// FromKubeconfig makes a tenant of the current context of a kubeconfig. All that is wrong with it is reported
// at once. It refuses what would make the broker run a program, read a file, trust an unverified server or
// take a way of its own to it; everything in the result stands in the result itself.
func FromKubeconfig(name string, kubeconfig []byte) (Tenant, error) {
	if err := pki.ValidTenant(name); err != nil {
		return Tenant{}, err
	}
	if len(kubeconfig) > MaxKubeconfig {
		return Tenant{}, fmt.Errorf("kubeconfig has %d bytes, at most %d are taken: pass one with the tenant's context alone (kubectl config view --minify --flatten --raw)", len(kubeconfig), MaxKubeconfig)
	}
	cfg, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return Tenant{}, fmt.Errorf("not a kubeconfig: %w", err)
	}
	cluster, user, err := current(cfg)
	if err != nil {
		return Tenant{}, err
	}
	t := Tenant{Name: name, CreatedAt: time.Now().UTC().Truncate(time.Second)}
	serverErr := t.setServer(cluster)
	caErr := t.setCA(cluster)
	if err := errors.Join(serverErr, caErr, checkUser(user)); err != nil {
		return Tenant{}, err
	}
	if t.Kubeconfig, err = minimal(cluster, user); err != nil {
		return Tenant{}, err
	}
	if _, err := t.RESTConfig(); err != nil {
		return Tenant{}, err
	}
	return t, nil
}

// current finds the cluster and the user of the current context.
func current(cfg *clientcmdapi.Config) (*clientcmdapi.Cluster, *clientcmdapi.AuthInfo, error) {
	if cfg.CurrentContext == "" {
		return nil, nil, errors.New("kubeconfig has no current-context: choose one with `kubectl config use-context NAME`")
	}
	c := cfg.Contexts[cfg.CurrentContext]
	if c == nil {
		return nil, nil, fmt.Errorf("kubeconfig: current-context %q is not among its contexts", cfg.CurrentContext)
	}
	cluster, user := cfg.Clusters[c.Cluster], cfg.AuthInfos[c.AuthInfo]
	var errs []error
	if cluster == nil {
		errs = append(errs, fmt.Errorf("kubeconfig: context %q names cluster %q, which it does not hold", cfg.CurrentContext, c.Cluster))
	}
	if user == nil {
		errs = append(errs, fmt.Errorf("kubeconfig: context %q names user %q, which it does not hold", cfg.CurrentContext, c.AuthInfo))
	}
	return cluster, user, errors.Join(errs...)
}

// setServer reads where the API server is and by which name it is verified.
func (t *Tenant) setServer(c *clientcmdapi.Cluster) error {
	var errs []error
	if c.InsecureSkipTLSVerify {
		errs = append(errs, errors.New("kubeconfig: insecure-skip-tls-verify is refused: remove it and give certificate-authority-data"))
	}
	if c.ProxyURL != "" {
		errs = append(errs, fmt.Errorf("kubeconfig: proxy-url %q is refused: the broker dials the API server itself", c.ProxyURL))
	}
	u, err := url.Parse(c.Server)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("kubeconfig: server: %w", err))...)
	}
	switch {
	case u.Scheme != "https" || u.Hostname() == "":
		errs = append(errs, fmt.Errorf("kubeconfig: server %q: want https://HOST:PORT", c.Server))
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "", u.User != nil:
		errs = append(errs, fmt.Errorf("kubeconfig: server %q: want https://HOST:PORT with nothing after it: a node's own connection to the API server has no path", c.Server))
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	t.Address = net.JoinHostPort(u.Hostname(), port)
	t.ServerName = c.TLSServerName
	if t.ServerName == "" {
		t.ServerName = u.Hostname()
	}
	return errors.Join(errs...)
}

// setCA keeps the certificates of the CA bundle, and only those.
func (t *Tenant) setCA(c *clientcmdapi.Cluster) error {
	if c.CertificateAuthority != "" {
		return fileRefused("certificate-authority", c.CertificateAuthority)
	}
	if len(c.CertificateAuthorityData) == 0 {
		return errors.New("kubeconfig: no certificate-authority-data: the API server must be verified by a CA that the kubeconfig holds")
	}
	for rest := c.CertificateAuthorityData; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("kubeconfig: certificate-authority-data holds a %q block: want certificates only", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("kubeconfig: certificate-authority-data: %w", err)
		}
		t.CA = append(t.CA, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
	}
	if len(t.CA) == 0 {
		return errors.New("kubeconfig: certificate-authority-data holds no PEM certificate")
	}
	return nil
}

func fileRefused(key, path string) error {
	return fmt.Errorf("kubeconfig: %s points to the file %q, which the broker would not have: embed it (kubectl config view --minify --flatten --raw)", key, path)
}

// checkUser wants credentials that stand in the kubeconfig itself.
func checkUser(u *clientcmdapi.AuthInfo) error {
	var errs []error
	if u.Exec != nil {
		errs = append(errs, fmt.Errorf("kubeconfig: exec plugin %q is refused: the broker runs no programs of a kubeconfig; give a client certificate or a token", u.Exec.Command))
	}
	if u.AuthProvider != nil {
		errs = append(errs, fmt.Errorf("kubeconfig: auth-provider %q is refused: give a client certificate or a token", u.AuthProvider.Name))
	}
	for _, f := range []struct{ key, path string }{
		{"client-certificate", u.ClientCertificate}, {"client-key", u.ClientKey}, {"tokenFile", u.TokenFile},
	} {
		if f.path != "" {
			errs = append(errs, fileRefused(f.key, f.path))
		}
	}
	if u.Username != "" || u.Password != "" {
		errs = append(errs, errors.New("kubeconfig: username and password are refused: API servers no longer take them; give a client certificate or a token"))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if len(u.ClientCertificateData) == 0 && len(u.ClientKeyData) == 0 {
		if u.Token == "" {
			return errors.New("kubeconfig: the user has no credentials: give client-certificate-data with client-key-data, or a token")
		}
		return nil
	}
	if _, err := tls.X509KeyPair(u.ClientCertificateData, u.ClientKeyData); err != nil {
		return fmt.Errorf("kubeconfig: client-certificate-data and client-key-data: %w", err)
	}
	return nil
}

// minimal writes a kubeconfig that holds this cluster and this user and nothing else.
func minimal(c *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) ([]byte, error) {
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["tenant"] = &clientcmdapi.Cluster{
		Server: c.Server, TLSServerName: c.TLSServerName, CertificateAuthorityData: c.CertificateAuthorityData,
	}
	cfg.AuthInfos["broker"] = &clientcmdapi.AuthInfo{
		ClientCertificateData: u.ClientCertificateData, ClientKeyData: u.ClientKeyData, Token: u.Token,
		Impersonate: u.Impersonate, ImpersonateUID: u.ImpersonateUID,
		ImpersonateGroups: u.ImpersonateGroups, ImpersonateUserExtra: u.ImpersonateUserExtra,
	}
	cfg.Contexts["broker"] = &clientcmdapi.Context{Cluster: "tenant", AuthInfo: "broker"}
	cfg.CurrentContext = "broker"
	out, err := clientcmd.Write(*cfg)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: write it minified: %w", err)
	}
	return out, nil
}
