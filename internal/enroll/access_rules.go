package enroll

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// accountName is the broker's ServiceAccount in kube-system, and the roles' that hold its rights.
	accountName = "mooring-broker"
	accountUser = "system:serviceaccount:" + metav1.NamespaceSystem + ":" + accountName
	clusterRole = "mooring:broker"
)

// Right is one thing that the broker may do at a tenant. Only its own account's are meant: what every
// authenticated user may (ask for its own rights, read the API's description) is not among them.
type Right struct {
	// Namespace where it holds; empty = cluster-wide.
	Namespace string `json:"namespace,omitempty"`
	APIGroup  string `json:"apiGroup,omitempty"`
	Resource  string `json:"resource"`
	// Names are the only objects that it holds for; none = all.
	Names []string `json:"names,omitempty"`
	Verbs []string `json:"verbs"`
	// Why it is needed.
	Why string `json:"why"`
}

// Rights returns all that the broker may do at a tenant: what Provision grants, and what `tenant show` prints. One of them it has only
// where agents of konnectivity are taken.
func Rights(konnectivity bool) []Right {
	const system, deflt = metav1.NamespaceSystem, metav1.NamespaceDefault
	const certs = certificatesv1.GroupName
	var bound []string
	for _, b := range bindings() {
		bound = append(bound, b.Name)
	}
	rights := []Right{
		{system, "", "secrets", nil, []string{"create", "delete"}, "bootstrap tokens of nodes; an admission policy allows no other Secret"},
		{system, "", "configmaps", []string{kubeletConfigMap}, []string{"get"}, "the base of the kubelets' configuration"},
		{system, "", "configmaps", []string{"kubeadm-config"}, []string{"get"}, "where Services have their addresses, on clusters without ServiceCIDRs"},
		{system, "", "serviceaccounts/token", []string{accountName}, []string{"create"}, "renewing its own token"},
		{deflt, "", "services", []string{"kubernetes"}, []string{"get"}, "the addresses that no kubelet may have a certificate for"},
		{deflt, "", "events", nil, []string{"create"}, "saying why a certificate request is left alone"},
		{"", "", "nodes", nil, []string{"get", "list", "watch"}, "seeing the nodes that joined, whether they are Ready, and which addresses their pods have"},
		{"", "", "services", nil, []string{"list", "watch"}, "knowing the addresses of Services"},
		{"", discoveryv1.GroupName, "endpointslices", nil, []string{"list", "watch"}, "knowing on which nodes the pods behind a Service are, and where the control plane is advertised to pods"},
		{"", "networking.k8s.io", "servicecidrs", nil, []string{"list"}, "knowing where Services have their addresses"},
		{"", certs, "certificatesigningrequests", nil, []string{"get", "list", "watch"}, "seeing what kubelets ask for"},
		{"", certs, "certificatesigningrequests/approval", nil, []string{"update"}, "approving what fits an enrolled node"},
		{"", certs, "signers", []string{certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName}, []string{"approve"}, "approving for these two signers alone"},
		{"", rbacv1.GroupName, "clusterrolebindings", bound, []string{"get"}, "seeing that the rights of nodes are there"},
	}
	if konnectivity {
		rights = append(rights, Right{"", authenticationv1.GroupName, "tokenreviews", nil, []string{"create"}, "asking whose token a konnectivity agent sends; only with konnectivity.enabled"})
	}
	return rights
}

// String is the right as a person reads it.
func (r Right) String() string {
	where := "cluster"
	if r.Namespace != "" {
		where = r.Namespace
	}
	s := fmt.Sprintf("%s: %s %s", where, strings.Join(r.Verbs, ", "), r.Resource)
	if len(r.Names) > 0 {
		s += " " + strings.Join(r.Names, ", ")
	}
	return s
}

// policyRules are the rights as RBAC has them, by namespace.
func policyRules(konnectivity bool) map[string][]rbacv1.PolicyRule {
	out := map[string][]rbacv1.PolicyRule{}
	for _, r := range Rights(konnectivity) {
		out[r.Namespace] = append(out[r.Namespace], rbacv1.PolicyRule{
			APIGroups: []string{r.APIGroup}, Resources: []string{r.Resource}, ResourceNames: r.Names, Verbs: r.Verbs,
		})
	}
	return out
}

func ours(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{managedByLabel: managedBy}}
}

// accessRoles are the Roles and RoleBindings of the account, in the order of their namespaces.
func accessRoles(konnectivity bool) (roles []*rbacv1.Role, bound []*rbacv1.RoleBinding) {
	rules := policyRules(konnectivity)
	for _, ns := range slices.Sorted(maps.Keys(rules)) {
		if ns == "" {
			continue
		}
		roles = append(roles, &rbacv1.Role{ObjectMeta: ours(ns, accountName), Rules: rules[ns]})
		bound = append(bound, &rbacv1.RoleBinding{
			ObjectMeta: ours(ns, accountName), Subjects: accountSubject(),
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: accountName},
		})
	}
	return roles, bound
}

func accessClusterRole(konnectivity bool) (*rbacv1.ClusterRole, *rbacv1.ClusterRoleBinding) {
	return &rbacv1.ClusterRole{ObjectMeta: ours("", clusterRole), Rules: policyRules(konnectivity)[""]},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: ours("", clusterRole), Subjects: accountSubject(),
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: clusterRole},
		}
}

func accountSubject() []rbacv1.Subject {
	return []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: accountName}}
}
