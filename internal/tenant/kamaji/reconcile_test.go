package kamaji

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
)

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// TestConnect: a labelled control plane gets its tenant, identity, configuration and spec; ten more looks write nothing.
func TestConnect(t *testing.T) {
	w := newWorld(t)
	w.add("acme")
	next := w.settle("acme")
	s := w.status("acme", StateReady, reasonConnected)
	if s.Tenant != "acme" || next <= 0 || next > lookEvery*11/10 {
		t.Errorf("%+v, next look after %s", s, next)
	}
	if got := w.tenants.names(); got != "acme of acme" {
		t.Errorf("tenants %s", got)
	}
	if got := w.tenants.List()[0]; got.Address != "acme.tenants.svc:6443" {
		t.Errorf("the tenant is at %s", got.Address)
	}
	want := golden(t, "plain.before.yaml")
	config, _ := egressSelector(HTTPConnect)
	apply(want, newPlan("acme", "registry.example/broker:v1", "acme.edge.example", config), nil)
	if got := text(t, w.get("acme").Object["spec"]); got != text(t, want) {
		t.Errorf("spec\n%s", got)
	}
	id := w.identity("acme")
	if string(id[keyBroker]) != "edge.example:443\n" || string(id[keyCA]) != string(w.ring.BundlePEM()) || len(id) != 4 {
		t.Errorf("identity holds %d keys, broker %q", len(id), id[keyBroker])
	}
	var cm corev1.ConfigMap
	if err := w.api.Get(t.Context(), w.key(objectName("acme")), &cm); err != nil || cm.Data[configFile] != config {
		t.Errorf("ConfigMap %v, %v", cm.Data, err)
	}
	if o := cm.OwnerReferences; len(o) != 1 || o[0].UID != "uid-of-acme" || o[0].BlockOwnerDeletion != nil {
		t.Errorf("owner %+v: want the control plane, which must not wait for it", o)
	}
	if f := w.get("acme").GetFinalizers(); len(f) > 0 {
		t.Errorf("finalizers %q: the control plane's deletion would wait for a broker", f)
	}
	w.writes = 0
	for range 10 {
		w.settle("acme")
	}
	if w.writes != 0 || w.issued != 1 || len(w.events) != 0 {
		t.Errorf("ten looks made %d writes, %d identities, %d events", w.writes, w.issued, len(w.events))
	}
}

// TestDisconnect: without its label the object is what it was, and what was made for it is gone.
func TestDisconnect(t *testing.T) {
	w := newWorld(t)
	w.add("acme")
	want := text(t, restored(w.get("acme").Object["spec"].(object)))
	w.settle("acme")
	w.status("acme", StateReady, reasonConnected)
	w.change("acme", unlabel)
	w.settle("acme")
	obj := w.get("acme")
	if got := text(t, obj.Object["spec"]); got != want {
		t.Errorf("spec\n%swant\n%s", got, want)
	}
	if a := obj.GetAnnotations(); len(a) != 0 {
		t.Errorf("annotations %v", a)
	}
	if e := <-w.events; !strings.Contains(e, reasonDisconnected) {
		t.Errorf("event %q", e)
	}
	for _, o := range []client.Object{&corev1.Secret{}, &corev1.ConfigMap{}} {
		if err := w.api.Get(t.Context(), w.key(objectName("acme")), o); !apierrors.IsNotFound(err) {
			t.Errorf("%T: %v", o, err)
		}
	}
	if got := w.tenants.names(); got != "" {
		t.Errorf("tenants %s", got)
	}
	w.writes = 0
	w.settle("acme")
	if w.writes != 0 {
		t.Errorf("another look made %d writes", w.writes)
	}
}

// TestDisconnectAfterReplace: a user who replaces the whole object takes our record along with our fields, but Kamaji keeps the
// API server's flags as long as there is no list of them. (Seen failing without dropFlags in takeOut.)
func TestDisconnectAfterReplace(t *testing.T) {
	w := newWorld(t)
	w.add("acme")
	w.settle("acme")
	w.change("acme", func(obj *unstructured.Unstructured) {
		unlabel(obj)
		obj.SetAnnotations(nil)
		obj.Object["spec"] = golden(t, "plain.before.yaml")
	})
	w.settle("acme")
	if args, there, _ := unstructured.NestedSlice(w.get("acme").Object, "spec", "controlPlane", "deployment", "extraArgs", "apiServer"); !there || len(args) > 0 {
		t.Errorf("extraArgs.apiServer is %v, want an empty list", args)
	}
	if got := w.tenants.names(); got != "" {
		t.Errorf("tenants %s", got)
	}
}

