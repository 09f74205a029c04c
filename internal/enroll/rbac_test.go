package enroll

import (
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

func TestEnsureBindings(t *testing.T) {
	wrongRole := binding("mooring:selfnodeclient", "cluster-admin", rbacv1.GroupKind, nodesGroup)
	wrongSubject := binding("mooring:kubelet-api-admin", "system:kubelet-api-admin", rbacv1.GroupKind, "system:authenticated")
	client := fake.NewClientset(&wrongRole, &wrongSubject)
	for range 2 {
		if err := ensureBindings(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	got := bindingsOf(t, client)
	for _, want := range bindings() {
		b := got[want.Name]
		if b.RoleRef != want.RoleRef || !slices.Equal(b.Subjects, want.Subjects) {
			t.Errorf("%s is %+v %+v", want.Name, b.RoleRef, b.Subjects)
		}
	}
	if err := checkBindings(t.Context(), client); err != nil {
		t.Error(err)
	}
	client.ClearActions()
	if err := ensureBindings(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	for _, a := range client.Actions() {
		if a.GetVerb() != "get" {
			t.Errorf("%s %s though all is right", a.GetVerb(), a.GetResource().Resource)
		}
	}
}

func bindingsOf(t *testing.T, client kubernetes.Interface) map[string]rbacv1.ClusterRoleBinding {
	t.Helper()
	l, err := client.RbacV1().ClusterRoleBindings().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]rbacv1.ClusterRoleBinding{}
	for _, b := range l.Items {
		out[b.Name] = b
	}
	return out
}
