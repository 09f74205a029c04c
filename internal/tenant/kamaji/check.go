package kamaji

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/version"
)

// OldestKubernetes is the oldest version of a hosted control plane that is connected: from it on, an admission policy
// bounds the broker's account there.
const OldestKubernetes = "1.30"

// check says why a control plane can't be connected, looking at its spec alone. p is what would be put there, was what is
// there by our doing.
func check(spec map[string]any, p plan, was *record) *trouble {
	if v, there := lookup(spec, "addons.konnectivity"); there && v != nil {
		return undoing(reasonKonnectivity, "spec.addons.konnectivity is set, and both would set the API server's egress, over and over: remove it, or the label %s", Label)
	}
	args, _ := lookup(spec, fieldArgs)
	list, _ := args.([]any)
	for _, arg := range stringsOf(list) {
		switch name := flagName(arg); {
		case name == flagEgress && !slices.Contains(p.args, arg):
			return undoing(reasonUserFlag, "extraArgs.apiServer has %s already: remove it, or the label %s", arg, Label)
		case name == flagAddresses:
			return undoing(reasonUserFlag, "extraArgs.apiServer has %s, which outdoes spec.kubernetes.kubelet.preferredAddressTypes: remove it, or the label %s", arg, Label)
		}
	}
	if t := checkVersion(spec); t != nil {
		return t
	}
	return checkNames(spec, p, was)
}

func checkVersion(spec map[string]any) *trouble {
	v, _ := lookup(spec, "kubernetes.version")
	text, _ := v.(string)
	have, err := version.ParseGeneric(text)
	if err != nil {
		return failed(reasonKubernetes, "spec.kubernetes.version is %q, which is no version: want v%s or later", text, OldestKubernetes)
	}
	if have.LessThan(version.MustParseGeneric(OldestKubernetes)) {
		return failed(reasonKubernetes, "Kubernetes %s is older than v%s: upgrade the control plane, or connect it by hand (broker tenant add)", text, OldestKubernetes)
	}
	return nil
}

// checkNames finds names of ours that somebody else has used for something else.
func checkNames(spec map[string]any, p plan, was *record) *trouble {
	if was == nil {
		was = &record{}
	}
	for _, l := range []struct {
		path, key string
		want      []any
		ours      []string
	}{
		{fieldVolumes, "name", p.volumes, was.Volumes},
		{fieldMounts, "mountPath", p.mounts, was.Mounts},
		{fieldContainers, "name", p.containers, was.Containers},
	} {
		v, _ := lookup(spec, l.path)
		have, _ := v.([]any)
		for _, w := range l.want {
			name := keyOf(w, l.key)
			i := slices.IndexFunc(have, func(a any) bool { return keyOf(a, l.key) == name })
			if i >= 0 && !slices.Contains(l.ours, name) && !covers(have[i], w) {
				return failed(reasonNamesTaken, "spec.%s has an entry %s that is not Mooring's: give it another %s", l.path, name, l.key)
			}
		}
	}
	return nil
}
