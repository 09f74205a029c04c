package join

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	certsv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/pkg/join/jointest"
)

// TestPairsThatDoNotServe replaces the kubelet's certificate after a join: it is asked for again just
// where it has to be.
func TestPairsThatDoNotServe(t *testing.T) {
	stranger := jointest.NewAuthority(t, "another control plane")
	for name, c := range map[string]struct {
		spoil func(t *testing.T, s *site)
		again bool
	}{
		"untouched": {func(*testing.T, *site) {}, false},
		"renewed by the kubelet": {func(t *testing.T, s *site) {
			s.savePair(t, s.api.Authority, jointest.Node, time.Now().Add(30*time.Minute))
		}, false},
		"missing": {func(t *testing.T, s *site) {
			if err := os.Remove(New(s.cfg).paths.ClientCertificate()); err != nil {
				t.Fatal(err)
			}
		}, true},
		"torn":  {func(t *testing.T, s *site) { damage(t, New(s.cfg).paths.ClientCertificate(), damages["half"]) }, true},
		"empty": {func(t *testing.T, s *site) { damage(t, New(s.cfg).paths.ClientCertificate(), damages["empty"]) }, true},
		"expired": {func(t *testing.T, s *site) {
			s.savePair(t, s.api.Authority, jointest.Node, time.Now().Add(-time.Minute))
		}, true},
		"another node's":  {func(t *testing.T, s *site) { s.savePair(t, s.api.Authority, "edge-2", time.Now().Add(time.Hour)) }, true},
		"another cluster": {func(t *testing.T, s *site) { s.savePair(t, stranger, jointest.Node, time.Now().Add(time.Hour)) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			id := s.mustAll()
			c.spoil(t, s)
			s.mustAll()
			want := 1
			if c.again {
				want = 2
			}
			if n := s.api.Requests(); n != want {
				t.Errorf("%d certificate requests in all, want %d", n, want)
			}
			if _, err := New(s.cfg).Ready(id); err != nil {
				t.Errorf("not ready in the end: %v", err)
			}
		})
	}
}

func (s *site) savePair(t *testing.T, ca jointest.Authority, node string, notAfter time.Time) {
	t.Helper()
	cert, key := ca.KubeletPair(t, node, notAfter)
	// A later name than the first pair's: names have the second, and the kubelet makes new files.
	if err := New(s.cfg).paths.SavePair(cert, key, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
}

func TestLostRecordNeedsNoNewCertificate(t *testing.T) {
	for name, how := range damages {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.mustAll()
			damage(t, New(s.cfg).recordFile(), how)
			s.mustAll()
			if _, joins, _ := s.broker.Counts(); joins != 2 || s.api.Requests() != 1 {
				t.Errorf("%d joins and %d certificate requests, want 2 and 1", joins, s.api.Requests())
			}
		})
	}
}

func TestReadyNeedsNobody(t *testing.T) {
	s := newSite(t)
	s.mustAll()
	s.cfg.APIAddress = "127.0.0.1:1"
	s.cfg.Endpoint = "127.0.0.1:1"
	s.cfg.Bundle = func() (Bundle, error) { return Bundle{}, errors.New("gone") }
	s.mustAll()
}

func TestTornPendingKeyIsReplaced(t *testing.T) {
	s := newSite(t)
	if _, err := s.all(stopAt(s.cfg, pendingWritten)); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	damage(t, New(s.cfg).pendingFile(), damages["half"])
	s.mustAll()
}

func TestDeniedRequestIsMadeAnewWithAnotherKey(t *testing.T) {
	for _, typ := range []certsv1.RequestConditionType{certsv1.CertificateDenied, certsv1.CertificateFailed} {
		t.Run(string(typ), func(t *testing.T) {
			s := newSite(t)
			first := true
			s.api.Decide(func(csr *certsv1.CertificateSigningRequest) {
				if first {
					csr.Status.Conditions = []certsv1.CertificateSigningRequestCondition{{Type: typ, Status: corev1.ConditionTrue, Reason: "NotToday", Message: "ask tomorrow"}}
				}
				first = false
			})
			s.mustAll()
			if n := s.api.Requests(); n != 2 {
				t.Errorf("%d requests, want 2", n)
			}
			if got := s.errs(); !strings.Contains(got, "NotToday ask tomorrow") {
				t.Errorf("reported %q", got)
			}
		})
	}
}

func TestDeadBootstrapTokenIsReplaced(t *testing.T) {
	s := newSite(t)
	s.api.RejectNext(1)
	s.mustAll()
	if _, joins, _ := s.broker.Counts(); joins != 2 {
		t.Errorf("%d joins, want 2", joins)
	}
}

func TestBootstrapTokenIsUsedWhileItLives(t *testing.T) {
	s := newSite(t)
	s.broker.FailNext() // none
	at := s.cfg.APIAddress
	s.cfg.APIAddress = "127.0.0.1:1" // no way to the API server for now
	j := New(s.cfg)
	id, err := j.Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := j.bootstrapOnce(t.Context(), id); err == nil || !strings.Contains(err.Error(), "tunnel down, or API server away") {
			t.Fatalf("err %v", err)
		}
	}
	j.cfg.APIAddress = at
	if _, err := j.bootstrapOnce(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, joins, _ := s.broker.Counts(); joins != 1 {
		t.Errorf("%d bootstrap tokens were minted for one join", joins)
	}
}

func TestUnavailableControlPlaneIsWaitedFor(t *testing.T) {
	s := newSite(t)
	id, err := s.enrol(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.broker.FailNext(fails(enrollapi.CodeUnavailable), fails(enrollapi.CodeUnavailable))
	if _, err := New(s.cfg).Bootstrap(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got := s.errs(); strings.Count(got, "of unavailable") != 2 {
		t.Errorf("reported %q", got)
	}
}

func TestConfigurationThatCanNotBeRendered(t *testing.T) {
	s := newSite(t)
	s.broker.Configuration = `{"maxPods":"many"}`
	s.cfg.StopOnRefusal = true
	_, err := s.all(s.cfg)
	if err == nil || !strings.Contains(err.Error(), "maxPods") {
		t.Errorf("err %v", err)
	}
	if s.api.Requests() != 0 {
		t.Error("a certificate was asked for, for a kubelet that can't be configured")
	}
}
