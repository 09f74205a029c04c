package cluster

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// klog's flush daemon is started by the import of client-go and has no end.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// told is what a Learner has said last, of one tenant.
type told struct {
	mu       sync.Mutex
	nodes    map[string]switchboard.Node
	ranges   []netip.Prefix
	services map[netip.Addr]switchboard.Backends
	network  wire.Network
	more     chan struct{} // holds one
}

func (b *told) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	kick(b.more)
}

func (b *told) SetNodes(_ string, n map[string]switchboard.Node) { b.change(func() { b.nodes = n }) }
func (b *told) SetServiceRanges(_ string, r []netip.Prefix)      { b.change(func() { b.ranges = r }) }
func (b *told) SetServices(_ string, s map[netip.Addr]switchboard.Backends) {
	b.change(func() { b.services = s })
}
func (b *told) tell(_ string, n wire.Network) { b.change(func() { b.network = n }) }

// await returns when what was told is as wanted.
func (b *told) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		b.mu.Lock()
		good := ok()
		b.mu.Unlock()
		if good {
			return
		}
		select {
		case <-b.more:
		case <-limit:
			t.Fatalf("never told %s: nodes %v, ranges %v, services %v, network %+v", what, b.nodes, b.ranges, b.services, b.network)
		}
	}
}

func node(name string, ready corev1.ConditionStatus, cidrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse}, {Type: corev1.NodeReady, Status: ready}}
	return n
}

func service(name string, ips ...string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ips[0], ClusterIPs: ips}}
}

