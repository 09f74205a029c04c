package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// member is a real etcd server of one member in this process, with TLS and clients' certificates demanded.
type member struct {
	cfg    *embed.Config
	etcd   *embed.Etcd
	client Cluster
}

func startMember(t *testing.T) *member {
	t.Helper()
	dir := t.TempDir()
	ca, cert, key := writePair(t, dir)
	cfg := embed.NewConfig()
	cfg.Dir, cfg.Name = filepath.Join(dir, "etcd"), "one"
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(slog.New(slog.DiscardHandler), newGuard()))
	cfg.TickMs, cfg.ElectionMs = tickMs, electionMs
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client := url.URL{Scheme: "https", Host: l.Addr().String()}
	l.Close()
	nowhere := []url.URL{{Scheme: "unix", Host: "one"}}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = nil, nowhere
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ClientTLSInfo = transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: ca, ClientCertAuth: true}
	cfg.InitialCluster = cfg.InitialClusterFromName("one")
	m := &member{cfg: cfg, client: Cluster{Endpoints: []string{client.String()}, CAFile: ca, CertFile: cert, KeyFile: key}}
	m.start(t)
	t.Cleanup(func() { m.stop() })
	return m
}

func (m *member) start(t *testing.T) {
	t.Helper()
	var err error
	if m.etcd, err = embed.StartEtcd(m.cfg); err != nil {
		t.Fatal(err)
	}
	<-m.etcd.Server.ReadyNotify()
}

func (m *member) stop() {
	if m.etcd != nil {
		m.etcd.Close()
		m.etcd = nil
	}
}

func (m *member) open(t *testing.T, set ...func(*Cluster)) *Store {
	t.Helper()
	c := m.client
	for _, f := range set {
		f(&c)
	}
	return openConfig(t, Config{Cluster: &c})
}

