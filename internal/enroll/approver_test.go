package enroll

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// world is what an approver sees: node records and sessions.
type world struct {
	mu       sync.Mutex
	enrolled map[string]bool
	sessions map[string][]netip.Addr
	revoked  map[string]*time.Time
	asked    map[string]int
	audit    bytes.Buffer
	ended    []string // nodes whose bootstrap tokens were ended
}

func newWorld() *world {
	return &world{enrolled: map[string]bool{testNode: true}, sessions: map[string][]netip.Addr{testNode: testAddrs}, asked: map[string]int{}}
}

func (w *world) Get(_ context.Context, tenant, node string) (NodeRecord, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if tenant != "acme" && tenant != "there" || !w.enrolled[node] {
		return NodeRecord{}, ErrNodeNotFound
	}
	return NodeRecord{Tenant: tenant, Name: node, RevokedAt: w.revoked[node]}, nil
}

func (w *world) NodeAddresses(_, node string) ([]netip.Addr, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[node]++
	a, ok := w.sessions[node]
	return a, ok
}

func (w *world) EndBootstrap(_ context.Context, tenant, node string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = append(w.ended, tenant+"/"+node)
	return nil
}

func (w *world) set(f func(*world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

func kubernetesService() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd01::1"}},
	}
}

// approving runs an approver in a bubble of its own time, and f beside it.
func approving(t *testing.T, w *world, client *fake.Clientset, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := NewApprover(ApproverConfig{
			Nodes: w, Attester: w, Bootstrap: w, Logger: discard, Audit: audit.New(&w.audit, nil, nil),
			NewClient: func(tenant.Tenant) (kubernetes.Interface, error) { return client, nil },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx, someTenant("acme")) }()
		synctest.Wait()
		f(t)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
}

func file(t *testing.T, client kubernetes.Interface, k *kubeletRequest) {
	t.Helper()
	if _, err := client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), k.build(t), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func approved(t *testing.T, client kubernetes.Interface, name string) bool {
	t.Helper()
	csr, err := client.CertificatesV1().CertificateSigningRequests().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range csr.Status.Conditions {
		if c.Type != certificatesv1.CertificateApproved || c.Status != corev1.ConditionTrue {
			t.Errorf("%s has condition %+v: what is not right is left alone", name, c)
		}
	}
	return len(csr.Status.Conditions) == 1
}

func pass(d time.Duration) {
	time.Sleep(d) // of the bubble's time
	synctest.Wait()
}

func TestApproverApproves(t *testing.T) {
	w := newWorld()
	client := fake.NewClientset(kubernetesService())
	approving(t, w, client, func(t *testing.T) {
		file(t, client, clientRequest())
		if !approved(t, client, "csr-client") {
			t.Error("the client request is not approved")
		}
		if len(w.ended) > 0 {
			t.Errorf("bootstrap tokens of %v ended before the kubelet is in", w.ended)
		}
		file(t, client, servingRequest())
		if !approved(t, client, "csr-serving") {
			t.Error("the serving request is not approved")
		}
		if !slices.Equal(w.ended, []string{"acme/" + testNode}) {
			t.Errorf("bootstrap tokens of %v ended, want the node's own, once", w.ended)
		}
		if log := w.audit.String(); strings.Count(log, `"event":"csr","outcome":"ok"`) != 2 || !strings.Contains(log, `"actor":"system:node:edge-1"`) {
			t.Errorf("audit log:\n%s", log)
		}
	})
}

func TestApproverFindsWhatWasThere(t *testing.T) {
	client := fake.NewClientset(kubernetesService(), servingRequest().build(t))
	approving(t, newWorld(), client, func(t *testing.T) {
		pass(5 * time.Second)
		if !approved(t, client, "csr-serving") {
			t.Error("not approved")
		}
	})
}

func TestApproverLeavesAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		k     *kubeletRequest
		edit  edit
		world func(*world)
	}{
		"not enrolled, client":  {clientRequest(), nil, func(w *world) { w.enrolled = nil }},
		"not enrolled, serving": {servingRequest(), nil, func(w *world) { w.enrolled = nil }},
		"revoked, client":       {clientRequest(), nil, func(w *world) { w.revoked = map[string]*time.Time{testNode: new(time.Time)} }},
		"revoked, serving":      {servingRequest(), nil, func(w *world) { w.revoked = map[string]*time.Time{testNode: new(time.Time)} }},
		"no session":            {servingRequest(), nil, func(w *world) { w.sessions = nil }},
		"other addresses":       {servingRequest(), nil, func(w *world) { w.sessions[testNode] = testAddrs[1:] }},
		"foreign SAN":           {servingRequest(), func(k *kubeletRequest) { k.template.DNSNames = []string{"edge-2"} }, nil},
		"other node's token":    {clientRequest(), func(k *kubeletRequest) { k.object.Spec.Groups = []string{bootstrapGroup, nodeGroup("edge-2")} }, nil},
		"node in another's name": {clientRequest(), func(k *kubeletRequest) {
			k.object.Spec.Username, k.object.Spec.Groups = nodeUserPrefix+"edge-2", []string{nodesGroup}
		}, nil},
		"damaged": {clientRequest(), func(k *kubeletRequest) { k.pem = damagedSignature }, nil},
		"node called as the API server": {servingRequest(), func(k *kubeletRequest) {
			k.template.Subject, k.template.DNSNames = nodeSubject("acme.edge.example"), []string{"acme.edge.example"}
			k.object.Spec.Username = nodeUserPrefix + "acme.edge.example"
		}, func(w *world) {
			w.enrolled["acme.edge.example"], w.sessions["acme.edge.example"] = true, testAddrs
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			if tc.world != nil {
				tc.world(w)
			}
			if tc.edit != nil {
				tc.edit(tc.k)
			}
			client := fake.NewClientset(kubernetesService())
			approving(t, w, client, func(t *testing.T) {
				file(t, client, tc.k)
				pass(10 * time.Minute)
				if approved(t, client, tc.k.object.Name) {
					t.Error("approved")
				}
				events, err := client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
				if err != nil || len(events.Items) != 1 || events.Items[0].Message == "" {
					t.Errorf("events %+v, %v; want one that says why", events, err)
				}
				if log := w.audit.String(); !strings.Contains(log, `"event":"csr","outcome":"refused"`) || !strings.Contains(log, `"reason":"`) {
					t.Errorf("audit log: %s", log)
				}
			})
		})
	}
}