// TestGone: the tenant of an object that is no more goes, also if nobody watched when it went; one that is being deleted is
// not written to.
func TestGone(t *testing.T) {
	w := newWorld(t)
	w.add("acme")
	w.settle("acme")
	w.change("acme", func(obj *unstructured.Unstructured) { obj.SetFinalizers([]string{"finalizer.kamaji.clastix.io"}) })
	if err := w.api.Delete(t.Context(), w.get("acme")); err != nil {
		t.Fatal(err)
	}
	w.writes = 0
	w.settle("acme")
	if got := w.tenants.names(); got != "" || w.writes != 0 {
		t.Errorf("while it is being deleted: tenants %s, %d writes", got, w.writes)
	}

	w.tenants.tenants["beta"] = tenant.Tenant{Name: "beta", Owner: owner(w.key("beta"), "1")}
	w.settle("beta")
	if got := w.tenants.names(); got != "" {
		t.Errorf("tenants %s", got)
	}
}

// TestMadeAnew: an object of the same name with another UID is another control plane: its tenant is a new one, and the identity
// that was for the old one is of no use.
func TestMadeAnew(t *testing.T) {
	w := newWorld(t)
	w.tenants.tenants["acme"] = tenant.Tenant{Name: "acme", Owner: owner(w.key("acme"), "old")}
	w.add("acme")
	w.settle("acme")
	if got := w.tenants.List()[0].Owner.UID; got != "uid-of-acme" {
		t.Errorf("the tenant is of %s", got)
	}
	before := string(w.identity("acme")[keyCert])
	w.now = w.now.Add(time.Minute)
	if err := w.tenants.Remove(t.Context(), "acme", owner(w.key("acme"), "uid-of-acme")); err != nil { // by an operator
		t.Fatal(err)
	}
	w.settle("acme")
	if got := w.tenants.names(); got != "acme of acme" {
		t.Errorf("tenants %s: the label is still there", got)
	}
	if string(w.identity("acme")[keyCert]) == before {
		t.Error("the identity is that of the tenant which was removed")
	}
}

// TestRotation: the identity is renewed at two thirds of its life and when the CA is another, and nothing else changes by
// it: no rollout. (Seen failing with roots that hold the previous CA; the end-to-end test with the CA in the hash.)
func TestRotation(t *testing.T) {
	w := newWorld(t)
	w.add("acme")
	w.settle("acme")
	first, generation := w.identity("acme"), w.get("acme").GetResourceVersion()
	w.now = w.now.Add(identityLife*2/3 - time.Minute)
	if next := w.settle("acme"); next > time.Minute {
		t.Errorf("looks again after %s, and the identity is due in a minute", next)
	}
	if string(w.identity("acme")[keyCert]) != string(first[keyCert]) {
		t.Error("renewed too early")
	}
	w.now = w.now.Add(time.Minute)
	w.settle("acme")
	second := w.identity("acme")
	if string(second[keyCert]) == string(first[keyCert]) || string(second[keyKey]) == string(first[keyKey]) {
		t.Error("not renewed at two thirds of its life")
	}
	step := func(f func() (*pki.Keyring, error)) {
		t.Helper()
		var err error
		if w.ring, err = f(); err != nil {
			t.Fatal(err)
		}
		w.settle("acme")
	}
	step(func() (*pki.Keyring, error) { return w.ring.Add(w.now) })
	added := w.identity("acme")
	if string(added[keyCert]) != string(second[keyCert]) || string(added[keyCA]) != string(w.ring.BundlePEM()) {
		t.Error("the next CA is to be trusted, and the identity to stay")
	}
	step(w.ring.Switch)
	if string(w.identity("acme")[keyCert]) == string(added[keyCert]) {
		t.Error("not renewed though its issuer is about to be retired")
	}
	if got := w.get("acme").GetResourceVersion(); got != generation {
		t.Error("the object was written: its pods roll")
	}
}