// endpoints is a slice of a Service. An endpoint is "node", "!node" if it is not ready, or "" on no node.
func endpoints(service, name string, on ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
	for _, n := range on {
		node, not := strings.CutPrefix(n, "!")
		e := discoveryv1.Endpoint{Addresses: []string{"10.244.0.9"}}
		if node != "" {
			e.NodeName = &node
		}
		if not {
			ready := false
			e.Conditions.Ready = &ready
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func apiServers(port int32, addresses ...string) *discoveryv1.EndpointSlice {
	s := endpoints("kubernetes", "kubernetes")
	name := "https"
	s.Ports = []discoveryv1.EndpointPort{{Name: &name, Port: &port}}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

// learn runs a Learner on client; the result ends it.
func learn(t *testing.T, client kubernetes.Interface, h *health.Tracker, of tenant.Tenant) (b *told, stop func()) {
	t.Helper()
	b = &told{more: make(chan struct{}, 1)}
	l := New(Config{Board: b, Tell: b.tell, Health: h, Logger: slog.New(slog.DiscardHandler),
		NewClient: func(tenant.Tenant) (kubernetes.Interface, error) { return client, nil }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, of) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return b, stop
}

// watches returns a function that returns when client is watched for each of the resources. It is to be called before client
// is used. A change between a list and the watch after it is lost, as no API server would: this client has no versions to go on from.
func watches(t *testing.T, client *fake.Clientset, resources ...string) (await func()) {
	began := make(chan string, 100)
	client.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		began <- a.GetResource().Resource
		return false, nil, nil // it is made by the next one, and client is locked until then
	})
	t.Cleanup(func() {
		if t.Failed() {
			for _, a := range client.Actions() {
				t.Log(a.GetVerb(), a.GetResource().Resource)
			}
		}
	})
	return func() {
		t.Helper()
		missing := slices.Clone(resources)
		for limit := time.After(20 * time.Second); len(missing) > 0; {
			select {
			case resource := <-began:
				missing = slices.DeleteFunc(missing, func(m string) bool { return m == resource })
			case <-limit:
				t.Fatalf("never watched: %q", missing)
			}
		}
		client.Actions() // waits for the lock
	}
}

// TestLearns: what the API server has of the network is told, and so is each change.
func TestLearns(t *testing.T) {
	client := fake.NewClientset(
		node("edge-1", corev1.ConditionTrue, "10.244.1.0/24", "fd00:244:1::/64"), node("edge-2", corev1.ConditionUnknown, "10.244.2.0/24"),
		service("app", "10.96.0.20", "fd00:96::20"), service("headless", corev1.ClusterIPNone), service("kubernetes", "10.96.0.1"),
		endpoints("app", "app-1", "edge-2", "!edge-1", "edge-2"), endpoints("app", "app-2", "edge-3"), apiServers(6443, "198.51.100.1"),
		&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16", "fd00:96::/108"}}},
	)
	awaitWatches := watches(t, client, "nodes", "services", "endpointslices")
	b, _ := learn(t, client, nil, tenant.Tenant{Name: "acme"})
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	b.await(t, "the nodes", func() bool {
		return reflect.DeepEqual(b.nodes, map[string]switchboard.Node{
			"edge-1": {PodCIDRs: []netip.Prefix{prefix("10.244.1.0/24"), prefix("fd00:244:1::/64")}, Ready: true},
			"edge-2": {PodCIDRs: []netip.Prefix{prefix("10.244.2.0/24")}},
		})
	})
	app := switchboard.Backends{Nodes: []string{"edge-2", "edge-3"}}
	b.await(t, "the services", func() bool {
		return reflect.DeepEqual(b.services, map[netip.Addr]switchboard.Backends{
			addr("10.96.0.20"): app, addr("fd00:96::20"): app, addr("10.96.0.1"): {Elsewhere: true},
		})
	})
	ranges := []netip.Prefix{prefix("10.96.0.0/16"), prefix("fd00:96::/108")}
	b.await(t, "the ranges", func() bool {
		return slices.Equal(b.ranges, ranges) && slices.Equal(b.network.ServiceCIDRs, ranges) &&
			slices.Equal(b.network.APIServers, []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:6443")})
	})

	awaitWatches()
	ctx := t.Context()
	update := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := client.CoreV1().Nodes().Update(ctx, node("edge-2", corev1.ConditionTrue, "10.244.2.0/24"), metav1.UpdateOptions{})
	update(err)
	update(client.CoreV1().Nodes().Delete(ctx, "edge-1", metav1.DeleteOptions{}))
	b.await(t, "that a node went and another is Ready", func() bool { return len(b.nodes) == 1 && b.nodes["edge-2"].Ready })
	_, err = client.DiscoveryV1().EndpointSlices("default").Update(ctx, endpoints("app", "app-1", "edge-1"), metav1.UpdateOptions{})
	update(err)
	b.await(t, "where the service's pods went", func() bool {
		return slices.Equal(b.services[addr("10.96.0.20")].Nodes, []string{"edge-1", "edge-3"})
	})
	update(client.CoreV1().Services("default").Delete(ctx, "app", metav1.DeleteOptions{}))
	b.await(t, "that a service went", func() bool { return len(b.services) == 1 })

	// An API server that stops leaves the list; nodes keep what they know until there is another.
	_, err = client.DiscoveryV1().EndpointSlices("default").Update(ctx, apiServers(6443), metav1.UpdateOptions{})
	update(err)
	_, err = client.CoreV1().Services("default").Create(ctx, service("marker", "10.96.0.99"), metav1.CreateOptions{})
	update(err)
	b.await(t, "of a later change", func() bool { return len(b.services) == 2 })
	b.mu.Lock()
	if len(b.network.APIServers) != 1 {
		t.Errorf("with no API server in the list: %+v", b.network)
	}
	b.mu.Unlock()
	_, err = client.DiscoveryV1().EndpointSlices("default").Update(ctx, apiServers(443, "198.51.100.3", "2001:db8::1"), metav1.UpdateOptions{})
	update(err)
	b.await(t, "where the control plane went", func() bool {
		return slices.Equal(b.network.APIServers, []netip.AddrPort{netip.MustParseAddrPort("198.51.100.3:443"), netip.MustParseAddrPort("[2001:db8::1]:443")})
	})
}

// TestOlderClusters: without ServiceCIDRs the ranges are those that the cluster was made with; what the operator says counts before all.
func TestOlderClusters(t *testing.T) {
	none := func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "servicecidrs"}, "")
	}
	client := fake.NewClientset(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kubeadm-config"},
		Data:       map[string]string{"ClusterConfiguration": "kind: ClusterConfiguration\nnetworking:\n  serviceSubnet: 10.97.0.0/16, fd00:97::/108\n"},
	})
	client.PrependReactor("list", "servicecidrs", none)
	b, stop := learn(t, client, nil, tenant.Tenant{Name: "acme"})
	b.await(t, "the ranges of kubeadm", func() bool {
		return len(b.ranges) == 2 && b.ranges[0].String() == "10.97.0.0/16" && slices.Equal(b.network.ServiceCIDRs, b.ranges)
	})
	stop()
	b, _ = learn(t, client, nil, tenant.Tenant{Name: "acme", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.98.0.0/16")}})
	b.await(t, "the operator's ranges", func() bool { return len(b.ranges) == 1 && b.ranges[0].String() == "10.98.0.0/16" })

	if got, err := serviceRanges(t.Context(), func() kubernetes.Interface {
		c := fake.NewClientset()
		c.PrependReactor("list", "servicecidrs", none)
		return c
	}()); err == nil || !strings.Contains(err.Error(), "--service-cidr") {
		t.Errorf("where nobody says: %v, %v", got, err)
	}
}

// TestForbidden: an account that may not look is shown, with what to do, and what was told before stays. Seen failing with
// the condition never set.
func TestForbidden(t *testing.T) {
	h := health.New(health.Config{})
	client := fake.NewClientset(node("edge-1", corev1.ConditionTrue, "10.244.1.0/24"))
	var allowed sync.Map
	client.PrependReactor("list", "endpointslices", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if _, ok := allowed.Load("yes"); ok {
			return false, nil, nil
		}
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "endpointslices"}, "", errors.New("no right"))
	})
	b, _ := learn(t, client, h, tenant.Tenant{Name: "acme"})
	b.await(t, "the nodes", func() bool { return len(b.nodes) == 1 })
	conditionIs := func(want health.Status, words string) {
		t.Helper()
		for limit := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) { // polls a condition, with a deadline
			c := h.Get(ConditionTenantNetwork)
			if c.Status == want && strings.Contains(c.Message, words) {
				return
			}
			if time.Now().After(limit) {
				t.Fatalf("condition %+v; want %s with %q", c, want, words)
			}
		}
	}
	conditionIs(health.False, "broker tenant update acme")
	b.mu.Lock()
	if b.services != nil {
		t.Errorf("told of services that nobody may see: %v", b.services)
	}
	b.mu.Unlock()
	allowed.Store("yes", true)
	b.await(t, "the services", func() bool { return b.services != nil })
	conditionIs(health.True, "1 tenant(s)")
}

// What informers keep of an object is all that is used, and no more.
func TestStrip(t *testing.T) {
	n := node("edge-1", corev1.ConditionTrue, "10.244.1.0/24")
	n.Status.Images = []corev1.ContainerImage{{Names: []string{"large"}}}
	n.Annotations = map[string]string{"large": "x"}
	got, err := stripNode(n)
	if err != nil {
		t.Fatal(err)
	}
	kept := got.(*corev1.Node)
	if len(kept.Status.Images) > 0 || len(kept.Annotations) > 0 || !maps.EqualFunc(nodesOf([]any{n}), nodesOf([]any{kept}),
		func(a, b switchboard.Node) bool { return reflect.DeepEqual(a, b) }) {
		t.Errorf("kept %+v", kept)
	}
	if other, _ := stripNode(node("edge-1", corev1.ConditionTrue, "10.244.1.0/24")); !same(kept, other) {
		t.Error("a heartbeat looks like a change")
	}
}
