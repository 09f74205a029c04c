package kamaji

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
)

const (
	// lookEvery is how often a control plane is looked at though nothing was heard of it: its Secrets are not watched, so
	// that the broker needs no right to list them. Changes of what Kamaji makes show in the object's status.
	lookEvery = 10 * time.Minute
	// waitEvery is the same while something is awaited.
	waitEvery = 10 * time.Second
	// conflictPause is that after somebody else's write.
	conflictPause = 200 * time.Millisecond
)

// errBehind says that the cache has another object than there is; what is newer is on the way.
var errBehind = errors.New("the cache is behind")

// Reconcile looks at one control plane. It may run for many at once, but for one object once at a time.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	defer c.metrics.looks.Inc()
	obj := newObject()
	err := c.client.Get(ctx, req.NamespacedName, obj)
	var next time.Duration
	switch {
	case apierrors.IsNotFound(err):
		err = c.gone(ctx, req.NamespacedName)
	case err != nil:
	case obj.GetDeletionTimestamp() != nil:
		c.metrics.forget(req.NamespacedName)
		err = c.removeTenants(ctx, req.NamespacedName, obj.GetUID()) // the rest goes with the object
	case obj.GetLabels()[Label] != LabelEnabled:
		err = c.disconnect(ctx, obj)
	default:
		next, err = c.connect(ctx, obj)
	}
	if apierrors.IsConflict(err) || errors.Is(err, errBehind) {
		return reconcile.Result{RequeueAfter: conflictPause}, nil
	}
	return reconcile.Result{RequeueAfter: next}, err
}

// gone removes the tenant of an object that is no more. The cache's word is not enough for that.
func (c *Controller) gone(ctx context.Context, key types.NamespacedName) error {
	c.metrics.forget(key)
	if len(c.owned(key)) == 0 {
		return nil
	}
	err := c.live.Get(ctx, key, newObject())
	if err == nil {
		return nil // it has come back, and its event is on the way
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("look whether %s is gone: %w", key, err)
	}
	return c.removeTenants(ctx, key, "")
}

// removeTenants removes those of the object with this UID; an empty one stands for any.
func (c *Controller) removeTenants(ctx context.Context, key types.NamespacedName, uid types.UID) error {
	var errs []error
	for _, t := range c.owned(key) {
		if uid != "" && t.Owner.UID != string(uid) {
			continue // of another object of the name, which may live: the cache is behind
		}
		c.cfg.Logger.Info("the control plane is gone, removing its tenant", "tenant", t.Name, "object", key)
		errs = append(errs, c.cfg.Tenants.Remove(ctx, t.Name, t.Owner))
	}
	return errors.Join(errs...)
}

// disconnect takes back what was done to an object that is not labelled (any more). It may be cut short anywhere, and be done
// again.
func (c *Controller) disconnect(ctx context.Context, obj *unstructured.Unstructured) error {
	key := client.ObjectKeyFromObject(obj)
	c.metrics.forget(key)
	_, record := obj.GetAnnotations()[annotationApplied]
	_, status := obj.GetAnnotations()[AnnotationStatus]
	if !record && !status && len(c.owned(key)) == 0 {
		return nil
	}
	if err := c.live.Get(ctx, key, obj); err != nil {
		return client.IgnoreNotFound(err)
	}
	if obj.GetLabels()[Label] == LabelEnabled {
		return nil // again, and its event is on the way
	}
	want := obj.DeepCopy()
	if err := c.takeOut(want); err != nil {
		return err
	}
	annotate(want, AnnotationStatus, "")
	if err := c.update(ctx, obj, want); err != nil {
		return err
	}
	if err := c.deleteObjects(ctx, key); err != nil {
		return err
	}
	if err := c.removeTenants(ctx, key, ""); err != nil {
		return err
	}
	c.say(want, Status{State: StateReady, Reason: reasonDisconnected, Message: "the label is gone: what Mooring had put in was taken out, and its tenant removed"})
	return nil
}