// TestTrouble: each condition is told on the object and by an Event, once; and nothing else is touched. (Seen failing with check left out, and with the
// error of the try in the message, which is never the same.)
func TestTrouble(t *testing.T) {
	drop := func(name string) func(*world) {
		return func(w *world) {
			if err := w.api.Delete(w.t.Context(), secret(name, nil)); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	none := func(*world) {}
	for _, c := range []struct {
		name          string
		object        func(*unstructured.Unstructured)
		world         func(*world)
		state, reason string
		tenants       string
	}{
		{"konnectivity addon", setSpec("addons.konnectivity", object{"server": object{}}), none, StateFailed, reasonKonnectivity, ""},
		{"user's egress flag", setSpec(fieldArgs, []any{"--egress-selector-config-file=/x"}), none, StateFailed, reasonUserFlag, ""},
		{"old Kubernetes", setSpec("kubernetes.version", "v1.28.0"), none, StateFailed, reasonKubernetes, ""},
		{"no kubeconfig in the status", func(o *unstructured.Unstructured) { delete(o.Object["status"].(object), "kubeconfig") }, none, StateWaiting, reasonNoKubeconfig, ""},
		{"no kubeconfig", nil, drop("acme-admin-kubeconfig"), StateWaiting, reasonNoKubeconfig, ""},
		{"no CA in the status", func(o *unstructured.Unstructured) { delete(o.Object["status"].(object), "certificates") }, none, StateWaiting, reasonNoCA, ""},
		{"no CA", nil, drop("acme-ca"), StateWaiting, reasonNoCA, ""},
		{"API server away", nil, func(w *world) { w.tenants.away = true }, StateWaiting, reasonUnreachable, ""},
		{"operator's tenant", nil, func(w *world) { w.tenants.tenants["acme"] = tenant.Tenant{Name: "acme"} }, StateFailed, reasonNameTaken, "acme of "},
		{"another object's tenant", nil, func(w *world) {
			w.tenants.tenants["acme"] = tenant.Tenant{Name: "acme", Owner: tenant.Owner{Kind: OwnerKind, Namespace: "other", Name: "acme", UID: "2"}}
		}, StateFailed, reasonNameTaken, "acme of acme"},
		{"bad name", func(o *unstructured.Unstructured) { annotate(o, AnnotationTenant, "Not_A_Name") }, none, StateFailed, reasonNameInvalid, ""},
		{"foreign Secret", nil, func(w *world) { w.create(secret("acme-mooring", nil)); w.writes = 0 }, StateFailed, reasonForeignObjects, "acme of acme"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if c.object == nil {
				c.object = func(*unstructured.Unstructured) {}
			}
			w.add("acme", c.object)
			c.world(w)
			before := text(t, w.get("acme").Object["spec"])
			w.writes = 0
			next := w.settle("acme")
			s := w.status("acme", c.state, c.reason)
			if s.Message == "" || next <= 0 || c.state == StateWaiting && next > time.Minute {
				t.Errorf("%+v, next look after %s", s, next)
			}
			if got := text(t, w.get("acme").Object["spec"]); got != before {
				t.Errorf("the spec was touched:\n%s", got)
			}
			if got := w.tenants.names(); got != c.tenants || w.writes != 1 {
				t.Errorf("tenants %q, %d writes: want the status alone", got, w.writes)
			}
			for range 10 {
				w.settle("acme")
			}
			if w.writes != 1 || len(w.events) != 0 {
				t.Errorf("ten looks made %d writes, %d events", w.writes-1, len(w.events))
			}
			w.change("acme", unlabel)
			w.settle("acme")
			if a := w.get("acme").GetAnnotations()[AnnotationStatus]; a != "" {
				t.Errorf("without the label there is a status: %s", a)
			}
		})
	}
}

// TestWaitingEnds: what was awaited comes, and the control plane is connected.
func TestWaitingEnds(t *testing.T) {
	w := newWorld(t)
	w.add("acme")
	w.tenants.away = true
	w.settle("acme")
	w.status("acme", StateWaiting, reasonUnreachable)
	w.tenants.away = false
	w.settle("acme")
	w.status("acme", StateReady, reasonConnected)
}

// TestKonnectivityAddedLater: ours and the addon's would roll the control plane without end, so ours goes at once; it comes back
// when the addon goes. (Seen failing without undo: our flag stays beside the addon.)
func TestKonnectivityAddedLater(t *testing.T) {
	w := newWorld(t)
	w.add("acme")
	w.settle("acme")
	w.status("acme", StateReady, reasonConnected)
	connected := text(t, w.get("acme").Object["spec"])
	w.change("acme", setSpec("addons.konnectivity", object{}))
	w.settle("acme")
	w.status("acme", StateFailed, reasonKonnectivity)
	want := golden(t, "plain.before.yaml")
	want["addons"].(object)["konnectivity"] = object{}
	if got := text(t, w.get("acme").Object["spec"]); got != text(t, restored(want)) {
		t.Errorf("spec\n%s", got)
	}
	w.change("acme", func(obj *unstructured.Unstructured) {
		delete(obj.Object["spec"].(object)["addons"].(object), "konnectivity")
	})
	w.settle("acme")
	w.status("acme", StateReady, reasonConnected)
	if got := text(t, w.get("acme").Object["spec"]); got != connected {
		t.Errorf("spec\n%swant\n%s", got, connected)
	}
}

// TestTenantRenamed: with another name the nodes of the tenant would be lost, by an annotation: it is refused.
func TestTenantRenamed(t *testing.T) {
	w := newWorld(t)
	w.add("acme", func(o *unstructured.Unstructured) { annotate(o, AnnotationTenant, "a-co") })
	w.settle("acme")
	w.status("acme", StateReady, reasonConnected)
	w.change("acme", func(o *unstructured.Unstructured) { annotate(o, AnnotationTenant, "b-co") })
	w.settle("acme")
	if s := w.status("acme", StateFailed, reasonNameChanged); !strings.Contains(s.Message, "a-co") {
		t.Errorf("%+v", s)
	}
	if got := w.tenants.names(); got != "a-co of acme" {
		t.Errorf("tenants %s", got)
	}
	w.change("acme", func(o *unstructured.Unstructured) { annotate(o, AnnotationTenant, "a-co") })
	w.settle("acme")
	w.status("acme", StateReady, reasonConnected)
}

// TestAddressAndCAChange: the tenant follows what the administrator's Secret says.
func TestAddressAndCAChange(t *testing.T) {
	w := newWorld(t)
	w.add("acme")
	w.settle("acme")
	s := secret("acme-admin-kubeconfig", map[string][]byte{"admin.svc": w.kubeconfig("acme.tenants.svc:7443")})
	if err := w.api.Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	w.settle("acme")
	if got := w.tenants.List()[0].Address; got != "acme.tenants.svc:7443" {
		t.Errorf("the tenant is at %s", got)
	}
	if got := strings.Join(w.tenants.provisioned, " "); got != "acme acme" {
		t.Errorf("provisioned %s", got)
	}
}

// TestSchemaTooOld: a Kamaji whose schema lacks a field refuses the whole update, and its message becomes the status.
func TestSchemaTooOld(t *testing.T) {
	w := newWorld(t)
	w.add("acme")
	before := text(t, w.get("acme").Object["spec"])
	w.onWrite = func(o client.Object) error {
		if _, there := lookup(o.(*unstructured.Unstructured).Object, "spec."+fieldContainers); there {
			return apierrors.NewBadRequest(`strict decoding error: unknown field "spec.controlPlane.deployment.additionalContainers", unknown field "spec.x"`)
		}
		return nil
	}
	w.settle("acme")
	s := w.status("acme", StateFailed, reasonKamaji)
	if !strings.Contains(s.Message, "spec.controlPlane.deployment.additionalContainers, spec.x") {
		t.Errorf("%+v", s)
	}
	if got := text(t, w.get("acme").Object["spec"]); got != before {
		t.Errorf("spec\n%s", got)
	}
}

// TestConflict: somebody else's write at the same time is looked at soon, and is no error.
func TestConflict(t *testing.T) {
	w := newWorld(t)
	w.add("acme")
	w.onWrite = func(o client.Object) error {
		return apierrors.NewConflict(Kind.GroupVersion().WithResource("tenantcontrolplanes").GroupResource(), o.GetName(), errors.New("changed"))
	}
	if next, err := w.reconcile("acme"); err != nil || next != conflictPause {
		t.Errorf("%s, %v", next, err)
	}
	w.onWrite = nil
	w.settle("acme")
	w.status("acme", StateReady, reasonConnected)
}

// TestUnlabelledIsLeftAlone: no request but reads for what was never ours.
func TestUnlabelledIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.add("acme", unlabel)
	for _, value := range []string{"", "disabled", "true"} {
		w.change("acme", func(o *unstructured.Unstructured) { o.SetLabels(map[string]string{Label: value}) })
		w.settle("acme")
		if w.writes != 0 || w.tenants.names() != "" {
			t.Errorf("label %q: %d writes, tenants %s", value, w.writes, w.tenants.names())
		}
	}
}
