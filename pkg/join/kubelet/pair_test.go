package kubelet

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/certificate"

	"github.com/mooring-edge/mooring/pkg/join/jointest"
)

// TestKubeletsOwnManagerGoesOn: the pair is in the form in which the kubelet's certificate manager finds,
// uses and replaces it.
func TestKubeletsOwnManagerGoesOn(t *testing.T) {
	p := PathsIn(t.TempDir(), filepath.Join(t.TempDir(), "kubelet"))
	ca := jointest.NewAuthority(t, "kubernetes")
	cert, key := ca.KubeletPair(t, "edge-1", time.Now().Add(time.Hour))
	if err := p.SavePair(cert, key, time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}

	store, err := certificate.NewFileStore("kubelet-client", p.PKI, p.PKI, "", "")
	if err != nil {
		t.Fatal(err)
	}
	current, err := store.Current()
	if err != nil {
		t.Fatalf("the kubelet does not find the pair: %v", err)
	}
	if got := current.Leaf.Subject.CommonName; got != "system:node:edge-1" {
		t.Errorf("the kubelet finds a certificate for %q", got)
	}
	if store.CurrentPath() != p.ClientCertificate() {
		t.Errorf("the kubelet looks at %s, the kubeconfig says %s", store.CurrentPath(), p.ClientCertificate())
	}

	// It rotates, and what it wrote serves here in turn.
	rotated, rotatedKey := ca.KubeletPair(t, "edge-1", time.Now().Add(90*time.Minute))
	if _, err := store.Update(rotated, rotatedKey); err != nil {
		t.Fatalf("the kubelet can't rotate: %v", err)
	}
	pair, err := p.LoadPair()
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Usable("edge-1", time.Now().Add(80*time.Minute)); err != nil {
		t.Errorf("after rotation: %v", err)
	}
	// And the other way about.
	if err := p.SavePair(cert, key, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if pair, err = p.LoadPair(); err != nil || pair.Usable("edge-1", time.Now().Add(80*time.Minute)) == nil {
		t.Errorf("the pair saved last is not the current one (%v)", err)
	}
}

func TestPlainFileInTheLinksPlaceIsKept(t *testing.T) {
	p := PathsIn(t.TempDir(), t.TempDir())
	if err := os.MkdirAll(p.PKI, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.ClientCertificate(), []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.LoadPair(); err == nil {
		t.Error("a file without a pair was taken for one")
	}
	cert, key := jointest.NewAuthority(t, "kubernetes").KubeletPair(t, "edge-1", time.Now().Add(time.Hour))
	if err := p.SavePair(cert, key, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.LoadPair(); err != nil {
		t.Error(err)
	}
	if kept, err := os.ReadFile(p.ClientCertificate() + ".saved"); err != nil || string(kept) != "somebody's" {
		t.Errorf("what was there before: %q, %v", kept, err)
	}
}

func TestSavePairRefusesWhatDoesNotFit(t *testing.T) {
	p := PathsIn(t.TempDir(), t.TempDir())
	ca := jointest.NewAuthority(t, "kubernetes")
	cert, _ := ca.KubeletPair(t, "edge-1", time.Now().Add(time.Hour))
	_, otherKey := ca.KubeletPair(t, "edge-1", time.Now().Add(time.Hour))
	if err := p.SavePair(cert, otherKey, time.Now()); err == nil {
		t.Error("a certificate was kept with a key that is not its own")
	}
}

func TestUsable(t *testing.T) {
	now := time.Now()
	ca, other := jointest.NewAuthority(t, "kubernetes"), jointest.NewAuthority(t, "other")
	for name, c := range map[string]struct {
		node   string
		at     time.Time
		usable bool
	}{
		"good":         {"edge-1", now, true},
		"another node": {"edge-2", now, false},
		"expired":      {"edge-1", now.Add(61 * time.Minute), false},
		// A clock that is behind is no reason for a new certificate.
		"not valid yet": {"edge-1", now.Add(-1000 * time.Hour), true},
	} {
		t.Run(name, func(t *testing.T) {
			p := PathsIn(t.TempDir(), t.TempDir())
			cert, key := ca.KubeletPair(t, "edge-1", now.Add(time.Hour))
			if err := p.SavePair(cert, key, now); err != nil {
				t.Fatal(err)
			}
			pair, err := p.LoadPair()
			if err != nil {
				t.Fatal(err)
			}
			if err := pair.Usable(c.node, c.at); (err == nil) != c.usable {
				t.Errorf("usable: %v, want %t", err, c.usable)
			}
			if !pair.IssuedBy(ca.PEM) || pair.IssuedBy(other.PEM) || pair.IssuedBy(nil) {
				t.Error("the issuer is not recognized")
			}
		})
	}
}

// TestKubeconfig reads it as the kubelet does.
func TestKubeconfig(t *testing.T) {
	s := settings()
	s.Paths = PathsIn(t.TempDir(), t.TempDir())
	ca := jointest.NewAuthority(t, "kubernetes")
	s.APIServerCA = ca.PEM
	cert, key := ca.KubeletPair(t, s.Node, time.Now().Add(time.Hour))
	if err := s.Paths.SavePair(cert, key, time.Now()); err != nil {
		t.Fatal(err)
	}
	out, err := kubeconfig(s)
	if err != nil {
		t.Fatal(err)
	}
	c, err := clientcmd.RESTConfigFromKubeConfig(out)
	if err != nil {
		t.Fatal(err)
	}
	if c.Host != "https://127.0.0.1:6443" || c.ServerName != "acme.tenants.test" || string(c.CAData) != string(s.APIServerCA) ||
		c.CertFile != s.Paths.ClientCertificate() || c.KeyFile != c.CertFile || c.Insecure || c.BearerToken != "" {
		t.Errorf("%+v", c)
	}
}
