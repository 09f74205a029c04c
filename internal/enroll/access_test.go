package enroll

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/kubetest"
	"github.com/mooring-edge/mooring/internal/tenant"
)

func adminTenant(t *testing.T, api *kubetest.Server) tenant.Tenant {
	t.Helper()
	adm, err := tenant.FromKubeconfig("acme", []byte(api.Kubeconfig()))
	if err != nil {
		t.Fatal(err)
	}
	return adm
}

func provision(t *testing.T, api *kubetest.Server) tenant.Tenant {
	t.Helper()
	got, err := NewAccess(AccessConfig{Logger: discard}).Provision(t.Context(), adminTenant(t, api))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

const (
	rbacPath    = "/apis/rbac.authorization.k8s.io/v1/"
	policyPath  = "/apis/admissionregistration.k8s.io/v1/"
	accountPath = "/api/v1/namespaces/kube-system/serviceaccounts/mooring-broker"
)

// accessPaths are all objects that Provision makes.
var accessPaths = []string{
	accountPath,
	policyPath + "validatingadmissionpolicies/mooring-broker",
	policyPath + "validatingadmissionpolicybindings/mooring-broker",
	rbacPath + "clusterrolebindings/mooring:broker",
	rbacPath + "clusterrolebindings/mooring:kubelet-api-admin",
	rbacPath + "clusterrolebindings/mooring:node-bootstrapper",
	rbacPath + "clusterrolebindings/mooring:selfnodeclient",
	rbacPath + "clusterroles/mooring:broker",
	rbacPath + "namespaces/default/rolebindings/mooring-broker",
	rbacPath + "namespaces/default/roles/mooring-broker",
	rbacPath + "namespaces/kube-system/rolebindings/mooring-broker",
	rbacPath + "namespaces/kube-system/roles/mooring-broker",
}

func TestProvision(t *testing.T) {
	api := kubetest.New(t)
	adm := adminTenant(t, api)
	before := time.Now()
	got := provision(t, api)
	if got.Access.Account != "system:serviceaccount:kube-system:mooring-broker" || len(got.Access.Warnings) > 0 {
		t.Errorf("access %+v", got.Access)
	}
	if life := got.Access.Expires.Sub(got.Access.Issued); life < 89*24*time.Hour || got.Access.Issued.Before(before.Add(-time.Second)) {
		t.Errorf("token issued %s, ends %s; want 90 days", got.Access.Issued, got.Access.Expires)
	}
	if got.Address != adm.Address || got.ServerName != adm.ServerName || string(got.CA) != string(adm.CA) || !got.CreatedAt.Equal(adm.CreatedAt) {
		t.Errorf("tenant %+v, of %+v", got, adm)
	}
	record, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(got.Kubeconfig), api.AdminToken()) || strings.Contains(string(record), api.AdminToken()) {
		t.Error("the administrator's token is in the tenant")
	}
	paths := api.Paths("/")
	if !slices.Equal(paths, accessPaths) {
		t.Errorf("objects at the tenant:\n%s", strings.Join(paths, "\n"))
	}
	for _, p := range paths {
		labels, _ := api.Object(p)["metadata"].(map[string]any)["labels"].(map[string]any)
		if labels["app.kubernetes.io/managed-by"] != "mooring" {
			t.Errorf("%s is not labelled: %v", p, labels)
		}
	}
	// Again: nothing is written that is right.
	n := len(api.Requests())
	provision(t, api)
	for _, r := range api.Requests()[n:] {
		if !strings.HasPrefix(r, "GET ") && !strings.Contains(r, "/token ") && !strings.Contains(r, "/secrets ") {
			t.Errorf("%s, though all is right", r)
		}
	}
}

