package kamaji

import "k8s.io/apimachinery/pkg/runtime/schema"

// What users and this package write on a TenantControlPlane.
const (
	// Label with the value LabelEnabled connects a control plane.
	Label        = "mooring.dev/broker"
	LabelEnabled = "enabled"
	// AnnotationTenant is the broker's name for it; default: the object's.
	AnnotationTenant = "mooring.dev/tenant"
	// AnnotationStatus says how it stands, as JSON; see Status.
	AnnotationStatus = "mooring.dev/status"
	// annotationApplied is the record of what is in the spec by our doing.
	annotationApplied = "mooring.dev/applied"
	// annotationHash is on the control plane's pods: a change of what they read only at their start rolls them.
	annotationHash = "mooring.dev/egress-config"
)

// Kind is what is watched.
var Kind = schema.GroupVersionKind{Group: "kamaji.clastix.io", Version: "v1alpha1", Kind: "TenantControlPlane"}

// Names in the control plane's pod. Kamaji's own konnectivity-uds, egress-selector-configuration and
// konnectivity-server-kubeconfig are not to be met.
const (
	containerName  = "mooring-egress"
	volumeIdentity = "mooring-identity"
	volumeConfig   = "mooring-config"
	volumeSocket   = "mooring-socket"

	pathIdentity = "/etc/mooring/identity" // in the sidecar
	pathConfig   = "/etc/mooring"          // in the API server
	pathSocket   = "/run/mooring"          // in both
	socket       = pathSocket + "/egress.sock"
	configFile   = "egress-selector.yaml"

	flagEgress    = "--egress-selector-config-file"
	flagKubeletCA = "--kubelet-certificate-authority"
	flagAddresses = "--kubelet-preferred-address-types"
	kubeletCA     = "/etc/kubernetes/pki/ca.crt" // where Kamaji mounts the tenant's CA
)

// Keys of the identity's Secret: the directory that `broker egress-proxy --dir` reads.
const (
	keyCert   = "client.crt"
	keyKey    = "client.key"
	keyCA     = "ca.crt"
	keyBroker = "broker"
)

// keyKubeconfig is the key of Kamaji's Secret whose kubeconfig has the address in the cluster.
const keyKubeconfig = "admin.svc"

// objectName names the Secret and the ConfigMap of a control plane, in its namespace.
func objectName(tcp string) string { return tcp + "-mooring" }