// writePair makes a CA and one certificate for both ends.
func writePair(t *testing.T, dir string) (caFile, certFile, keyFile string) {
	t.Helper()
	issue := func(tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, by *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caKey, key := newKey(), newKey()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "broker"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	caFile = write("ca.crt", "CERTIFICATE", issue(ca, ca, &caKey.PublicKey, caKey))
	certFile = write("tls.crt", "CERTIFICATE", issue(leaf, ca, &key.PublicKey, caKey))
	return caFile, certFile, write("tls.key", "EC PRIVATE KEY", keyDER)
}

// TestCluster: what holds for the embedded store holds for a cluster, and two brokers of one cluster see one store.
func TestCluster(t *testing.T) {
	m := startMember(t)
	one, two := m.open(t), m.open(t)
	ctx := t.Context()
	seen := make(chan Event, 10)
	watching, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- two.Watch(watching, "/mooring/", func(e Event) { seen <- e }) }()
	if err := one.Commit(ctx, Create("/mooring/a", []byte("1"))); err != nil {
		t.Fatal(err)
	}
	if e := <-seen; e.Key != "/mooring/a" || string(e.Value) != "1" || e.Deleted {
		t.Errorf("saw %+v", e)
	}
	if err := two.Commit(ctx, Create("/mooring/a", nil)); !errors.Is(err, ErrConflict) {
		t.Errorf("made again: %v", err)
	}
	if items, err := two.List(ctx, "/mooring/"); err != nil || len(items) != 1 {
		t.Errorf("%v, %v", items, err)
	}
	if _, err := two.Get(ctx, "/mooring/b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("nothing there: %v", err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestClusterPrefix: a cluster that others use too is theirs but for what lies below the prefix.
func TestClusterPrefix(t *testing.T) {
	m := startMember(t)
	whole, edge := m.open(t), m.open(t, func(c *Cluster) { c.Prefix = "/edge" })
	ctx := t.Context()
	if err := edge.Commit(ctx, Create("/mooring/a", nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := whole.Get(ctx, "/edge/mooring/a"); err != nil {
		t.Error(err)
	}
	if items, err := edge.List(ctx, "/mooring/"); err != nil || len(items) != 1 || items[0].Key != "/mooring/a" {
		t.Errorf("%v, %v", items, err)
	}
}

// TestClusterAway: a cluster that went away makes each call an error in its time, and one that comes back goes on, the
// watch without a gap.
func TestClusterAway(t *testing.T) {
	m := startMember(t)
	s := m.open(t)
	ctx := t.Context()
	seen := make(chan Event, 10)
	watching, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Watch(watching, "/mooring/", func(e Event) { seen <- e }) }()
	if err := s.Commit(ctx, Create("/mooring/a", nil)); err != nil {
		t.Fatal(err)
	}
	<-seen
	m.stop()
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := s.Get(short, "/mooring/a"); err == nil {
		t.Error("a cluster that is away answered")
	}
	select {
	case <-s.Done():
		t.Error("the store is done for, though the cluster may come back")
	default:
	}
	m.start(t)
	if err := s.Commit(ctx, Create("/mooring/b", nil)); err != nil {
		t.Fatal(err)
	}
	if e := <-seen; e.Key != "/mooring/b" {
		t.Errorf("saw %+v", e)
	}
	stop()
	<-ended
}

// TestClusterRefused: what can't work is an error at once that says what to look at.
func TestClusterRefused(t *testing.T) {
	dir := t.TempDir()
	ca, cert, key := writePair(t, dir)
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		Cluster
		want string
	}{
		{"no endpoint", Cluster{}, "no endpoint"},
		{"both kinds", Cluster{Endpoints: []string{"https://a:1", "http://b:1"}}, "all of one kind"},
		{"no CA", Cluster{Endpoints: []string{"https://a:1"}, CAFile: filepath.Join(dir, "none")}, "CA of the etcd cluster"},
		{"empty CA", Cluster{Endpoints: []string{"https://a:1"}, CAFile: empty}, "holds no certificate"},
		{"no key", Cluster{Endpoints: []string{"https://a:1"}, CAFile: ca, CertFile: cert, KeyFile: empty}, "client certificate"},
		{"other key", Cluster{Endpoints: []string{"https://a:1"}, CAFile: ca, CertFile: key, KeyFile: key}, "client certificate"},
	} {
		if _, err := Open(t.Context(), Config{Cluster: &c.Cluster}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q in it", c.what, err, c.want)
		}
	}
}

// TestClusterOpenEndsWithItsContext: nobody there is waited for, as long as the caller wants.
func TestClusterOpenEndsWithItsContext(t *testing.T) {
	m := startMember(t)
	m.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, Config{Cluster: &m.client}); err == nil {
		t.Error("opened a store that is not there")
	}
}

// TestLease: the keys of a lease go with it, or with its store; others stay.
func TestLease(t *testing.T) {
	m := startMember(t)
	for name, pair := range map[string][2]*Store{
		"cluster":  {m.open(t), m.open(t)},
		"embedded": func() [2]*Store { s := open(t, t.TempDir()); return [2]*Store{s, s} }(),
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			owner, other := pair[0], pair[1]
			if _, err := owner.Lease(ctx, time.Second); err == nil {
				t.Error("a lease of a second was granted")
			}
			l, err := owner.Lease(ctx, 2*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if err := owner.Commit(ctx, Put("/mooring/leased", nil).Leased(l), Put("/mooring/kept", nil)); err != nil {
				t.Fatal(err)
			}
			if rev(t, other, "/mooring/leased") == 0 {
				t.Error("not there")
			}
			if err := l.Close(ctx); err != nil {
				t.Fatal(err)
			}
			<-l.Lost()
			if rev(t, other, "/mooring/leased") != 0 || rev(t, other, "/mooring/kept") == 0 {
				t.Error("want the leased key gone and the other kept")
			}
			if err := owner.Commit(ctx, Put("/mooring/leased", nil).Leased(l)); err == nil {
				t.Error("a key was put under a lease that is over")
			}
		})
	}
}

// TestLeaseEndsWithItsOwner: a store that is closed keeps no lease up, and whoever watches sees the keys go.
func TestLeaseEndsWithItsOwner(t *testing.T) {
	m := startMember(t)
	c := m.client
	owner, err := Open(t.Context(), Config{Cluster: &c})
	if err != nil {
		t.Fatal(err)
	}
	l, err := owner.Lease(t.Context(), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Commit(t.Context(), Put("/mooring/leased", nil).Leased(l)); err != nil {
		t.Fatal(err)
	}
	other := m.open(t)
	gone := make(chan struct{})
	watching, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- other.Watch(watching, "/mooring/", func(e Event) {
			if e.Deleted {
				close(gone)
			}
		})
	}()
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	<-l.Lost()
	<-gone // within the lease's two seconds and the server's own slack
	stop()
	<-ended
}
