package tenant

import (
	"bytes"
	"encoding/pem"
	"net"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mooring-edge/mooring/internal/pki"
)

// adminConfig is a kubeconfig such as kubeadm writes; edit may spoil it.
func adminConfig(t testing.TB, edit func(cfg *clientcmdapi.Config, c *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo)) []byte {
	t.Helper()
	ca, err := pki.NewCA("example.org", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.IssueAPIServer("acme", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c := &clientcmdapi.Cluster{Server: "https://10.1.2.3:6443", CertificateAuthorityData: ca.CertPEM()}
	u := &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["k"], cfg.AuthInfos["admin"] = c, u
	cfg.Contexts["admin@k"] = &clientcmdapi.Context{Cluster: "k", AuthInfo: "admin", Namespace: "x"}
	cfg.CurrentContext = "admin@k"
	if edit != nil {
		edit(cfg, c, u)
	}
	out, err := clientcmd.Write(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFromKubeconfig(t *testing.T) {
	for name, tc := range map[string]struct {
		edit                func(*clientcmdapi.Config, *clientcmdapi.Cluster, *clientcmdapi.AuthInfo)
		address, serverName string
	}{
		"as kubeadm writes it": {nil, "10.1.2.3:6443", "10.1.2.3"},
		"no port": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.Server = "https://acme.edge.example/"
		}, "acme.edge.example:443", "acme.edge.example"},
		"server name of its own": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.TLSServerName = "kubernetes"
		}, "10.1.2.3:6443", "kubernetes"},
		"IPv6": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.Server = "https://[fd00::1]:6443"
		}, "[fd00::1]:6443", "fd00::1"},
		"token": {func(_ *clientcmdapi.Config, _ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			*u = clientcmdapi.AuthInfo{Token: "t"}
		}, "10.1.2.3:6443", "10.1.2.3"},
		"others beside the current context": {func(cfg *clientcmdapi.Config, _ *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			cfg.AuthInfos["other"] = &clientcmdapi.AuthInfo{Exec: &clientcmdapi.ExecConfig{Command: "evil", APIVersion: "client.authentication.k8s.io/v1"}}
			cfg.Clusters["other"] = &clientcmdapi.Cluster{Server: "https://other", InsecureSkipTLSVerify: true}
		}, "10.1.2.3:6443", "10.1.2.3"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FromKubeconfig("acme", adminConfig(t, tc.edit))
			if err != nil {
				t.Fatal(err)
			}
			if got.Address != tc.address || got.ServerName != tc.serverName {
				t.Errorf("address %q, server name %q; want %q, %q", got.Address, got.ServerName, tc.address, tc.serverName)
			}
			if err := got.validate(); err != nil {
				t.Error(err)
			}
			if bytes.Contains(got.Kubeconfig, []byte("evil")) || bytes.Contains(got.Kubeconfig, []byte("insecure")) {
				t.Errorf("kept what is not of the current context:\n%s", got.Kubeconfig)
			}
			rc, err := got.RESTConfig()
			if err != nil {
				t.Fatal(err)
			}
			if rc.Insecure || len(rc.CAData) == 0 {
				t.Error("the API server would not be verified")
			}
		})
	}
}

