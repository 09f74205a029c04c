package enroll

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	kubeletapis "k8s.io/kubelet/pkg/apis"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

const (
	maxLabels = 64
	maxTaints = 32
)

// nodeNameFromHostname makes a node name of what the box calls itself, as a kubelet does: trimmed and in lower
// case. It mends nothing else: a name that was guessed is one that nobody looks for.
func nodeNameFromHostname(hostname string) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(hostname)), ".")
	if name == "" {
		return "", errors.New("the box has no hostname to name the node by: set one, or set node.name in the agent's configuration, or use a token that fixes the name")
	}
	if err := validNodeName(name); err != nil {
		return "", fmt.Errorf("hostname %q can't name a node: %w: change it, or set node.name in the agent's configuration, or use a token that fixes the name", hostname, err)
	}
	return name, nil
}

// validNodeName refuses what is no node name, and names that the cluster gives to something else: the node gets
// a serving certificate for its name from the CA that the whole cluster trusts.
func validNodeName(name string) error {
	if err := pki.ValidNode(name); err != nil {
		return err
	}
	if name == "localhost" || strings.HasPrefix(name, "localhost.") || strings.HasSuffix(name, ".localhost") {
		return errors.New("the name means every machine itself")
	}
	first, _, _ := strings.Cut(name, ".")
	if first == "kubernetes" || strings.HasSuffix(name, ".svc") || strings.Contains(name, ".svc.") || strings.HasSuffix(name, ".cluster.local") {
		return errors.New("the name is one of a service in the cluster")
	}
	// A name that reads as an address would be dialled as one.
	if last := name[strings.LastIndexByte(name, '.')+1:]; strings.Trim(last, "0123456789") == "" && strings.Contains(name, ".") {
		return errors.New("the name reads as an IP address")
	}
	return nil
}

// validLabels reports every label that is malformed, or that the API server would not let a kubelet set on its
// own node: the kubelet would refuse to start with it.
func validLabels(labels map[string]string) error {
	var errs []error
	if len(labels) > maxLabels {
		errs = append(errs, fmt.Errorf("%d labels, at most %d are taken", len(labels), maxLabels))
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		for _, msg := range validation.IsQualifiedName(k) {
			errs = append(errs, fmt.Errorf("label %q: %s", k, msg))
		}
		for _, msg := range validation.IsValidLabelValue(labels[k]) {
			errs = append(errs, fmt.Errorf("label %q: value %q: %s", k, labels[k], msg))
		}
		if isKubernetesLabel(k) && !kubeletapis.IsKubeletLabel(k) {
			errs = append(errs, fmt.Errorf("label %q: a kubelet may not set this one on its own node: set it with `kubectl label node` after the node joined, or choose a prefix other than kubernetes.io and k8s.io (of those only node.kubernetes.io/, kubelet.kubernetes.io/, and %s are open)",
				k, strings.Join(kubeletapis.KubeletLabels(), ", ")))
		}
	}
	return errors.Join(errs...)
}

func isKubernetesLabel(key string) bool {
	ns, _, ok := strings.Cut(key, "/")
	if !ok {
		return false
	}
	for _, own := range []string{"kubernetes.io", "k8s.io"} {
		if ns == own || strings.HasSuffix(ns, "."+own) {
			return true
		}
	}
	return false
}

// validTaints reports every taint that a kubelet would not register with.
func validTaints(taints []enrollapi.Taint) error {
	var errs []error
	if len(taints) > maxTaints {
		errs = append(errs, fmt.Errorf("%d taints, at most %d are taken", len(taints), maxTaints))
	}
	seen := map[[2]string]bool{}
	for _, t := range taints {
		for _, msg := range validation.IsQualifiedName(t.Key) {
			errs = append(errs, fmt.Errorf("taint %q: %s", t.Key, msg))
		}
		for _, msg := range validation.IsValidLabelValue(t.Value) {
			errs = append(errs, fmt.Errorf("taint %q: value %q: %s", t.Key, t.Value, msg))
		}
		switch t.Effect {
		case "NoSchedule", "PreferNoSchedule", "NoExecute":
		default:
			errs = append(errs, fmt.Errorf("taint %q: effect %q: want NoSchedule, PreferNoSchedule or NoExecute", t.Key, t.Effect))
		}
		id := [2]string{t.Key, t.Effect}
		if seen[id] {
			errs = append(errs, fmt.Errorf("taint %q with effect %q is given twice", t.Key, t.Effect))
		}
		seen[id] = true
	}
	return errors.Join(errs...)
}