// takeOut restores the spec. An object whose record is lost with the fields that it told of (kubectl replace) still needs
// its flags dropped.
func (c *Controller) takeOut(obj *unstructured.Unstructured) error {
	was, err := readRecord(obj.GetAnnotations())
	if err != nil {
		return err
	}
	spec, err := specOf(obj)
	if err != nil {
		return err
	}
	if was != nil {
		restore(spec, *was)
	} else if len(c.owned(client.ObjectKeyFromObject(obj))) > 0 {
		dropFlags(spec)
	}
	annotate(obj, annotationApplied, "")
	return nil
}

// connect does what is to be done, and says when to look again.
func (c *Controller) connect(ctx context.Context, obj *unstructured.Unstructured) (time.Duration, error) {
	want := obj.DeepCopy()
	status, renewal, err := c.connected(ctx, obj, want)
	if err == nil {
		err = c.setStatus(ctx, obj, want, status)
		if t, ok := asTrouble(err); ok { // the API server refused: nothing was changed
			err = t
		}
	}
	t, ok := asTrouble(err)
	if !ok {
		if err == nil {
			c.metrics.set(client.ObjectKeyFromObject(obj), StateReady)
		}
		return min(renewal, spread(lookEvery)), err
	}
	c.metrics.set(client.ObjectKeyFromObject(obj), t.state)
	want = obj.DeepCopy()
	if t.undo {
		if err := c.takeOut(want); err != nil {
			return 0, err
		}
	}
	before := readStatus(obj.GetAnnotations())
	if before.Reason != t.reason || before.Message != t.message {
		c.cfg.Logger.Warn("a labelled control plane is not connected", "object", client.ObjectKeyFromObject(obj), "reason", t.reason, "err", t)
	}
	next := spread(lookEvery)
	if t.state == StateWaiting || t.reason == reasonNameTaken {
		next = spread(waitEvery)
	}
	return next, c.setStatus(ctx, obj, want, Status{State: t.state, Reason: t.reason, Message: t.message, Tenant: before.Tenant})
}

// connected makes everything but the update of the object, which it leaves in want; nothing is touched before all that can be
// seen to be wrong was looked at. renewal is when the identity is to be renewed.
func (c *Controller) connected(ctx context.Context, obj, want *unstructured.Unstructured) (_ Status, renewal time.Duration, _ error) {
	name, err := c.tenantName(obj)
	if err != nil {
		return Status{}, 0, err
	}
	was, err := readRecord(obj.GetAnnotations())
	if err != nil {
		return Status{}, 0, err
	}
	spec, err := specOf(want)
	if err != nil {
		return Status{}, 0, err
	}
	p := newPlan(obj.GetName(), c.cfg.Image, c.frontName(name), c.config)
	if t := check(spec, p, was); t != nil {
		return Status{}, 0, t
	}
	kubeconfig, err := c.kubeconfig(ctx, obj)
	if err != nil {
		return Status{}, 0, err
	}
	t, err := c.ensureTenant(ctx, obj, name, kubeconfig)
	if err != nil {
		return Status{}, 0, err
	}
	if renewal, err = c.ensureIdentity(ctx, obj, t); err != nil {
		return Status{}, 0, err
	}
	if err := c.ensureConfig(ctx, obj); err != nil {
		return Status{}, 0, err
	}
	now := apply(spec, p, was)
	text, err := now.encode()
	if err != nil {
		return Status{}, 0, err
	}
	annotate(want, annotationApplied, text)
	return Status{State: StateReady, Reason: reasonConnected, Tenant: name, Message: "connected as tenant " + name + " at " + c.cfg.BrokerEndpoint}, renewal, nil
}

// tenantName is what the control plane is called at the broker. It stays what it was: with another name its nodes would go.
func (c *Controller) tenantName(obj *unstructured.Unstructured) (string, error) {
	name := obj.GetAnnotations()[AnnotationTenant]
	if name == "" {
		name = obj.GetName()
	}
	if err := pki.ValidTenant(name); err != nil {
		return "", failed(reasonNameInvalid, "%v: set the annotation %s", err, AnnotationTenant)
	}
	for _, t := range c.owned(client.ObjectKeyFromObject(obj)) {
		if t.Name != name && t.Owner.UID == string(obj.GetUID()) {
			return "", failed(reasonNameChanged, "it is tenant %s, with nodes that would be lost, and the annotation %s now says %s: set it back, or remove the label first", t.Name, AnnotationTenant, name)
		}
	}
	return name, nil
}

