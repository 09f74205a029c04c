package enroll

import (
	"context"
	"fmt"
	"maps"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
)

// objects is one kind of object at an API server.
type objects[T any] interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
	Create(ctx context.Context, obj T, o metav1.CreateOptions) (T, error)
	Update(ctx context.Context, obj T, o metav1.UpdateOptions) (T, error)
}

type apiObject interface {
	metav1.Object
	runtime.Object
}

// ensure makes the object, or mends it: set puts what is ours into the copy of what is there. What is right
// already is not written.
func ensure[T apiObject](ctx context.Context, api objects[T], want T, set func(have T)) error {
	have, err := api.Get(ctx, want.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return named(want, err)
	}
	if err != nil {
		return named(want, err)
	}
	mended := have.DeepCopyObject().(T)
	labels := maps.Clone(mended.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, want.GetLabels())
	mended.SetLabels(labels)
	set(mended)
	if equality.Semantic.DeepEqual(have, mended) {
		return nil
	}
	_, err = api.Update(ctx, mended, metav1.UpdateOptions{})
	return named(want, err)
}

// named says which object an error is about.
func named(obj apiObject, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%T %s: %w", obj, obj.GetName(), err)
}

// ensureAccess makes or mends all that stands at a tenant for the broker and its nodes. Warnings name what this
// API server can't do.
func ensureAccess(ctx context.Context, client kubernetes.Interface, konnectivity bool) (warnings []string, err error) {
	// The policy first: the account never has a right that it does not bound.
	err = ensurePolicy(ctx, client)
	if noSuchKind(err) {
		warnings, err = []string{"the API server knows no ValidatingAdmissionPolicy (Kubernetes 1.30 and later do): the account may create and delete any Secret of kube-system (though read none)"}, nil
	}
	if err != nil {
		return nil, err
	}
	automount := false
	account := &corev1.ServiceAccount{ObjectMeta: ours(metav1.NamespaceSystem, accountName), AutomountServiceAccountToken: &automount}
	err = ensure(ctx, client.CoreV1().ServiceAccounts(metav1.NamespaceSystem), account, func(have *corev1.ServiceAccount) {
		have.AutomountServiceAccountToken = &automount
	})
	if err != nil {
		return nil, err
	}
	if err := ensureRoles(ctx, client, konnectivity); err != nil {
		return nil, err
	}
	return warnings, ensureBindings(ctx, client)
}

func ensurePolicy(ctx context.Context, client kubernetes.Interface) error {
	api := client.AdmissionregistrationV1()
	policy, binding := accessPolicy()
	err := ensure(ctx, api.ValidatingAdmissionPolicies(), policy, func(have *admissionv1.ValidatingAdmissionPolicy) {
		constraints := policy.Spec.MatchConstraints.DeepCopy()
		if was := have.Spec.MatchConstraints; was != nil { // defaults that the API server filled in: all namespaces, all objects
			if noSelector(was.NamespaceSelector) && noSelector(was.ObjectSelector) {
				constraints.NamespaceSelector, constraints.ObjectSelector = was.NamespaceSelector, was.ObjectSelector
			}
		}
		have.Spec = *policy.Spec.DeepCopy()
		have.Spec.MatchConstraints = constraints
	})
	if err != nil {
		return err
	}
	return ensure(ctx, api.ValidatingAdmissionPolicyBindings(), binding, func(have *admissionv1.ValidatingAdmissionPolicyBinding) {
		have.Spec = *binding.Spec.DeepCopy()
	})
}

func noSelector(s *metav1.LabelSelector) bool {
	return s == nil || len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0
}

// noSuchKind tells that the API server does not serve a kind at all, not that an object of it is not there: its
// answer then is no Status.
func noSuchKind(err error) bool {
	return apierrors.IsNotFound(err) && apierrors.IsUnexpectedServerError(err)
}

func ensureRoles(ctx context.Context, client kubernetes.Interface, konnectivity bool) error {
	api := client.RbacV1()
	roles, bound := accessRoles(konnectivity)
	for i, role := range roles {
		err := ensure(ctx, api.Roles(role.Namespace), role, func(have *rbacv1.Role) { have.Rules = role.Rules })
		if err != nil {
			return err
		}
		b := bound[i]
		bindingAPI := api.RoleBindings(b.Namespace)
		if err := ensureBound(ctx, bindingAPI, b, func(have *rbacv1.RoleBinding) *rbacv1.RoleRef { return &have.RoleRef },
			func(have *rbacv1.RoleBinding) { have.Subjects = b.Subjects }); err != nil {
			return err
		}
	}
	role, b := accessClusterRole(konnectivity)
	err := ensure(ctx, api.ClusterRoles(), role, func(have *rbacv1.ClusterRole) {
		have.Rules, have.AggregationRule = role.Rules, nil // aggregation would write the rules anew
	})
	if err != nil {
		return err
	}
	return ensureClusterBinding(ctx, client, b)
}
