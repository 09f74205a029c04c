package kamaji

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// fakeTenants are a broker's.
type fakeTenants struct {
	mu          sync.Mutex // guards the following fields
	tenants     map[string]tenant.Tenant
	provisioned []string
	away        bool // no API server answers
	now         func() time.Time
}

func (f *fakeTenants) List() []tenant.Tenant {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []tenant.Tenant
	for _, t := range f.tenants {
		out = append(out, t)
	}
	return out
}

func (f *fakeTenants) Ensure(_ context.Context, admin tenant.Tenant) (tenant.Tenant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	have, there := f.tenants[admin.Name]
	switch {
	case there && have.Owner != admin.Owner:
		return have, tenant.ErrExists
	case there && have.Address == admin.Address && bytes.Equal(have.CA, admin.CA):
		return have, nil
	case f.away:
		return have, fmt.Errorf("%w: dial tcp 127.0.0.1:%d: connection refused", ErrUnreachable, time.Now().Nanosecond()) // never the same
	}
	admin.CreatedAt = f.now()
	if there {
		admin.CreatedAt = have.CreatedAt
	}
	f.tenants[admin.Name] = admin
	f.provisioned = append(f.provisioned, admin.Name)
	return admin, nil
}

func (f *fakeTenants) Remove(_ context.Context, name string, o tenant.Owner) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tenants[name].Owner == o {
		delete(f.tenants, name)
	}
	return nil
}

// names are the tenants that there are, with their owners.
func (f *fakeTenants) names() string {
	var out []string
	for _, t := range f.List() {
		out = append(out, t.Name+" of "+t.Owner.Name)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// world is a management cluster and a broker.
type world struct {
	t       *testing.T
	c       *Controller
	api     client.WithWatch
	tenants *fakeTenants
	ring    *pki.Keyring
	now     time.Time
	events  chan string
	writes  int                       // of any object
	onWrite func(client.Object) error // may refuse an update
	issued  int
}

func newWorld(t *testing.T, options ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, now: time.Now().Truncate(time.Second)}
	clock := func() time.Time { return w.now }
	w.tenants = &fakeTenants{tenants: map[string]tenant.Tenant{}, now: clock}
	var err error
	if w.ring, err = pki.NewKeyring("mooring.local", w.now.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	scheme.AddKnownTypeWithName(Kind, &unstructured.Unstructured{})
	scheme.AddKnownTypeWithName(Kind.GroupVersion().WithKind(Kind.Kind+"List"), &unstructured.UnstructuredList{})
	w.api = fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			if w.onWrite != nil {
				if err := w.onWrite(o); err != nil {
					return err
				}
			}
			w.writes++
			return c.Update(ctx, o, opts...)
		},
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			w.writes++
			return c.Create(ctx, o, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			w.writes++
			return c.Delete(ctx, o, opts...)
		},
		Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
			return errors.New("nothing here patches")
		},
	}).Build()
	cfg := Config{
		Tenants: w.tenants, Keyring: func() *pki.Keyring { return w.ring }, Now: clock,
		Issue: func(_ context.Context, tenant string, life time.Duration) ([]byte, []byte, error) {
			w.issued++
			return w.ring.IssueAPIServer(tenant, w.now, life)
		},
		Image: "registry.example/broker:v1", BrokerEndpoint: "edge.example:443", FrontDomain: "edge.example",
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, o := range options {
		o(&cfg)
	}
	if w.c, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	recorder := events.NewFakeRecorder(100)
	w.events = recorder.Events
	w.c.client, w.c.live, w.c.events = w.api, w.api, recorder
	return w
}

const ns = "tenants"

// add makes a labelled control plane, as far as Kamaji has come with it.
func (w *world) add(name string, change ...func(*unstructured.Unstructured)) {
	w.t.Helper()
	obj := newObject()
	obj.SetNamespace(ns)
	obj.SetName(name)
	obj.SetUID(types.UID("uid-of-" + name))
	obj.SetLabels(map[string]string{Label: LabelEnabled})
	obj.Object["spec"] = golden(w.t, "plain.before.yaml")
	obj.Object["status"] = object{
		"kubeconfig":   object{"admin": object{"secretName": name + "-admin-kubeconfig"}},
		"certificates": object{"ca": object{"secretName": name + "-ca"}},
	}
	for _, f := range change {
		f(obj)
	}
	w.create(normal(w.t, obj))
	w.create(secret(name+"-ca", map[string][]byte{"ca.crt": []byte("x")}))
	w.create(secret(name+"-admin-kubeconfig", map[string][]byte{"admin.svc": w.kubeconfig(name + "." + ns + ".svc:6443")}))
	w.writes = 0
}

// normal has the numbers and lists of an object as they come from an API server.
func normal(t *testing.T, obj *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	raw, err := obj.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	out := newObject()
	if err := out.UnmarshalJSON(raw); err != nil {
		t.Fatal(err)
	}
	return out
}

func secret(name string, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Data: data}
}

// kubeconfig is an administrator's, with any CA.
func (w *world) kubeconfig(address string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"a","contexts":[{"name":"a","context":{"cluster":"a","user":"a"}}],
		"clusters":[{"name":"a","cluster":{"server":"https://%s","certificate-authority-data":%q}}],"users":[{"name":"a","user":{"token":"t"}}]}`,
		address, base64Of(w.ring.BundlePEM()))
}

func (w *world) create(o client.Object) {
	w.t.Helper()
	if err := w.api.Create(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) key(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: ns, Name: name}
}

func (w *world) reconcile(name string) (time.Duration, error) {
	w.t.Helper()
	r, err := w.c.Reconcile(w.t.Context(), reconcile.Request{NamespacedName: w.key(name)})
	return r.RequeueAfter, err
}

// settle reconciles, which must work.
func (w *world) settle(name string) time.Duration {
	w.t.Helper()
	next, err := w.reconcile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return next
}

func (w *world) get(name string) *unstructured.Unstructured {
	w.t.Helper()
	obj := newObject()
	if err := w.api.Get(w.t.Context(), w.key(name), obj); err != nil {
		w.t.Fatal(err)
	}
	return obj
}

// change updates an object as a user.
func (w *world) change(name string, f func(*unstructured.Unstructured)) {
	w.t.Helper()
	obj := w.get(name)
	f(obj)
	if err := w.api.Update(w.t.Context(), normal(w.t, obj)); err != nil {
		w.t.Fatal(err)
	}
	w.writes = 0
}

func (w *world) identity(name string) map[string][]byte {
	w.t.Helper()
	var s corev1.Secret
	if err := w.api.Get(w.t.Context(), w.key(objectName(name)), &s); err != nil {
		w.t.Fatal(err)
	}
	return s.Data
}

// status wants a state and a reason, and the Event of it.
func (w *world) status(name, state, reason string) Status {
	w.t.Helper()
	s := readStatus(w.get(name).GetAnnotations())
	if s.State != state || s.Reason != reason {
		w.t.Fatalf("status %+v, want %s %s", s, state, reason)
	}
	select {
	case e := <-w.events:
		if !strings.Contains(e, reason) || (state == StateFailed) != strings.HasPrefix(e, "Warning") {
			w.t.Errorf("event %q, want one of %s", e, reason)
		}
	default:
		w.t.Errorf("no event says %s", reason)
	}
	return s
}

func setSpec(path string, v any) func(*unstructured.Unstructured) {
	return func(obj *unstructured.Unstructured) {
		m := merger{spec: obj.Object["spec"].(object)}
		m.object(parent(path))[last(path)] = v
	}
}

func unlabel(obj *unstructured.Unstructured) { obj.SetLabels(nil) }
