package broker

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/kubetest"
)

// agentConn connects as an agent of konnectivity does, and sends what it sends first.
func agentConn(t *testing.T, r *running, roots *x509.CertPool, name, token string) (*tls.Conn, error) {
	t.Helper()
	c, err := tls.Dial("tcp", r.cfg.Front.Listen, &tls.Config{RootCAs: roots, ServerName: name, NextProtos: []string{"h2"}})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", "/AgentService/Connect"}, {":authority", name},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"authorization", "Bearer " + token}, {"agentidentifiers", "host=edge-2"},
	} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	f := http2.NewFramer(&out, nil)
	if err := errors.Join(f.WriteSettings(), f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})); err != nil {
		t.Fatal(err)
	}
	_, err = c.Write(out.Bytes())
	return c, err
}

// knowAgent has a stand-in for an API server know node edge-1, and the token "good" of the agent on it.
func knowAgent(api *kubetest.Server) {
	api.Put("/api/v1/nodes/edge-1", `{"metadata":{"name":"edge-1","uid":"u"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.7"}]}}`)
	api.Review("good", authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{"system:konnectivity-server"},
		User: authenticationv1.UserInfo{Username: "system:serviceaccount:kube-system:konnectivity-agent", Extra: map[string]authenticationv1.ExtraValue{
			"authentication.kubernetes.io/node-name": {"edge-1"}, "authentication.kubernetes.io/node-uid": {"u"},
		}},
	})
}

// TestKonnectivityAgents: the front leads agents by their tenant's name to where they are known by their token, as what it says and
// nothing else; who is removed is cut. With the stock agent: TestKonnectivityAgent (e2e).
func TestKonnectivityAgents(t *testing.T) {
	r := startBroker(t, t.TempDir(), func(c *config.Broker) {
		c.Front.Domain, c.Konnectivity.Enabled = "edge.example", true
	})
	api := r.addTenant(t, "acme")
	r.addTenant(t, "globex")
	knowAgent(api)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(r.issueEgress(t, "acme").CA))

	for _, name := range []string{"nobody.konnectivity.edge.example", "a.acme.konnectivity.edge.example", "konnectivity.edge.example"} {
		if _, err := agentConn(t, r, roots, name, "good"); err == nil || !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v, want a close without an answer", name, err)
		}
	}
	if _, err := agentConn(t, r, roots, "globex.konnectivity.edge.example", "good"); err != nil {
		t.Fatal(err)
	}
	r.logs.await(t, "the tenant's API server does not accept the token")
	c, err := agentConn(t, r, roots, "acme.konnectivity.edge.example", "good")
	if err != nil {
		t.Fatal(err)
	}
	r.logs.await(t, `konnectivity agent connected" tenant=acme node=edge-1`)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) { // it is listed just after
		nodes, err := r.client.Nodes(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, n := range nodes {
			names = append(names, n.Tenant+"/"+n.Name+" "+n.State+" "+n.Session.Transport)
		}
		if slices.Equal(names, []string{"acme/edge-1 agent konnectivity"}) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("listed are %q", names)
		}
	}
	if status, said := r.dialNode(t, "globex", "edge-1:10250"); !strings.Contains(status, "404") {
		t.Errorf("globex reaches acme's agent: %s %s", status, said)
	}
	if status, said := r.dialNode(t, "acme", "edge-1:22"); !strings.Contains(status, "403") {
		t.Errorf("a port that is not the kubelet's: %s %s", status, said)
	}
	if err := r.client.RemoveTenant(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("the agent of a tenant that was removed is still connected")
	}
	if _, err := agentConn(t, r, roots, "acme.konnectivity.edge.example", "good"); err == nil {
		t.Error("a tenant that was removed has a name still")
	}
}
