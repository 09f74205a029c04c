package kamaji

import (
	"reflect"
	"slices"
	"strings"
)

// Fields of a TenantControlPlane's spec, as paths.
const (
	fieldDeployment  = "controlPlane.deployment"
	fieldExtraArgs   = fieldDeployment + ".extraArgs"
	fieldArgs        = fieldExtraArgs + ".apiServer"
	fieldVolumes     = fieldDeployment + ".additionalVolumes"
	fieldMounts      = fieldDeployment + ".additionalVolumeMounts.apiServer"
	fieldContainers  = fieldDeployment + ".additionalContainers"
	fieldAnnotations = fieldDeployment + ".podAdditionalMetadata.annotations"
	fieldAddresses   = "kubernetes.kubelet.preferredAddressTypes"
	fieldSANs        = "networkProfile.certSANs"
)

// apply puts the plan into a spec, and returns the record of what is ours there. was is the record of before; nil = none.
// What is right already stays as it is, also with fields that others have added to it; what is the user's stays in its place.
func apply(spec map[string]any, p plan, was *record) record {
	if was == nil {
		was = &record{}
	}
	m := merger{spec: spec, made: slices.Clone(was.Made)}
	var now record
	now.Args = m.args(p.args, was.Args)
	now.Volumes = m.items(fieldVolumes, "name", p.volumes, was.Volumes)
	now.Mounts = m.items(fieldMounts, "mountPath", p.mounts, was.Mounts)
	now.Containers = m.items(fieldContainers, "name", p.containers, was.Containers)
	now.SANs = m.strings(fieldSANs, stringsOf(p.sans), was.SANs)
	now.Addresses, now.Replaced = m.addresses(p.addresses, was)
	now.Annotations = []string{annotationHash}
	m.object(fieldAnnotations)[annotationHash] = p.hash
	now.Made = m.made
	return now
}

// restore takes out of a spec what the record names, and only that. One thing stays that was not there: an empty
// extraArgs.apiServer, since Kamaji takes no flag back from an API server whose list of them is gone altogether.
func restore(spec map[string]any, was record) {
	m := merger{spec: spec}
	m.args(nil, was.Args)
	m.items(fieldVolumes, "name", nil, was.Volumes)
	m.items(fieldMounts, "mountPath", nil, was.Mounts)
	m.items(fieldContainers, "name", nil, was.Containers)
	m.strings(fieldSANs, nil, was.SANs)
	if len(was.Args) > 0 {
		dropFlags(spec)
	}
	if now, _ := lookup(spec, fieldAddresses); was.Replaced && reflect.DeepEqual(now, any(addressTypes())) { // else the user has chosen anew
		m.set(fieldAddresses, was.Addresses)
	}
	if have, ok := lookup(spec, fieldAnnotations); ok {
		for _, key := range was.Annotations {
			delete(have.(object), key)
		}
	}
	for _, path := range slices.Backward(was.Made) {
		if path != fieldArgs && path != fieldExtraArgs && path != fieldDeployment {
			m.dropEmpty(path)
		}
	}
}

// dropFlags sees that Kamaji takes flags back which are in the spec no more: it looks at the number of those that there
// are, if there is a list.
func dropFlags(spec map[string]any) {
	if _, there := lookup(spec, fieldArgs); !there {
		m := merger{spec: spec}
		m.object(fieldExtraArgs)[last(fieldArgs)] = []any{}
	}
}

// merger changes a spec.
type merger struct {
	spec map[string]any
	made []string
}

// args sees that the flags are there. One that the user has set himself is his, whatever its value; the egress
// configuration's path is nobody's but ours.
func (m *merger) args(want, ours []string) []string {
	have := m.list(fieldArgs, len(want) > 0)
	out := slices.DeleteFunc(slices.Clone(have), func(a any) bool {
		s, _ := a.(string)
		return slices.Contains(ours, s) && !slices.Contains(want, s)
	})
	var now []string
	for _, arg := range want {
		switch {
		case slices.Contains(out, any(arg)):
			if slices.Contains(ours, arg) || flagName(arg) == flagEgress {
				now = append(now, arg)
			}
		case !hasFlag(out, flagName(arg)):
			out = append(out, arg)
			now = append(now, arg)
		}
	}
	m.replace(fieldArgs, have, out)
	return now
}

// strings does so for a list of plain strings.
func (m *merger) strings(path string, want, ours []string) []string {
	have := m.list(path, len(want) > 0)
	out := slices.DeleteFunc(slices.Clone(have), func(a any) bool {
		s, _ := a.(string)
		return slices.Contains(ours, s) && !slices.Contains(want, s)
	})
	var now []string
	for _, s := range want {
		there := slices.Contains(out, any(s))
		if !there {
			out = append(out, s)
		}
		if !there || slices.Contains(ours, s) {
			now = append(now, s)
		}
	}
	m.replace(path, have, out)
	return now
}

