package kamaji

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// identityLife is that of the client certificate. It is renewed after two thirds, and whenever the CA is another; the sidecar
// takes the new one without a restart.
const identityLife = 7 * 24 * time.Hour

const (
	labelManagedBy = "app.kubernetes.io/managed-by"
	managedBy      = "mooring"
)

// ensureIdentity sees that the Secret holds an identity that is good for a while, and says for how long.
func (c *Controller) ensureIdentity(ctx context.Context, obj *unstructured.Unstructured, t tenant.Tenant) (time.Duration, error) {
	var have corev1.Secret
	there, err := c.find(ctx, obj, &have)
	if err != nil {
		return 0, err
	}
	want := have.DeepCopy()
	c.dress(obj, want, there)
	if want.Data == nil {
		want.Data = map[string][]byte{}
	}
	ring := c.cfg.Keyring()
	renewal := c.renewAt(have.Data, t, ring)
	if !c.cfg.Now().Before(renewal) {
		cert, key, err := c.cfg.Issue(ctx, t.Name, identityLife)
		if err != nil {
			return 0, fmt.Errorf("issue the identity of tenant %s: %w", t.Name, err)
		}
		want.Data[keyCert], want.Data[keyKey] = cert, key
		if renewal = c.renewAt(want.Data, t, ring); !c.cfg.Now().Before(renewal) {
			return 0, fmt.Errorf("the identity of tenant %s is due again as soon as it is issued: is the broker's clock right?", t.Name)
		}
		c.cfg.Logger.Info("identity of a control plane issued", "tenant", t.Name, "object", client.ObjectKeyFromObject(obj), "renewal", renewal)
	}
	want.Data[keyCA] = ring.BundlePEM()
	want.Data[keyBroker] = []byte(c.cfg.BrokerEndpoint + "\n")
	return renewal.Sub(c.cfg.Now()), c.put(ctx, &have, want, there)
}

// renewAt is when the identity is to be renewed; the zero time if it is of no use.
func (c *Controller) renewAt(data map[string][]byte, t tenant.Tenant, ring *pki.Keyring) time.Time {
	pair, err := tls.X509KeyPair(data[keyCert], data[keyKey])
	if err != nil {
		return time.Time{}
	}
	cert := pair.Leaf
	id, err := pki.ParseIdentity(cert)
	if err != nil || id.Role != pki.RoleAPIServer || id.Tenant != t.Name || id.TrustDomain != ring.TrustDomain() {
		return time.Time{}
	}
	// Only the issuer of the moment: its predecessor is about to be retired.
	opts := x509.VerifyOptions{Roots: ring.Issuer().Pool(), CurrentTime: c.cfg.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := cert.Verify(opts); err != nil {
		return time.Time{}
	}
	begin := cert.NotBefore.Add(pki.Backdate)
	if begin.Before(t.CreatedAt.Truncate(time.Second)) {
		return time.Time{} // that of a former tenant of this name
	}
	return begin.Add(cert.NotAfter.Sub(begin) * 2 / 3)
}

// ensureConfig sees that the ConfigMap holds the API server's egress configuration.
func (c *Controller) ensureConfig(ctx context.Context, obj *unstructured.Unstructured) error {
	var have corev1.ConfigMap
	there, err := c.find(ctx, obj, &have)
	if err != nil {
		return err
	}
	want := have.DeepCopy()
	c.dress(obj, want, there)
	want.Data = map[string]string{configFile: c.config}
	return c.put(ctx, &have, want, there)
}

// find reads the object's Secret or ConfigMap. One that is not ours is not taken.
func (c *Controller) find(ctx context.Context, obj *unstructured.Unstructured, into client.Object) (there bool, err error) {
	key := types.NamespacedName{Namespace: obj.GetNamespace(), Name: objectName(obj.GetName())}
	err = c.live.Get(ctx, key, into)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read %T %s: %w", into, key, err)
	case into.GetLabels()[labelManagedBy] != managedBy:
		return false, failed(reasonForeignObjects, "there is a %s %s that is not Mooring's: rename or delete it", kindOf(into), key.Name)
	}
	return true, nil
}

func kindOf(o client.Object) string {
	if _, ok := o.(*corev1.Secret); ok {
		return "Secret"
	}
	return "ConfigMap"
}

// dress names what is to be written, and has it go with the control plane.
func (c *Controller) dress(obj *unstructured.Unstructured, want client.Object, there bool) {
	if !there {
		want.SetNamespace(obj.GetNamespace())
		want.SetName(objectName(obj.GetName()))
	}
	labels := maps.Clone(want.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	labels[labelManagedBy] = managedBy
	want.SetLabels(labels)
	want.SetOwnerReferences([]metav1.OwnerReference{{
		APIVersion: Kind.GroupVersion().String(), Kind: Kind.Kind, Name: obj.GetName(), UID: obj.GetUID(),
	}})
}

// put writes it, if it is new.
func (c *Controller) put(ctx context.Context, have, want client.Object, there bool) error {
	var err error
	switch {
	case !there:
		err = c.client.Create(ctx, want)
		if apierrors.IsAlreadyExists(err) {
			return apierrors.NewConflict(corev1.Resource(kindOf(want)), want.GetName(), err) // made meanwhile: look again
		}
	case equality.Semantic.DeepEqual(have, want):
		return nil
	default:
		err = c.client.Update(ctx, want)
	}
	if err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("write %s %s/%s: %w", kindOf(want), want.GetNamespace(), want.GetName(), err)
	}
	if err == nil {
		c.metrics.updates.Inc()
	}
	return err
}

// deleteObjects deletes the Secret and the ConfigMap, if they are ours.
func (c *Controller) deleteObjects(ctx context.Context, key types.NamespacedName) error {
	for _, o := range []client.Object{&corev1.Secret{}, &corev1.ConfigMap{}} {
		err := c.live.Get(ctx, types.NamespacedName{Namespace: key.Namespace, Name: objectName(key.Name)}, o)
		if err == nil && o.GetLabels()[labelManagedBy] == managedBy {
			uid := o.GetUID()
			err = c.client.Delete(ctx, o, client.Preconditions{UID: &uid})
		}
		if err := client.IgnoreNotFound(err); err != nil {
			return fmt.Errorf("delete %s %s: %w", kindOf(o), objectName(key.Name), err)
		}
	}
	return nil
}
