package enroll

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	managedByLabel = "app.kubernetes.io/managed-by"
	managedBy      = "mooring"
)

// bindings are the rights of nodes and API servers that a bare API server lacks. The roles themselves are made by
// every API server.
func bindings() []rbacv1.ClusterRoleBinding {
	return []rbacv1.ClusterRoleBinding{
		// A bootstrap token may file a certificate request, and nothing else. Approval is the Approver's.
		binding("mooring:node-bootstrapper", "system:node-bootstrapper", rbacv1.GroupKind, bootstrapGroup),
		// A node renews its own client certificate with no help of ours.
		binding("mooring:selfnodeclient", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", rbacv1.GroupKind, nodesGroup),
		// The API server may use its kubelets' API: logs, exec, metrics.
		binding("mooring:kubelet-api-admin", "system:kubelet-api-admin", rbacv1.UserKind, "kube-apiserver-kubelet-client"),
	}
}

func binding(name, role, kind, subject string) rbacv1.ClusterRoleBinding {
	return rbacv1.ClusterRoleBinding{
		ObjectMeta: ours("", name),
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: kind, Name: subject}},
	}
}

// ensureBindings creates or mends the bindings; what is right already is not touched.
func ensureBindings(ctx context.Context, client kubernetes.Interface) error {
	var errs []error
	for _, b := range bindings() {
		errs = append(errs, ensureClusterBinding(ctx, client, &b))
	}
	return errors.Join(errs...)
}

func ensureClusterBinding(ctx context.Context, client kubernetes.Interface, want *rbacv1.ClusterRoleBinding) error {
	return ensureBound(ctx, client.RbacV1().ClusterRoleBindings(), want,
		func(have *rbacv1.ClusterRoleBinding) *rbacv1.RoleRef { return &have.RoleRef },
		func(have *rbacv1.ClusterRoleBinding) { have.Subjects = want.Subjects })
}

// bound is a kind of object of which a part can't change: only a new object will do.
type bound[T any] interface {
	objects[T]
	Delete(ctx context.Context, name string, o metav1.DeleteOptions) error
}

func ensureBound[T apiObject](ctx context.Context, api bound[T], want T, ref func(T) *rbacv1.RoleRef, set func(T)) error {
	have, err := api.Get(ctx, want.GetName(), metav1.GetOptions{})
	if err == nil && *ref(have) != *ref(want) {
		uid := have.GetUID()
		if err := api.Delete(ctx, want.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err != nil {
			return named(want, err)
		}
	}
	return ensure(ctx, api, want, set)
}

// checkBindings says which of the bindings are missing or not as they should be. It changes nothing.
func checkBindings(ctx context.Context, client kubernetes.Interface) error {
	for _, want := range bindings() {
		have, err := client.RbacV1().ClusterRoleBindings().Get(ctx, want.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return fmt.Errorf("%w: ClusterRoleBinding %s is missing", errMend, want.Name)
		case err != nil:
			return fmt.Errorf("ClusterRoleBinding %s: %w", want.Name, err)
		case have.RoleRef != want.RoleRef || !reflect.DeepEqual(have.Subjects, want.Subjects):
			return fmt.Errorf("%w: ClusterRoleBinding %s was changed", errMend, want.Name)
		}
	}
	return nil
}

// errMend marks what an administrator's access is needed for.
var errMend = errors.New("what stands at the tenant for the broker and its nodes is not whole")
