package egressproxy

import (
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

func serialOf(t *testing.T, s *tunnel.Session) string {
	t.Helper()
	certs := s.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		t.Fatal("no certificate")
	}
	return certs[0].SerialNumber.String()
}

// TestNewCertificateIsTakenWithoutABreak: what is put in place of the files has the session replaced, and what runs on it goes on.
// Files that don't fit each other, as they are while they are being written, change nothing. Mechanism: watchFiles and
// Client.Renew. Seen failing without the call of Renew (no second session).
func TestNewCertificateIsTakenWithoutABreak(t *testing.T) {
	f := prepare(t)
	f.run(t)
	old := f.session(t)
	c, br, _ := f.connect(t, "edge-1:10250")
	node := f.node(t)

	cert, err := os.ReadFile(filepath.Join(f.dir, fileCert))
	if err != nil {
		t.Fatal(err)
	}
	other, key, err := f.ca.IssueAPIServer("acme", time.Now(), 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, fileKey), key, 0o600); err != nil { // the key first, as `broker egress issue` does
		t.Fatal(err)
	}
	f.logs.await(t, "condition=Certificate status=False reason=Unreadable")
	if h, _, r := f.connect(t, "echo:1"); r.StatusCode != 200 {
		t.Errorf("a dial with a torn pair on disk: %s", r.Status)
	} else {
		h.Close()
	}
	if err := os.WriteFile(filepath.Join(f.dir, fileCert), other, 0o600); err != nil {
		t.Fatal(err)
	}
	next := f.session(t)
	if serialOf(t, next) == serialOf(t, old) || string(cert) == string(other) {
		t.Error("the new session has the old certificate")
	}
	f.logs.await(t, "moving to another session")
	within(t, old.Draining(), "the old session to be drained")
	if _, err := c.Write([]byte("goes on")); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	wantEnd(t, node, "goes on")
	node.Close()
	if _, err := br.ReadByte(); err == nil {
		t.Error("something came")
	}
	within(t, old.Done(), "the old session to end")
	if strings.Contains(f.logs.String(), "the tunnel is down") {
		t.Error("the tunnel was down")
	}
}

// TestSecretMount: a Secret's mount changes by one link that is swapped.
func TestSecretMount(t *testing.T) {
	f := prepare(t)
	mount := filepath.Join(t.TempDir(), "mount")
	f.write(t, filepath.Join(mount, "..v1"), "acme", time.Hour)
	link := func(to string) {
		if err := os.Symlink(to, filepath.Join(mount, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(mount, "..data_tmp"), filepath.Join(mount, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	link("..v1")
	for _, name := range []string{fileCert, fileKey, fileCA, fileBroker} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(mount, name)); err != nil {
			t.Fatal(err)
		}
	}
	f.run(t, func(c *Config) { c.Dir = mount })
	old := f.session(t)
	f.write(t, filepath.Join(mount, "..v2"), "acme", time.Hour)
	link("..v2")
	if err := os.RemoveAll(filepath.Join(mount, "..v1")); err != nil {
		t.Fatal(err)
	}
	if next := f.session(t); serialOf(t, next) == serialOf(t, old) {
		t.Error("the new session has the old certificate")
	}
}

// TestBrokerMoves: the broker's address is one of the files.
func TestBrokerMoves(t *testing.T) {
	f := prepare(t)
	f.run(t)
	old := f.session(t)
	was := f.broker
	f.broker = &testBroker{f: f, sessions: make(chan *tunnel.Session, 16)}
	f.broker.start(t, "127.0.0.1:0")
	if err := os.WriteFile(filepath.Join(f.dir, fileBroker), []byte(f.broker.addr), 0o600); err != nil {
		t.Fatal(err)
	}
	f.session(t)
	within(t, old.Done(), "the old session to end")
	was.stop()
	if c, br, r := f.connect(t, "echo:1"); r.StatusCode != 200 {
		t.Errorf("a dial through the new one: %s", r.Status)
	} else {
		c.Write([]byte("x"))
		if _, err := br.ReadByte(); err != nil {
			t.Error(err)
		}
	}
}

// TestFilesThatAreNotThere: a sidecar that starts before its files says so, answers dials with that, and begins when they come.
func TestFilesThatAreNotThere(t *testing.T) {
	f := prepare(t)
	if err := os.Remove(filepath.Join(f.dir, fileKey)); err != nil {
		t.Fatal(err)
	}
	f.run(t, func(c *Config) { c.sessionWait = 100 * time.Millisecond })
	f.logs.await(t, "condition=Certificate status=False reason=Unreadable")
	_, _, resp := f.connect(t, "echo:1")
	if resp.StatusCode != 503 || !strings.Contains(resp.Status, "no certificate to show the broker") || !strings.Contains(resp.Status, "broker egress issue") {
		t.Errorf("answer %q", resp.Status)
	}
	rec := httptest.NewRecorder()
	f.proxy.health.Handler(f.proxy.registry).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if rec.Code != http.StatusServiceUnavailable || !strings.Contains(rec.Body.String(), fileKey) {
		t.Errorf("readyz: %d %s", rec.Code, rec.Body)
	}
	f.issue(t, "acme", time.Hour)
	f.session(t)
	f.logs.await(t, "condition=Tunnel status=True")
}

// TestWrongFiles: each is an error that names the file.
func TestWrongFiles(t *testing.T) {
	f := prepare(t)
	good, err := readIdentity(f.dir)
	if err != nil || good.id.Tenant != "acme" || good.broker != f.broker.addr {
		t.Fatalf("%+v, %v", good, err)
	}
	for name, c := range map[string]struct{ data, want string }{
		fileCert:   {"nonsense", fileCert},
		fileKey:    {"nonsense", fileKey},
		fileCA:     {"nonsense", "ca.crt in " + f.dir + " holds no certificate"},
		fileBroker: {"edge.example\n", "want one line, host:port"},
	} {
		was, err := os.ReadFile(filepath.Join(f.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, data := range []string{c.data, "", strings.Repeat("x", maxFile+1)} {
			if err := os.WriteFile(filepath.Join(f.dir, name), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := readIdentity(f.dir); err == nil || data == c.data && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s with %.20q: %v", name, data, err)
			}
		}
		if err := os.WriteFile(filepath.Join(f.dir, name), was, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOtherBrokersAreRefused: one of another CA, one of another trust domain, and who is no broker.
func TestOtherBrokersAreRefused(t *testing.T) {
	f := prepare(t)
	f.run(t, func(c *Config) { c.lookInterval = time.Hour })
	verify := f.proxy.tls().VerifyConnection
	state := func(ca *pki.CA, broker bool) error {
		pair, err := ca.IssueBroker("b", nil, nil, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if !broker {
			pemCert, pemKey, err := ca.IssueAPIServer("acme", time.Now(), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if pair, err = tlsPair(pemCert, pemKey); err != nil {
				t.Fatal(err)
			}
		}
		cs := f.session0()
		cs.PeerCertificates = nil
		for _, der := range pair.Certificate {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			cs.PeerCertificates = append(cs.PeerCertificates, cert)
		}
		return verify(cs)
	}
	stranger, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := state(f.ca, true); err != nil {
		t.Errorf("the broker: %v", err)
	}
	if err := state(stranger, true); err == nil {
		t.Error("a broker of another CA is trusted")
	}
	if err := state(f.ca, false); err == nil {
		t.Error("an API server is taken for a broker")
	}
}