// A kubelet that asks before its session is up, or before its record is there, is served once it is.
func TestApproverWaitsForTheSession(t *testing.T) {
	w := newWorld()
	w.sessions = map[string][]netip.Addr{}
	client := fake.NewClientset(kubernetesService())
	approving(t, w, client, func(t *testing.T) {
		file(t, client, servingRequest())
		pass(time.Hour)
		if approved(t, client, "csr-serving") {
			t.Fatal("approved without a session")
		}
		w.set(func(w *world) { w.sessions[testNode] = testAddrs })
		pass(defaultRecheck)
		if !approved(t, client, "csr-serving") {
			t.Error("not approved though the session is up")
		}
	})
}

// A renewed token is a changed tenant, for which the run is started anew: what waited is still approved, once.
func TestApproverGoesOnWithANewToken(t *testing.T) {
	w := newWorld()
	w.sessions = map[string][]netip.Addr{}
	client := fake.NewClientset(kubernetesService())
	synctest.Test(t, func(t *testing.T) {
		a := NewApprover(ApproverConfig{
			Nodes: w, Attester: w, Bootstrap: w, Logger: discard,
			NewClient: func(tenant.Tenant) (kubernetes.Interface, error) { return client, nil },
		})
		f := &feed{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- NewManager(f, "approval", a.Run, discard).Run(ctx) }()
		synctest.Wait()
		file(t, client, servingRequest())
		pass(time.Minute)
		renewed := someTenant("there")
		renewed.Kubeconfig = []byte("another token")
		f.fn(renewed, false)
		synctest.Wait()
		if approved(t, client, "csr-serving") {
			t.Fatal("approved without a session")
		}
		w.mu.Lock()
		w.sessions[testNode] = testAddrs
		w.mu.Unlock()
		pass(defaultRecheck)
		if !approved(t, client, "csr-serving") {
			t.Error("what waited for the session is forgotten with the old token")
		}
		cancel()
		<-done
	})
}

func TestApproverAPIServerDown(t *testing.T) {
	client := fake.NewClientset(kubernetesService())
	var mu sync.Mutex
	down := true
	client.PrependReactor("*", "*", func(k8stesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		if down {
			return true, nil, errors.New("connection refused")
		}
		return false, nil, nil
	})
	approving(t, newWorld(), client, func(t *testing.T) {
		pass(10 * time.Minute)
		mu.Lock()
		down = false
		mu.Unlock()
		file(t, client, servingRequest())
		pass(2 * time.Minute)
		if !approved(t, client, "csr-serving") {
			t.Error("not approved after the API server came back")
		}
	})
}

// floodWith files n serving requests of the node "flood".
func floodWith(t *testing.T, client kubernetes.Interface, n int) {
	t.Helper()
	for i := range n {
		k := servingRequest()
		k.template.Subject, k.template.DNSNames = nodeSubject("flood"), []string{"flood"}
		k.object.Name, k.object.UID, k.object.Spec.Username = fmt.Sprint("flood-", i), types.UID(fmt.Sprint(i)), nodeUserPrefix+"flood"
		if _, err := client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), k.build(t), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// Fault 28: a node that floods waits for itself alone.
func TestFault28CSRFlood(t *testing.T) {
	w := newWorld()
	w.enrolled["flood"], w.sessions["flood"] = true, testAddrs
	client := fake.NewClientset(kubernetesService())
	approving(t, w, client, func(t *testing.T) {
		const flood = 50
		floodWith(t, client, flood)
		file(t, client, servingRequest())
		if !approved(t, client, "csr-serving") {
			t.Error("the other node waits")
		}
		n := 0
		for i := range flood {
			if approved(t, client, fmt.Sprint("flood-", i)) {
				n++
			}
		}
		if n != nodeApprovalBurst {
			t.Errorf("%d of the flood approved at once, want %d", n, nodeApprovalBurst)
		}
		pass(10 * time.Minute)
		for i := range flood {
			if !approved(t, client, fmt.Sprint("flood-", i)) {
				t.Fatalf("flood-%d never approved", i)
			}
		}
	})
}

// Fault 28 again, with requests that nobody vouches for: they are not looked at over and over.
func TestFault28CSRFloodWaiting(t *testing.T) {
	w := newWorld()
	w.enrolled["flood"] = true
	w.sessions = map[string][]netip.Addr{}
	client := fake.NewClientset(kubernetesService())
	approving(t, w, client, func(t *testing.T) {
		const flood, seconds = 200, 120
		floodWith(t, client, flood)
		file(t, client, servingRequest())
		pass(seconds * time.Second)
		w.set(func(w *world) {
			if limit := flood + nodeRecheckBurst + int(nodeRechecks)*seconds + 1; w.asked["flood"] > limit {
				t.Errorf("looked %d times at %d requests in %d s, want at most %d", w.asked["flood"], flood, seconds, limit)
			}
			w.sessions[testNode] = testAddrs
		})
		pass(defaultRecheck)
		if !approved(t, client, "csr-serving") {
			t.Error("the other node waits")
		}
	})
}