// items does so for a list of objects that are told apart by one of their fields.
func (m *merger) items(path, key string, want []any, ours []string) []string {
	wanted := map[string]any{}
	for _, w := range want {
		wanted[w.(object)[key].(string)] = w
	}
	have := m.list(path, len(want) > 0)
	out := slices.DeleteFunc(slices.Clone(have), func(a any) bool {
		name := keyOf(a, key)
		return slices.Contains(ours, name) && wanted[name] == nil
	})
	var now []string
	for _, w := range want {
		name := keyOf(w, key)
		i := slices.IndexFunc(out, func(a any) bool { return keyOf(a, key) == name })
		switch {
		case i < 0:
			out = append(out, w)
		case !covers(out[i], w):
			out[i] = w
		}
		now = append(now, name)
	}
	m.replace(path, have, out)
	return now
}

// addresses sets the preferred address types and returns those of before.
func (m *merger) addresses(want []any, was *record) (before []any, replaced bool) {
	have, there := lookup(m.spec, fieldAddresses)
	list, _ := have.([]any)
	if there && reflect.DeepEqual(list, want) {
		return was.Addresses, was.Replaced
	}
	m.set(fieldAddresses, want)
	return list, true
}

// list is the list at a path. Where it is not there and is to be made, it is noted.
func (m *merger) list(path string, wanted bool) []any {
	v, there := lookup(m.spec, path)
	if list, ok := v.([]any); ok {
		return list
	}
	if wanted {
		m.object(parent(path))
		if !there {
			m.note(path)
		}
	}
	return nil
}

// replace writes a list, if it is another.
func (m *merger) replace(path string, have, list []any) {
	if len(list) == len(have) && reflect.DeepEqual(have, list) {
		return
	}
	if list == nil {
		list = []any{}
	}
	m.set(path, list)
}

// set writes a field; null where there was none.
func (m *merger) set(path string, value []any) {
	in := m.object(parent(path))
	if value == nil {
		delete(in, last(path))
		return
	}
	in[last(path)] = value
}

// object is the object at a path, made where it is not there.
func (m *merger) object(path string) object {
	in := m.spec
	var at []string
	for _, name := range strings.Split(path, ".") {
		at = append(at, name)
		next, ok := in[name].(object)
		if !ok {
			next = object{}
			in[name] = next
			m.note(strings.Join(at, "."))
		}
		in = next
	}
	return in
}

func (m *merger) note(path string) {
	if !slices.Contains(m.made, path) {
		m.made = append(m.made, path)
	}
}

// dropEmpty removes a field that holds nothing.
func (m *merger) dropEmpty(path string) {
	v, ok := lookup(m.spec, path)
	if !ok || reflect.ValueOf(v).Kind() != reflect.Map && reflect.ValueOf(v).Kind() != reflect.Slice || reflect.ValueOf(v).Len() > 0 {
		return
	}
	in := m.spec
	if up := parent(path); up != "" {
		in = m.object(up)
	}
	delete(in, last(path))
}

// lookup finds what is at a path.
func lookup(spec map[string]any, path string) (any, bool) {
	var v any = spec
	for _, name := range strings.Split(path, ".") {
		in, ok := v.(object)
		if !ok {
			return nil, false
		}
		if v, ok = in[name]; !ok {
			return nil, false
		}
	}
	return v, true
}

func parent(path string) string {
	i := strings.LastIndexByte(path, '.')
	if i < 0 {
		return ""
	}
	return path[:i]
}

func last(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

func keyOf(item any, key string) string {
	o, _ := item.(object)
	s, _ := o[key].(string)
	return s
}

func flagName(arg string) string {
	name, _, _ := strings.Cut(arg, "=")
	return name
}

func hasFlag(args []any, flag string) bool {
	return slices.ContainsFunc(args, func(a any) bool {
		s, _ := a.(string)
		return flagName(s) == flag
	})
}

func stringsOf(list []any) []string {
	var out []string
	for _, v := range list {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// covers tells whether have holds all of want: it may have more, which a server fills in.
func covers(have, want any) bool {
	switch w := want.(type) {
	case object:
		h, ok := have.(object)
		if !ok {
			return false
		}
		for k, v := range w {
			if !covers(h[k], v) {
				return false
			}
		}
		return true
	case []any:
		h, ok := have.([]any)
		if !ok || len(h) != len(w) {
			return false
		}
		for i := range w {
			if !covers(h[i], w[i]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(have, want)
}
