package enroll

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mooring-edge/mooring/internal/kubetest"
	"github.com/mooring-edge/mooring/internal/tenant"
)

const testAudience = "system:konnectivity-server"

func TestBearerOf(t *testing.T) {
	user := authenticationv1.UserInfo{Username: "system:serviceaccount:kube-system:konnectivity-agent", Extra: map[string]authenticationv1.ExtraValue{
		extraNode: {"edge-1"}, extraNodeUID: {"u"},
	}}
	got, err := bearerOf(authenticationv1.TokenReviewStatus{Authenticated: true, User: user, Audiences: []string{testAudience}}, testAudience)
	if want := (Bearer{user.Username, "edge-1", "u"}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	two := user
	two.Extra = map[string]authenticationv1.ExtraValue{extraNode: {"edge-1", "edge-2"}}
	if got, err := bearerOf(authenticationv1.TokenReviewStatus{Authenticated: true, User: two, Audiences: []string{testAudience}}, testAudience); err != nil || got.Node != "" {
		t.Errorf("two nodes: %+v, %v", got, err)
	}
	for name, st := range map[string]authenticationv1.TokenReviewStatus{
		"not taken":           {Error: "expired", User: user, Audiences: []string{testAudience}},
		"for another":         {Authenticated: true, User: user, Audiences: []string{"https://kubernetes.default.svc"}},
		"no audiences at all": {Authenticated: true, User: user},
	} {
		if got, err := bearerOf(st, testAudience); !errors.Is(err, ErrTokenUnknown) || got != (Bearer{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestReviewToken(t *testing.T) {
	api := kubetest.Start()
	tn := adminTenant(t, api)
	clients := NewClients(tenants{tn.Name: tn}, nil)
	defer closeClients(t, clients, tn.Name)
	api.Review("good", authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: "u"}, Audiences: []string{testAudience}})
	if got, err := ReviewToken(t.Context(), clients, tn.Name, "good", testAudience); err != nil || got.User != "u" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ReviewToken(t.Context(), clients, tn.Name, "other", testAudience); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("a token that nobody knows: %v", err)
	}
	if _, err := ReviewToken(t.Context(), clients, "nobody", "good", testAudience); !errors.Is(err, tenant.ErrNotFound) {
		t.Errorf("no such tenant: %v", err)
	}
	closeClients(t, clients, tn.Name)
	api.Close()
	if _, err := ReviewToken(t.Context(), clients, tn.Name, "good", testAudience); !errors.Is(err, ErrUnavailable) {
		t.Errorf("an API server that is away: %v", err)
	}
}

func TestNodeAddresses(t *testing.T) {
	api := kubetest.New(t)
	tn := adminTenant(t, api)
	clients := NewClients(tenants{tn.Name: tn}, nil)
	defer closeClients(t, clients, tn.Name)
	api.Put("/api/v1/nodes/edge-1", `{"metadata":{"name":"edge-1","uid":"u"},"status":{"addresses":[
		{"type":"Hostname","address":"edge-1"},{"type":"InternalIP","address":"192.0.2.7"},{"type":"InternalIP","address":"fd00::7"},
		{"type":"ExternalIP","address":"198.51.100.1"},{"type":"InternalIP","address":"nonsense"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":10255}}}}`)
	api.Put("/api/v1/nodes/edge-2", `{"metadata":{"name":"edge-2","uid":"v"}}`)
	got, port, err := NodeAddresses(t.Context(), clients, tn.Name, "edge-1", "u")
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("fd00::7")}; err != nil || port != 10255 || !slices.Equal(got, want) {
		t.Errorf("%v, %d, %v", got, port, err)
	}
	if got, port, err := NodeAddresses(t.Context(), clients, tn.Name, "edge-2", ""); err != nil || port != 10250 || len(got) > 0 {
		t.Errorf("a Node that says nothing: %v, %d, %v", got, port, err)
	}
	for name, uid := range map[string]string{"edge-1": "v", "edge-3": ""} {
		if _, _, err := NodeAddresses(t.Context(), clients, tn.Name, name, uid); !errors.Is(err, ErrNodeGone) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s of %q: %v", name, uid, err)
		}
	}
}

// tenants is a TenantSource.
type tenants map[string]tenant.Tenant

func (t tenants) Get(name string) (tenant.Tenant, bool) { got, ok := t[name]; return got, ok }

// closeClients gives back what a client has open.
func closeClients(t *testing.T, clients *Clients, name string) {
	t.Helper()
	var c kubernetes.Interface
	c, err := clients.Client(name)
	if err != nil {
		t.Fatal(err)
	}
	closeIdle(c)
}
