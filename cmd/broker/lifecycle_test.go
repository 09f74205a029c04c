package main

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mooring-edge/mooring/internal/admin"
)

// nodeAPI is an API server with the Node object edge-1; it returns an administrator's kubeconfig and what was asked.
func nodeAPI(t *testing.T) (path string, asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var all []string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		all = append(all, fmt.Sprint(r.Method, " ", r.URL.Path, " ", string(body)))
		mu.Unlock()
		switch {
		case r.Header.Get("Authorization") != "Bearer admin":
			w.WriteHeader(http.StatusForbidden)
		case strings.HasSuffix(r.URL.Path, "/held"):
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, `{"kind":"Status","message":"somebody was faster"}`+"\n")
		case !strings.HasSuffix(r.URL.Path, "/edge-1"):
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(srv.Close)
	c := clientcmdapi.NewConfig()
	c.Clusters["c"] = &clientcmdapi.Cluster{Server: srv.URL, CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})}
	c.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: "admin"}
	c.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	c.CurrentContext = "x"
	data, err := clientcmd.Write(*c)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "admin.conf")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, func() []string { mu.Lock(); defer mu.Unlock(); return all }
}

func TestNodeObjects(t *testing.T) {
	path, asked := nodeAPI(t)
	at, err := openNodeObjects(nil, "acme", path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c := newNodeRevoke(func() *admin.Client { return nil })
	c.SetContext(t.Context())
	for _, step := range []struct {
		f          revokeFlags
		name, says string
	}{
		{revokeFlags{cordon: true}, "edge-1", "cordoned"},
		{revokeFlags{deleteNode: true}, "edge-1", "deleted"},
		{revokeFlags{deleteNode: true}, "edge-2", "there is none"},
		{revokeFlags{}, "edge-1", "kubectl delete node edge-1"},
	} {
		out.Reset()
		if err := step.f.nodeObject(c, &out, at, step.name); err != nil || !strings.Contains(out.String(), step.says) {
			t.Errorf("%+v: %q, %v; want %q", step.f, out.String(), err, step.says)
		}
	}
	want := `PATCH /api/v1/nodes/edge-1 {"spec":{"unschedulable":true}}|DELETE /api/v1/nodes/edge-1 |DELETE /api/v1/nodes/edge-2 `
	if got := strings.Join(asked(), "|"); got != want {
		t.Errorf("the API server was asked %q, want %q", got, want)
	}
	if err := at.remove(t.Context(), "held"); err == nil || !strings.HasSuffix(err.Error(), "409 Conflict: somebody was faster") {
		t.Errorf("what the API server says: %v", err)
	}
	at.http.Transport = http.DefaultTransport // which trusts another CA, and has no credentials
	if err := (revokeFlags{cordon: true}).nodeObject(c, &out, at, "edge-1"); err == nil || !strings.Contains(err.Error(), "the node is revoked, but") {
		t.Errorf("an API server that can't be talked to: %v", err)
	}
}

func TestNodeTableShowsStates(t *testing.T) {
	now := time.Now()
	var out bytes.Buffer
	nodes := []admin.Node{
		{Tenant: "acme", Name: "edge-1", State: admin.StateActive, CertificateNotAfter: now.Add(5*24*time.Hour + time.Minute)},
		{Tenant: "acme", Name: "edge-2", State: admin.StateRevoked, RevokedAt: &now, RevokedReason: "stolen", CertificateNotAfter: now.Add(-72 * time.Hour)},
		{Tenant: "acme", Name: "edge-3", State: admin.StateQuarantined, Boxes: []admin.Box{{ID: "b1", RemoteAddr: "192.0.2.1:1"}, {ID: "b2", RemoteAddr: "192.0.2.2:2"}}},
	}
	nodeTable(&out, nodes)
	for _, n := range nodes {
		nodeDetails(&out, n)
	}
	for _, want := range []string{"active\tno", "for 5d", "revoked\tno", "ended 3d ago", "stolen", "quarantined", "none yet", "b1\tfrom 192.0.2.1:1", "b2\tfrom 192.0.2.2:2", "broker node resolve acme/edge-3 --keep ID"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}
