package enroll

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// The test binary, run again with childEnv, is a broker that stops between taking a token's use and issuing the
// certificate: "enrol" when the box asks, "approve" after an operator approved it. It prints that it is there, and waits
// to be killed. Its directory holds the store and the request.
const (
	childEnv = "ENROLL_TEST_CHILD"
	childDir = "ENROLL_TEST_DIR"
)

func child(mode string) {
	dir, ctx := os.Getenv(childDir), context.Background()
	here := func() {
		fmt.Println("here")
		select {}
	}
	must := func(err error) {
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
	}
	s, err := store.Open(ctx, store.Config{Dir: filepath.Join(dir, "store")})
	must(err)
	raw, err := os.ReadFile(filepath.Join(dir, "request"))
	must(err)
	var req enrollapi.EnrolRequest
	must(json.Unmarshal(raw, &req))
	ring, err := pki.NewKeyring("example.org", time.Now())
	must(err)
	srv := crashServer(NewTokens(s, nil, discard), ring)
	srv.issue = func(*pki.Keyring, *x509.CertificateRequest, pki.Identity, time.Time, time.Duration) ([]byte, error) {
		here()
		return nil, nil
	}
	status, body := crashPost(srv, req)
	if mode != "approve" || status != 202 {
		fmt.Println("failed:", status, string(body))
		os.Exit(1)
	}
	list, err := srv.cfg.Tokens.Pending(ctx)
	must(err)
	_, _, err = srv.cfg.Tokens.Approve(ctx, Approval{Fingerprint: list[0].SPKI})
	must(err)
	here()
}

func crashServer(tokens *Tokens, ring *pki.Keyring) *Server {
	return NewServer(ServerConfig{Issuer: func() *pki.Keyring { return ring }, Roots: ring.Pool, Tokens: tokens})
}

func crashPost(srv *Server, req enrollapi.EnrolRequest) (int, []byte) {
	body, _ := json.Marshal(req)
	r := httptest.NewRequest("POST", enrollapi.PathEnrol, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	srv.ServeHTTP(w, r)
	return w.Code, w.Body.Bytes()
}

// Fault 23: the broker is killed with -9 after the use of the token was taken, or the box approved, and before the
// certificate was issued. The box asks again with its key and gets the same node; the token has one use.
func TestFault23KilledBetweenConsumeAndIssue(t *testing.T) {
	for mode, spec := range map[string]TokenSpec{
		"enrol":   {Uses: 3},
		"approve": {Tenant: "acme", Uses: 3, Approval: ApprovalManual},
	} {
		t.Run(mode, func(t *testing.T) {
			dir := t.TempDir()
			req := crashRequest(t, newKey(t), "SN1")
			open := func() *store.Store {
				s, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(dir, "store")})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Close() })
				return s
			}
			s := open()
			val, _ := json.Marshal(someTenant("acme"))
			if err := s.Commit(t.Context(), store.Create(tenant.Key("acme"), val)); err != nil {
				t.Fatal(err)
			}
			fileClaim(t, s, ClaimSpec{Serial: "SN1", Tenant: "acme", NodeName: "pump-1"})
			req.Token, req.Tenant = createToken(t, NewTokens(s, nil, discard), spec).String(), spec.Tenant
			raw, _ := json.Marshal(req)
			if err := errors.Join(os.WriteFile(filepath.Join(dir, "request"), raw, 0o600), s.Close()); err != nil {
				t.Fatal(err)
			}

			killAtIssue(t, mode, dir)

			s = open()
			tokens := NewTokens(s, nil, discard)
			ring, err := pki.NewKeyring("example.org", time.Now())
			if err != nil {
				t.Fatal(err)
			}
			oneNodeOneUse(t, s, tokens) // before it asks
			for range 2 {
				status, body := crashPost(crashServer(tokens, ring), req)
				wantNode(t, status, body, "pump-1")
			}
			oneNodeOneUse(t, s, tokens)
			// Another box does not profit from it.
			other := crashRequest(t, newKey(t), "SN1")
			other.Token, other.Tenant = req.Token, req.Tenant
			if status, body := crashPost(crashServer(tokens, ring), other); status != 202 {
				t.Errorf("another key with the serial: %d %s", status, body)
			}
		})
	}
}

func killAtIssue(t *testing.T, mode, dir string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+mode, childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	said := lines.Text()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if said != "here" {
		t.Fatalf("the child says %q", said)
	}
}

// Fault 23: issuing fails after the use was taken.
func TestFault23IssueFails(t *testing.T) {
	b := newBench(t, nil)
	issue := b.server.issue
	b.server.issue = func(*pki.Keyring, *x509.CertificateRequest, pki.Identity, time.Time, time.Duration) ([]byte, error) {
		return nil, errors.New("out of order")
	}
	fileClaim(t, b.store, ClaimSpec{Serial: "SN1", Tenant: "acme", NodeName: "pump-1"})
	req := crashRequest(t, newKey(t), "SN1")
	req.Token = createToken(t, b.tokens, TokenSpec{Uses: 3}).String()
	for range 3 {
		status, body := b.post(enrollapi.PathEnrol, nil, req)
		if wantError(t, status, body, enrollapi.CodeInternal); strings.Contains(string(body), "out of order") {
			t.Errorf("the box is told of it: %s", body)
		}
	}
	b.server.issue = issue
	status, body := b.post(enrollapi.PathEnrol, nil, req)
	wantNode(t, status, body, "pump-1")
	oneNodeOneUse(t, b.store, b.tokens)
}

func crashRequest(t *testing.T, key *ecdsa.PrivateKey, serial string) enrollapi.EnrolRequest {
	t.Helper()
	csr, err := pki.MakeCSR(key, "x")
	if err != nil {
		t.Fatal(err)
	}
	return enrollapi.EnrolRequest{CSR: string(csr), Hostname: "edge-1", Serial: serial}
}

func wantNode(t *testing.T, status int, body []byte, node string) {
	t.Helper()
	var resp enrollapi.EnrolResponse
	if err := json.Unmarshal(body, &resp); err != nil || status != 200 || resp.Node != node || resp.Tenant != "acme" {
		t.Fatalf("answer %d %s, want node %s", status, body, node)
	}
	if block, _ := pem.Decode([]byte(resp.Certificate)); block == nil {
		t.Error("no certificate")
	}
}

func oneNodeOneUse(t *testing.T, s Store, tokens *Tokens) {
	t.Helper()
	nodes, err := NewNodes(s, discard).List(t.Context(), "")
	if err != nil || len(nodes) != 1 {
		t.Errorf("nodes %+v, %v; want one", nodes, err)
	}
	recs, err := tokens.List(t.Context(), "")
	if err != nil || len(recs) != 1 || len(recs[0].Used) != 1 {
		t.Errorf("token %+v, %v; want one use", recs, err)
	}
	claims, err := NewClaims(s, nil, discard).List(t.Context(), "")
	if err != nil || consumedOf(claims) != 1 {
		t.Errorf("claims %+v, %v; want one, consumed", claims, err)
	}
}
