package join

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/join/jointest"
)

func fails(code enrollapi.ErrorCode) *enrollapi.Error {
	return &enrollapi.Error{Code: code, Message: "because \x1b[31mof " + string(code)}
}

func (s *site) enrol(cfg Config) (*Identity, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 60*time.Second)
	defer cancel()
	return New(cfg).Enrol(ctx)
}

func TestEnrolRetries(t *testing.T) {
	for _, code := range []enrollapi.ErrorCode{
		enrollapi.CodeUnavailable, enrollapi.CodeOverloaded, enrollapi.CodeInternal, "aCodeOfTheFuture",
		// These need a hand, which may come: they are tried again too, only slowly.
		enrollapi.CodeRefused, enrollapi.CodeNameTaken, enrollapi.CodeBadRequest,
	} {
		t.Run(string(code), func(t *testing.T) {
			s := newSite(t)
			s.broker.FailNext(fails(code), fails(code))
			if _, err := s.enrol(s.cfg); err != nil {
				t.Fatal(err)
			}
			if n, _, _ := s.broker.Counts(); n != 3 {
				t.Errorf("asked %d times, want 3", n)
			}
			if got := s.errs(); strings.Count(got, "of "+string(code)) != 2 || strings.Contains(got, "\x1b") {
				t.Errorf("reported %q", got)
			}
		})
	}
}

func TestStopOnRefusal(t *testing.T) {
	for code, stops := range map[enrollapi.ErrorCode]bool{
		enrollapi.CodeRefused: true, enrollapi.CodeNameTaken: true, enrollapi.CodeBadRequest: true,
		enrollapi.CodeUnavailable: false, enrollapi.CodeOverloaded: false, enrollapi.CodeInternal: false,
	} {
		t.Run(string(code), func(t *testing.T) {
			s := newSite(t)
			s.broker.FailNext(fails(code))
			reg := prometheus.NewRegistry()
			s.cfg.Metrics = NewMetrics(reg)
			s.cfg.StopOnRefusal = true
			_, err := s.enrol(s.cfg)
			var refusal *enrollapi.Error
			if stops != (errors.As(err, &refusal) && refusal.Code == code) {
				t.Errorf("err %v, want a stop: %t", err, stops)
			}
			if got := testutil.ToFloat64(s.cfg.Metrics.attempts.WithLabelValues("enrol", string(code))); got != 1 {
				t.Errorf("%s counted %v times, want once", code, got)
			}
			// The key survives a refusal: it is what a retry is recognized by.
			s.key()
		})
	}
}

func TestRefusalsAreRetriedSlowly(t *testing.T) {
	s := newSite(t)
	s.broker.FailNext(fails(enrollapi.CodeRefused), fails(enrollapi.CodeUnavailable))
	s.cfg.RefusedRetry = 300 * time.Millisecond
	if _, err := s.enrol(s.cfg); err != nil {
		t.Fatal(err)
	}
	var waits []time.Duration
	for _, p := range s.progress {
		if p.Err != nil {
			waits = append(waits, p.RetryIn)
		}
	}
	if len(waits) != 2 || waits[0] < s.cfg.RefusedRetry*4/5 || waits[0] > s.cfg.RefusedRetry*6/5 || waits[1] > s.cfg.BackoffMax {
		t.Errorf("waited %v, want about %s after the refusal and at most %s after the other", waits, s.cfg.RefusedRetry, s.cfg.BackoffMax)
	}
}

