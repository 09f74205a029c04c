package kamaji

import (
	"crypto/sha256"
	"encoding/hex"

	"sigs.k8s.io/yaml"
)

// Protocols that the API server may speak to the sidecar.
const (
	HTTPConnect = "HTTPConnect"
	GRPC        = "GRPC"
)

// plan is what is to be in a control plane's spec. It depends on the configuration and the object's name only.
type plan struct {
	args       []string
	volumes    []any
	mounts     []any // of the API server
	containers []any
	addresses  []any
	sans       []any
	hash       string
}

type object = map[string]any

// newPlan makes the plan for one control plane. front is its name on the public port; empty = none.
func newPlan(name, image, front, config string) plan {
	p := plan{
		args: []string{
			flagEgress + "=" + pathConfig + "/" + configFile,
			flagKubeletCA + "=" + kubeletCA,
		},
		volumes: []any{
			object{"name": volumeIdentity, "secret": object{"secretName": objectName(name)}},
			object{"name": volumeConfig, "configMap": object{"name": objectName(name)}},
			object{"name": volumeSocket, "emptyDir": object{}},
		},
		mounts: []any{
			object{"name": volumeConfig, "mountPath": pathConfig, "readOnly": true},
			object{"name": volumeSocket, "mountPath": pathSocket},
		},
		containers: []any{sidecar(image)},
		addresses:  addressTypes(),
		hash:       hash(config),
	}
	if front != "" {
		p.sans = []any{front}
	}
	return p
}

// addressTypes have nodes asked for by name, so that sites may share addresses.
func addressTypes() []any { return []any{"Hostname", "InternalIP"} }

// sidecar is the container. Kamaji reads and writes these objects by its Go types, which know resources as a field that is
// always there: so it is set. All else that has a default is left to the Deployment.
func sidecar(image string) object {
	return object{
		"name":            containerName,
		"image":           image,
		"imagePullPolicy": "IfNotPresent",
		"args":            []any{"egress-proxy", "--dir", pathIdentity, "--socket", socket},
		"resources":       object{"requests": object{"cpu": "10m", "memory": "32Mi"}},
		"securityContext": object{
			"allowPrivilegeEscalation": false,
			"readOnlyRootFilesystem":   true,
			"capabilities":             object{"drop": []any{"ALL"}},
		},
		"volumeMounts": []any{
			object{"name": volumeIdentity, "mountPath": pathIdentity, "readOnly": true},
			object{"name": volumeSocket, "mountPath": pathSocket},
		},
	}
}

// egressSelector is the API server's EgressSelectorConfiguration: everything for the cluster goes to the sidecar's socket,
// which takes both protocols.
func egressSelector(protocol string) (string, error) {
	out, err := yaml.Marshal(object{
		"apiVersion": "apiserver.k8s.io/v1beta1",
		"kind":       "EgressSelectorConfiguration",
		"egressSelections": []object{{
			"name": "cluster",
			"connection": object{
				"proxyProtocol": protocol,
				"transport":     object{"uds": object{"udsName": socket}},
			},
		}},
	})
	return string(out), err
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
