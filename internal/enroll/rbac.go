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

// bindings are the rights that a bare API server lacks. The roles themselves are made by every API server.
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
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{managedByLabel: managedBy}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: kind, Name: subject}},
	}
}

// ensureBindings creates or mends the bindings; what is right already is not touched.
func ensureBindings(ctx context.Context, client kubernetes.Interface) error {
	var errs []error
	for _, b := range bindings() {
		if err := ensureBinding(ctx, client, &b); err != nil {
			errs = append(errs, fmt.Errorf("ClusterRoleBinding %s: %w", b.Name, err))
		}
	}
	return errors.Join(errs...)
}

func ensureBinding(ctx context.Context, client kubernetes.Interface, want *rbacv1.ClusterRoleBinding) error {
	api := client.RbacV1().ClusterRoleBindings()
	have, err := api.Get(ctx, want.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return err
	case err != nil:
		return err
	case have.RoleRef != want.RoleRef: // immutable: only a new object will do
		if err := api.Delete(ctx, want.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &have.UID}}); err != nil {
			return err
		}
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return err
	case reflect.DeepEqual(have.Subjects, want.Subjects):
		return nil
	}
	mended := have.DeepCopy()
	mended.Subjects = want.Subjects
	_, err = api.Update(ctx, mended, metav1.UpdateOptions{})
	return err
}