func TestWrongPinNothingSent(t *testing.T) {
	s := newSite(t)
	other, err := pki.NewCA("other.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	bundle := s.cfg.Bundle
	s.cfg.Bundle = func() (Bundle, error) {
		b, err := bundle()
		b.CACertHashes = []string{other.Hash()}
		return b, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := New(s.cfg).Enrol(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err %v", err)
	}
	if n, _, _ := s.broker.Counts(); n != 0 {
		t.Errorf("%d requests reached a broker that is not the pinned one", n)
	}
	if got := s.errs(); !strings.Contains(got, "pinned") {
		t.Errorf("reported %q", got)
	}
}

func TestBadAnswersAreNotKept(t *testing.T) {
	otherCA, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey, err := pki.MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	issue := func(ca *pki.CA, tenant, node string) string {
		csrPEM, _ := pki.MakeCSR(otherKey, "x")
		csr, err := pki.ParseCSR(csrPEM, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ca.IssueNode(csr, pki.Identity{TrustDomain: "mooring.test", Role: pki.RoleNode, Tenant: tenant, Name: node}, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return string(chain)
	}
	for name, tamper := range map[string]func(*enrollapi.EnrolResponse){
		"empty":            func(r *enrollapi.EnrolResponse) { *r = enrollapi.EnrolResponse{} },
		"no certificate":   func(r *enrollapi.EnrolResponse) { r.Certificate = "" },
		"another's key":    func(r *enrollapi.EnrolResponse) { r.Certificate = issue(otherCA, "acme", "edge-1") },
		"another name":     func(r *enrollapi.EnrolResponse) { r.Node = "edge-2" },
		"another tenant":   func(r *enrollapi.EnrolResponse) { r.Tenant = "globex" },
		"no CA":            func(r *enrollapi.EnrolResponse) { r.CABundle = "" },
		"foreign CA":       func(r *enrollapi.EnrolResponse) { r.CABundle = string(otherCA.CertPEM()) },
		"other trust zone": func(r *enrollapi.EnrolResponse) { r.TrustDomain = "elsewhere.test" },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.broker.Tamper(tamper)
			j := New(s.cfg)
			if _, err := j.enrolOnce(t.Context()); err == nil {
				t.Error("the answer was taken")
			}
			if _, err := j.LoadIdentity(); !errors.Is(err, ErrNotEnrolled) {
				t.Errorf("identity on disk: %v", err)
			}
			s.broker.Tamper(nil)
			s.mustAll() // and nothing of it stands in the way of a good one
		})
	}
}

func TestStateDirNotWritable(t *testing.T) {
	s := newSite(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.cfg.StateDir = filepath.Join(file, "state")
	s.cfg.StopOnRefusal = true
	_, err := s.enrol(s.cfg)
	if err == nil || !strings.Contains(err.Error(), "can't be written to") || !strings.Contains(err.Error(), "stateDir") {
		t.Errorf("err %v", err)
	}
	if n, _, _ := s.broker.Counts(); n != 0 {
		t.Error("a token was sent that nothing can be kept of")
	}
}

func TestNoBundleYet(t *testing.T) {
	s := newSite(t)
	bundle, calls := s.cfg.Bundle, 0
	s.cfg.Bundle = func() (Bundle, error) {
		if calls++; calls < 3 {
			return Bundle{}, errors.New("no join bundle")
		}
		return bundle()
	}
	if _, err := s.enrol(s.cfg); err != nil {
		t.Fatal(err)
	}
	if got := s.errs(); strings.Count(got, "no join bundle") != 2 {
		t.Errorf("reported %q", got)
	}
}

// FuzzRefusal: whatever a server answers, the error can go into a log line and its code is one word.
func FuzzRefusal(f *testing.F) {
	f.Add(403, []byte(`{"code":"refused","message":"no"}`))
	f.Add(500, []byte(`oops`))
	f.Add(409, []byte(`{"code":"nameTaken","message":"`+strings.Repeat("é\u0085", 2000)+`"}`))
	f.Fuzz(func(t *testing.T, status int, answer []byte) {
		err := refusal("b:1", status, answer)
		if err == nil {
			t.Fatal("no error")
		}
		if s := err.Error(); len(s) > 1100 || strings.ContainsAny(s, "\n\r\x1b\x00") {
			t.Fatalf("%d bytes: %q", len(s), s)
		}
	})
}

// FuzzIdentity: whatever is in the file, it is an identity of the key's or none.
func FuzzIdentity(f *testing.F) {
	ca, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	_, key, err := pki.MakeKeyPEM()
	if err != nil {
		f.Fatal(err)
	}
	csrPEM, err := pki.MakeCSR(key, "x")
	if err != nil {
		f.Fatal(err)
	}
	csr, err := pki.ParseCSR(csrPEM, 1<<16)
	if err != nil {
		f.Fatal(err)
	}
	chain, err := ca.IssueNode(csr, pki.Identity{TrustDomain: "mooring.test", Role: pki.RoleNode, Tenant: jointest.Tenant, Name: jointest.Node}, time.Now(), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(Identity{Tenant: jointest.Tenant, Node: jointest.Node, TrustDomain: "mooring.test", Certificate: string(chain), CABundle: string(ca.CertPEM())})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		id := &Identity{}
		if json.Unmarshal(data, id) != nil || id.complete(key) != nil {
			return
		}
		if id.Fingerprint() != pki.SPKIHash(&key.PublicKey) || id.NotAfter().IsZero() {
			t.Fatalf("taken: %+v", id)
		}
		if got, err := pki.ParseIdentity(id.leaf); err != nil || got != id.SPIFFE() {
			t.Fatalf("taken as %v: %v, %v", id.SPIFFE(), got, err)
		}
	})
}