// removeFormer removes the tenants of objects of the same name that are no more: if it is mine that is there, and not one of them.
// The cache's word is not enough for that.
func (c *Controller) removeFormer(ctx context.Context, key types.NamespacedName, mine tenant.Owner) error {
	looked := false
	for _, t := range c.owned(key) {
		if t.Owner == mine {
			continue
		}
		if !looked {
			now := newObject()
			if err := c.live.Get(ctx, key, now); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("look which %s there is: %w", key, err)
			} else if err != nil || owner(key, now.GetUID()) != mine {
				return errBehind
			}
			looked = true
		}
		if err := c.cfg.Tenants.Remove(ctx, t.Name, t.Owner); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) ensureTenant(ctx context.Context, obj *unstructured.Unstructured, name string, kubeconfig []byte) (tenant.Tenant, error) {
	key := client.ObjectKeyFromObject(obj)
	mine := owner(key, obj.GetUID())
	if err := c.removeFormer(ctx, key, mine); err != nil {
		return tenant.Tenant{}, err
	}
	admin, err := tenant.FromKubeconfig(name, kubeconfig)
	if err != nil {
		return admin, waiting(reasonBadKubeconfig, "the key %s of its administrator's Secret can't be used: %v", keyKubeconfig, err)
	}
	admin.Owner = mine
	t, err := c.cfg.Tenants.Ensure(ctx, admin)
	switch {
	case errors.Is(err, tenant.ErrExists):
		return t, failed(reasonNameTaken, "the broker has a tenant %s that is not of this object: set another name in the annotation %s", name, AnnotationTenant)
	case errors.Is(err, ErrUnreachable):
		t := waiting(reasonUnreachable, "its API server does not let the broker make its account there; the broker tries again, and its log says why")
		t.err = err
		return tenant.Tenant{}, t
	}
	return t, err
}

// kubeconfig is the administrator's of the control plane, by its address in the cluster.
func (c *Controller) kubeconfig(ctx context.Context, obj *unstructured.Unstructured) ([]byte, error) {
	name, _, _ := unstructured.NestedString(obj.Object, "status", "kubeconfig", "admin", "secretName")
	if name == "" {
		return nil, waiting(reasonNoKubeconfig, "Kamaji has not made its administrator's kubeconfig yet")
	}
	ca, _, _ := unstructured.NestedString(obj.Object, "status", "certificates", "ca", "secretName")
	if ca == "" {
		return nil, waiting(reasonNoCA, "Kamaji has not made its CA yet")
	}
	there := &metav1.PartialObjectMetadata{} // the key in it is none of the broker's business
	there.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	err := c.live.Get(ctx, types.NamespacedName{Namespace: obj.GetNamespace(), Name: ca}, there)
	if apierrors.IsNotFound(err) {
		return nil, waiting(reasonNoCA, "its CA's Secret %s is not there: Kamaji makes it", ca)
	}
	if err != nil {
		return nil, fmt.Errorf("look for Secret %s: %w", ca, err)
	}
	var secret corev1.Secret
	err = c.live.Get(ctx, types.NamespacedName{Namespace: obj.GetNamespace(), Name: name}, &secret)
	switch {
	case apierrors.IsNotFound(err):
		return nil, waiting(reasonNoKubeconfig, "its administrator's Secret %s is not there: Kamaji makes it", name)
	case err != nil:
		return nil, fmt.Errorf("read Secret %s: %w", name, err)
	case len(secret.Data[keyKubeconfig]) == 0:
		return nil, waiting(reasonNoKubeconfig, "its administrator's Secret %s has no key %s, which Kamaji v1.0.0 and later make", name, keyKubeconfig)
	}
	return secret.Data[keyKubeconfig], nil
}

// spread keeps many control planes from being looked at in the same moment.
func spread(d time.Duration) time.Duration { return d*9/10 + rand.N(d/5) }

func newObject() *unstructured.Unstructured {
	obj := &unstructured.Unstructured{}
	obj.SetGroupVersionKind(Kind)
	return obj
}
