package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/internal/tenant"
)

func enrolled(t *testing.T, s *store.Store, nodes ...string) {
	t.Helper()
	for _, n := range nodes {
		val, err := json.Marshal(NodeRecord{Tenant: "acme", Name: n})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context(), store.Create(nodeKey("acme", n), val)); err != nil {
			t.Fatal(err)
		}
	}
}

func mint(t *testing.T, m *SecretMinter, node string) (token string, expires time.Time) {
	t.Helper()
	token, expires, err := m.Mint(t.Context(), "acme", node)
	if err != nil {
		t.Fatal(err)
	}
	return token, expires
}

// remembered are the keys of the store's records of bootstrap tokens.
func remembered(t *testing.T, s *store.Store) []string {
	t.Helper()
	items, err := s.List(t.Context(), bootstrapKeys)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, it := range items {
		out = append(out, it.Key)
	}
	return out
}

func TestMint(t *testing.T) {
	clk, s := newClock(), openStore(t)
	enrolled(t, s, testNode, "edge-2")
	notOurs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "kube-system", Labels: map[string]string{nodeLabel: nodeHash(testNode)}}, Type: corev1.SecretTypeOpaque}
	client := fake.NewClientset(notOurs)
	// What the broker's account is not given.
	client.PrependReactor("*", "secrets", func(a k8stesting.Action) (bool, runtime.Object, error) {
		return !slices.Contains([]string{"create", "delete"}, a.GetVerb()), nil, errors.New(a.GetVerb() + " of secrets is forbidden")
	})
	m := NewMinter(s, clientsOf(client), clk.now)
	mint(t, m, "edge-2")
	first, _ := mint(t, m, testNode)
	token, expires := mint(t, m, testNode)
	if !regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`).MatchString(token) || token == first {
		t.Errorf("token %q after %q", token, first)
	}
	names := secretsOf(t, client)
	if len(names) != 3 { // edge-2's, this one, and what is not ours
		t.Errorf("secrets %v, want the first token gone", names)
	}
	got := names["bootstrap-token-"+token[:6]].StringData
	want := map[string]string{
		"token-id": token[:6], "token-secret": token[7:], "usage-bootstrap-authentication": "true",
		"expiration":        clk.now().Add(bootstrapTTL).UTC().Format(time.RFC3339),
		"auth-extra-groups": "system:bootstrappers:mooring,system:bootstrappers:mooring:" + nodeHash(testNode),
		"description":       got["description"],
	}
	if !reflect.DeepEqual(got, want) || !expires.Equal(clk.now().Add(bootstrapTTL)) {
		t.Errorf("secret %v, expires %v", got, expires)
	}
	// What the API server takes for a group of a bootstrap token.
	if !regexp.MustCompile(`\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`).MatchString(nodeGroup(testNode)) {
		t.Errorf("group %q", nodeGroup(testNode))
	}
	for _, it := range remembered(t, s) {
		if regexp.MustCompile(token[7:]).MatchString(it) {
			t.Error("the store holds the token's secret")
		}
	}
	if _, _, err := m.Mint(t.Context(), "acme", "nobody"); !errors.Is(err, ErrNodeNotFound) {
		t.Errorf("a token for a node that is not enrolled: %v", err)
	}
}

func secretsOf(t *testing.T, client *fake.Clientset) map[string]*corev1.Secret {
	t.Helper()
	l, err := client.Tracker().List(corev1.SchemeGroupVersion.WithResource("secrets"), corev1.SchemeGroupVersion.WithKind("Secret"), "kube-system")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*corev1.Secret{}
	for _, s := range l.(*corev1.SecretList).Items {
		out[s.Name] = &s
	}
	return out
}

// Ids are remembered from before the Secret is made until it is gone, whatever fails in between.
func TestBootstrapTokensAreRemembered(t *testing.T) {
	clk, s := newClock(), openStore(t)
	enrolled(t, s, testNode, "edge-2")
	client := fake.NewClientset()
	fail := ""
	client.PrependReactor("*", "secrets", func(a k8stesting.Action) (bool, runtime.Object, error) {
		return a.GetVerb() == fail, nil, errors.New("away")
	})
	m := NewMinter(s, clientsOf(client), clk.now)

	fail = "create" // the answer may have been lost on its way, so the id stays
	if _, _, err := m.Mint(t.Context(), "acme", testNode); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Mint = %v", err)
	}
	if n := len(remembered(t, s)); n != 1 {
		t.Errorf("%d ids remembered, want 1", n)
	}
	fail = ""
	mint(t, m, testNode)
	mint(t, m, "edge-2")
	if n := len(remembered(t, s)); n != 2 {
		t.Errorf("%d ids remembered, want one a node", n)
	}
	fail = "delete"
	if err := m.EndBootstrap(t.Context(), "acme", testNode); !errors.Is(err, ErrUnavailable) {
		t.Errorf("EndBootstrap = %v", err)
	}
	if n := len(remembered(t, s)); n != 2 {
		t.Errorf("%d ids remembered after a failure, want 2", n)
	}
	fail = ""
	for range 2 {
		if err := m.EndBootstrap(t.Context(), "acme", testNode); err != nil {
			t.Fatal(err)
		}
	}
	if len(secretsOf(t, client)) != 1 || len(remembered(t, s)) != 1 {
		t.Errorf("left: %v, remembered %v; want edge-2's alone", secretsOf(t, client), remembered(t, s))
	}
	// Before it expires the sweep leaves it; after, it goes.
	for _, want := range []int{1, 0} {
		if err := m.Sweep(t.Context(), "acme"); err != nil {
			t.Fatal(err)
		}
		if len(secretsOf(t, client)) != want || len(remembered(t, s)) != want {
			t.Errorf("after a sweep: %v, remembered %v; want %d", secretsOf(t, client), remembered(t, s), want)
		}
		clk.advance(bootstrapTTL)
	}
}

// A tenant that is removed leaves no ids.
func TestPurgeForgetsBootstrapTokens(t *testing.T) {
	clk, s := newClock(), openStore(t)
	enrolled(t, s, testNode)
	m := NewMinter(s, clientsOf(fake.NewClientset()), clk.now)
	mint(t, m, testNode)
	it, err := s.Get(t.Context(), tenant.Key("acme"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), store.Delete(it.Key, it.Rev)); err != nil {
		t.Fatal(err)
	}
	if err := Purge(t.Context(), s, "acme", discard); err != nil {
		t.Fatal(err)
	}
	if keys := remembered(t, s); len(keys) > 0 {
		t.Errorf("%v is left", keys)
	}
}

// A token that was ended between its record and its Secret is not left behind with nobody to know of it.
func TestMintEndedMeanwhile(t *testing.T) {
	s := openStore(t)
	enrolled(t, s, testNode)
	client := fake.NewClientset()
	m := NewMinter(&afterwards{s, func() { // as a revocation does
		if err := NewMinter(s, clientsOf(client), nil).EndBootstrap(t.Context(), "acme", testNode); err != nil {
			t.Error(err)
		}
	}}, clientsOf(client), nil)
	if token, _, err := m.Mint(t.Context(), "acme", testNode); !errors.Is(err, ErrUnavailable) || token != "" {
		t.Errorf("token %q, %v", token, err)
	}
	if left := secretsOf(t, client); len(left) != 0 {
		t.Errorf("left at the tenant: %v", left)
	}
}

// afterwards runs f after each commit.
type afterwards struct {
	Store
	f func()
}

func (a *afterwards) Commit(ctx context.Context, ops ...store.Op) error {
	defer a.f()
	return a.Store.Commit(ctx, ops...)
}