func TestProvisionMends(t *testing.T) {
	api := kubetest.New(t)
	provision(t, api)
	want := map[string]string{}
	shape := func(p string) string {
		o := api.Object(p)
		b, err := json.Marshal(map[string]any{"rules": o["rules"], "roleRef": o["roleRef"], "subjects": o["subjects"], "spec": o["spec"], "automount": o["automountServiceAccountToken"]})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, p := range accessPaths {
		want[p] = shape(p)
	}
	const all = `[{"apiGroups":["*"],"resources":["*"],"verbs":["*"]}]`
	for p, o := range map[string]string{
		accessPaths[0]: `{"metadata":{"name":"mooring-broker"},"automountServiceAccountToken":true}`,
		accessPaths[1]: `{"metadata":{"name":"mooring-broker"},"spec":{"failurePolicy":"Ignore","validations":[{"expression":"true"}]}}`,
		accessPaths[2]: "",
		accessPaths[3]: `{"metadata":{"name":"mooring:broker"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"}}`,
		accessPaths[7]: `{"metadata":{"name":"mooring:broker"},"aggregationRule":{"clusterRoleSelectors":[{}]},"rules":` + all + `}`,
		accessPaths[8]: `{"metadata":{"name":"mooring-broker"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"other"}}`,
		accessPaths[9]: `{"metadata":{"name":"mooring-broker"},"rules":` + all + `}`,
	} {
		api.Put(p, o)
	}
	provision(t, api)
	for _, p := range accessPaths {
		if got := shape(p); got != want[p] {
			t.Errorf("%s was not mended: %s\nwant %s", p, got, want[p])
		}
	}
	if api.Object(accessPaths[7])["aggregationRule"] != nil {
		t.Error("the ClusterRole is still aggregated from others")
	}
}

// The rights are a list that is to be read: a change of it is a change here.
func TestRightsAreThese(t *testing.T) {
	want := []string{
		"kube-system: create, delete secrets",
		"kube-system: get configmaps kubelet-config",
		"kube-system: get configmaps kubeadm-config",
		"kube-system: create serviceaccounts/token mooring-broker",
		"default: get services kubernetes",
		"default: create events",
		"cluster: get, list, watch nodes",
		"cluster: list, watch services",
		"cluster: list, watch endpointslices",
		"cluster: list servicecidrs",
		"cluster: get, list, watch certificatesigningrequests",
		"cluster: update certificatesigningrequests/approval",
		"cluster: approve signers kubernetes.io/kube-apiserver-client-kubelet, kubernetes.io/kubelet-serving",
		"cluster: get clusterrolebindings mooring:node-bootstrapper, mooring:selfnodeclient, mooring:kubelet-api-admin",
		"cluster: create tokenreviews",
	}
	var got []string
	for _, r := range Rights(true) {
		got = append(got, r.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("rights:\n%s", strings.Join(got, "\n"))
	}
	if !slices.EqualFunc(Rights(false), want[:len(want)-1], func(r Right, text string) bool { return r.String() == text }) {
		t.Errorf("rights without konnectivity: %v", Rights(false))
	}
	rules := policyRules(true)
	if n := len(rules[""]) + len(rules["default"]) + len(rules["kube-system"]); n != len(want) || len(rules) != 3 {
		t.Errorf("%d rules in %d namespaces, want %d in 3", n, len(rules), len(want))
	}
}

func TestGroupsInBase64(t *testing.T) {
	pattern, err := regexp.Compile(groupsInBase64())
	if err != nil {
		t.Fatal(err)
	}
	matches := func(groups string) bool {
		return pattern.MatchString(base64.StdEncoding.EncodeToString([]byte(groups)))
	}
	for i := range 2000 {
		s := bootstrapSecret(fmt.Sprint("edge-", i), "abcdef", "x", time.Now())
		if groups := s.StringData["auth-extra-groups"]; !matches(groups) {
			t.Fatalf("the policy would refuse %q", groups)
		}
	}
	const ours, hash = "system:bootstrappers:mooring", "0123456789abcdef0123456789abcdef"
	for _, groups := range []string{
		"", ours, ours + "," + ours, ours + "," + ours + ":", ours + ":" + hash, ours + "," + ours + ":" + hash[:31], ours + "," + ours + ":" + hash + "0",
		"system:bootstrappers:kubeadm:default-node-token", ours + "," + ours + ":" + hash + ",system:bootstrappers:x",
		"system:bootstrappers:kubeadm," + ours + ":" + hash, ours + "," + ours + "X" + hash, ours + "," + ours + ":0123456789ABCDEF0123456789ABCDEF",
	} {
		if matches(groups) {
			t.Errorf("the policy would pass %q", groups)
		}
	}
	for i := range hash { // a third group, wherever it begins
		if groups := ours + "," + ours + ":" + hash[:i] + "," + hash[i+1:]; matches(groups) {
			t.Errorf("the policy would pass %q", groups)
		}
	}
}

func TestProvisionOlderAPIServer(t *testing.T) {
	api := kubetest.New(t)
	api.ForgetPolicies()
	got := provision(t, api)
	if len(got.Access.Warnings) != 1 || !strings.Contains(got.Access.Warnings[0], "ValidatingAdmissionPolicy") {
		t.Errorf("warnings %q, want one about the policy", got.Access.Warnings)
	}
}

func TestProvisionFails(t *testing.T) {
	api := kubetest.New(t)
	adm := adminTenant(t, api)
	forged, err := adm.WithToken("nonsense", tenant.Access{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewAccess(AccessConfig{Logger: discard}).Provision(t.Context(), forged)
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "credentials are not accepted") {
		t.Errorf("a token that is nobody's: %v", err)
	}
	other := kubetest.Start()
	adm = adminTenant(t, other)
	other.Close()
	_, err = NewAccess(AccessConfig{Logger: discard}).Provision(t.Context(), adm)
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "see that it runs") || !strings.Contains(err.Error(), adm.Address) {
		t.Errorf("away: %v", err)
	}
}