func TestFromKubeconfigRefuses(t *testing.T) {
	type edit = func(cfg *clientcmdapi.Config, c *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo)
	for name, tc := range map[string]struct {
		edit edit
		want []string // all in the one error
	}{
		"no current context": {func(cfg *clientcmdapi.Config, _ *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			cfg.CurrentContext = ""
		},
			[]string{"no current-context"}},
		"unknown current context": {func(cfg *clientcmdapi.Config, _ *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			cfg.CurrentContext = "gone"
		}, []string{`"gone"`}},
		"dangling cluster and user": {func(cfg *clientcmdapi.Config, _ *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			delete(cfg.Clusters, "k")
			delete(cfg.AuthInfos, "admin")
		}, []string{`cluster "k"`, `user "admin"`}},
		"exec": {func(_ *clientcmdapi.Config, _ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			u.Exec = &clientcmdapi.ExecConfig{Command: "aws", APIVersion: "client.authentication.k8s.io/v1"}
		}, []string{`exec plugin "aws"`}},
		"auth provider": {func(_ *clientcmdapi.Config, _ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			u.AuthProvider = &clientcmdapi.AuthProviderConfig{Name: "oidc"}
		}, []string{`auth-provider "oidc"`}},
		"every file": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			c.CertificateAuthority = "/ca.crt"
			u.ClientCertificate, u.ClientKey, u.TokenFile = "/c.crt", "/c.key", "/token"
		}, []string{"/ca.crt", "/c.crt", "/c.key", "/token", "--flatten"}},
		"insecure": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.InsecureSkipTLSVerify, c.CertificateAuthorityData = true, nil
		}, []string{"insecure-skip-tls-verify", "certificate-authority-data"}},
		"no CA": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.CertificateAuthorityData = nil
		}, []string{"no certificate-authority-data"}},
		"CA is no certificate": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.CertificateAuthorityData = []byte("hello")
		}, []string{"no PEM certificate"}},
		"CA is a key": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			c.CertificateAuthorityData = u.ClientKeyData
		}, []string{"certificates only"}},
		"CA is garbage": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.CertificateAuthorityData = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
		}, []string{"certificate-authority-data"}},
		"http": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.Server = "http://10.1.2.3:8080"
		},
			[]string{"want https://"}},
		"path": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.Server = "https://rancher.example/k8s/clusters/c-1"
		}, []string{"no path"}},
		"proxy": {func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.ProxyURL = "http://p:1"
		},
			[]string{"proxy-url"}},
		"password": {func(_ *clientcmdapi.Config, _ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			u.Username, u.Password = "a", "b"
		}, []string{"username and password"}},
		"no credentials": {func(_ *clientcmdapi.Config, _ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			*u = clientcmdapi.AuthInfo{}
		},
			[]string{"no credentials"}},
		"certificate without key": {func(_ *clientcmdapi.Config, _ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.ClientKeyData = nil },
			[]string{"client-key-data"}},
		"oversize": {func(cfg *clientcmdapi.Config, _ *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			cfg.Contexts["big"] = &clientcmdapi.Context{Namespace: strings.Repeat("x", MaxKubeconfig)}
		}, []string{"at most", "--minify"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FromKubeconfig("acme", adminConfig(t, tc.edit))
			if err == nil {
				t.Fatalf("took it: %+v", got)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error does not say %q:\n%v", w, err)
				}
			}
		})
	}
	t.Run("not a kubeconfig", func(t *testing.T) {
		for _, in := range []string{"", "\x00", "[]", "kind: Pod\napiVersion: v1\n", "a: b: c"} {
			if got, err := FromKubeconfig("acme", []byte(in)); err == nil {
				t.Errorf("took %q: %+v", in, got)
			}
		}
	})
	t.Run("bad name", func(t *testing.T) {
		if _, err := FromKubeconfig("Acme.x", adminConfig(t, nil)); err == nil {
			t.Error("took it")
		}
	})
}

func FuzzFromKubeconfig(f *testing.F) {
	f.Add(adminConfig(f, nil))
	f.Add([]byte("apiVersion: v1\nkind: Config\ncurrent-context: a\n"))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := FromKubeconfig("acme", in)
		if err != nil {
			return
		}
		if _, _, err := net.SplitHostPort(got.Address); err != nil || got.ServerName == "" || len(got.CA) == 0 {
			t.Fatalf("took it and made %+v", got)
		}
		cfg, err := clientcmd.Load(got.Kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range cfg.AuthInfos {
			if u.Exec != nil || u.AuthProvider != nil || u.ClientCertificate+u.ClientKey+u.TokenFile != "" {
				t.Fatalf("kept %+v", u)
			}
		}
		for _, c := range cfg.Clusters {
			if c.InsecureSkipTLSVerify || c.CertificateAuthority != "" || c.ProxyURL != "" {
				t.Fatalf("kept %+v", c)
			}
		}
	})
}
