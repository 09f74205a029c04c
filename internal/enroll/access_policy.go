package enroll

import (
	"encoding/base64"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tokensOnly is what a Secret has to be for the broker to make or delete it: a bootstrap token of Mooring's
// groups, which ends by itself and signs nothing. RBAC can't say that: it knows no names of what is yet to be made.
var tokensOnly = []struct{ rule, message string }{
	{`variables.secret.type == '` + string(corev1.SecretTypeBootstrapToken) + `'`,
		"the broker's account handles bootstrap tokens only"},
	{`has(variables.secret.metadata.name) && variables.secret.metadata.name.matches('^` + bootstrapPrefix + `[a-z0-9]{6}$')`,
		"a bootstrap token is called " + bootstrapPrefix + "<id>"},
	{`has(variables.secret.data) && 'auth-extra-groups' in variables.secret.data && variables.secret.data['auth-extra-groups'].matches('` + groupsInBase64() + `')`,
		"a bootstrap token of the broker is for the groups " + bootstrapGroup + " and " + bootstrapGroup + ":<node> alone"},
	{`has(variables.secret.data) && 'expiration' in variables.secret.data && !('usage-bootstrap-signing' in variables.secret.data)`,
		"a bootstrap token of the broker ends by itself and signs nothing"},
}

// groupsInBase64 is a regular expression for the groups of one node's token as a Secret's data has them, in base64,
// which a policy's expressions can't decode. It fixes everything up to the node's hash; in that, the first, second and
// last letter of each four leave room for hexadecimal digits and a few other characters, but for no comma: there is no
// third group.
func groupsInBase64() string {
	const last = "[A-Za-z0-9+/][w-z0-5h-m]"
	fixed := bootstrapGroup + "," + bootstrapGroup + ":" // its last character, ':', begins the first four of the rest
	head := base64.StdEncoding.EncodeToString([]byte(fixed[:len(fixed)-1]))
	return "^" + strings.ReplaceAll(head, "+", "[+]") + "O[jm]" + last + "([MNOYZ][DGTWjmz2]" + last + "){10}$"
}

// accessPolicy binds what the broker's account does with Secrets, at every API server that knows the kind.
func accessPolicy() (*admissionv1.ValidatingAdmissionPolicy, *admissionv1.ValidatingAdmissionPolicyBinding) {
	fail, exact, scope := admissionv1.Fail, admissionv1.Exact, admissionv1.NamespacedScope
	p := &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: ours("", accountName),
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: &fail,
			MatchConstraints: &admissionv1.MatchResources{
				MatchPolicy: &exact,
				ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update, admissionv1.Delete},
					Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"secrets"}, Scope: &scope},
				}}},
			},
			MatchConditions: []admissionv1.MatchCondition{{Name: "broker", Expression: `request.userInfo.username == '` + accountUser + `'`}},
			Variables:       []admissionv1.Variable{{Name: "secret", Expression: `request.operation == 'DELETE' ? oldObject : object`}},
		},
	}
	reason := metav1.StatusReasonInvalid
	for _, v := range tokensOnly {
		p.Spec.Validations = append(p.Spec.Validations, admissionv1.Validation{Expression: v.rule, Message: v.message, Reason: &reason})
	}
	return p, &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: ours("", accountName),
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: accountName, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		},
	}
}
