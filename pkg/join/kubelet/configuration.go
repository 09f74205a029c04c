package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	kubeletv1 "k8s.io/kubelet/config/v1beta1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// configured is a KubeletConfiguration ready to be written.
type configured struct {
	yaml     []byte
	dial     netip.AddrPort
	warnings []string
}

// configuration merges what the broker said with the operator's overlay, then sets what must be so for
// the node to work at all.
//
// The typed struct checks the result but does not produce it: marshalling it would write a "0s" for each
// duration that nobody set, and drop an empty list (enforceNodeAllocatable: []) that somebody did.
func configuration(s Settings) (configured, error) {
	base := map[string]any{}
	if len(s.Configuration) > 0 {
		if err := kjson.UnmarshalCaseSensitivePreserveInts(s.Configuration, &base); err != nil {
			return configured{}, fmt.Errorf("the broker's KubeletConfiguration is not a JSON object: %w", err)
		}
	}
	overlay, err := wholeNumbers(s.Overlay)
	if err != nil {
		return configured{}, fmt.Errorf("kubelet.config: %w", err)
	}
	doc := merge(base, overlay)
	if err := setKind(doc); err != nil {
		return configured{}, err
	}
	typed, _, err := decodeTyped(doc)
	if err != nil {
		return configured{}, err
	}
	force(doc, s, typed.RegisterWithTaints)

	typed, warnings, err := decodeTyped(doc)
	if err != nil {
		return configured{}, err
	}
	dial, err := dialAddress(typed)
	if err != nil {
		return configured{}, err
	}
	out, err := yaml.Marshal(doc)
	if err != nil {
		return configured{}, fmt.Errorf("render KubeletConfiguration: %w", err)
	}
	return configured{append([]byte(header), out...), dial, warnings}, nil
}

// wholeNumbers turns the float64s of a decoded YAML document back into integers where they are such.
func wholeNumbers(in map[string]any) (map[string]any, error) {
	out := map[string]any{}
	if len(in) == 0 {
		return out, nil
	}
	data, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	return out, kjson.UnmarshalCaseSensitivePreserveInts(data, &out)
}

// merge lays over onto base: maps are merged, everything else is replaced, null takes a key away.
func merge(base, over map[string]any) map[string]any {
	out := maps.Clone(base)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range over {
		if v == nil {
			delete(out, k)
			continue
		}
		if m, ok := v.(map[string]any); ok {
			old, _ := out[k].(map[string]any)
			out[k] = merge(old, m)
			continue
		}
		out[k] = v
	}
	return out
}

func setKind(doc map[string]any) error {
	want := map[string]string{"apiVersion": kubeletv1.SchemeGroupVersion.String(), "kind": "KubeletConfiguration"}
	for key, value := range want {
		if got, ok := doc[key]; ok && got != value {
			return fmt.Errorf("KubeletConfiguration: %s is %v, want %s", key, got, value)
		}
		doc[key] = value
	}
	return nil
}

// decodeTyped checks doc against the kubelet's own types. A key that they lack is a warning, since the
// kubelet may be newer than this program; a value of the wrong type is an error, since it would keep the
// kubelet from starting.
func decodeTyped(doc map[string]any) (*kubeletv1.KubeletConfiguration, []string, error) {
	data, err := json.Marshal(doc)
	if err != nil {
		return nil, nil, fmt.Errorf("render KubeletConfiguration: %w", err)
	}
	typed := &kubeletv1.KubeletConfiguration{}
	strict, err := kjson.UnmarshalStrict(data, typed)
	if err != nil {
		return nil, nil, fmt.Errorf("KubeletConfiguration (the broker's with kubelet.config laid over it): %w", err)
	}
	var warnings []string
	for _, w := range strict {
		warnings = append(warnings, w.Error())
	}
	return typed, warnings, nil
}

// force sets what a moored node needs, whatever the two sources say: callers proven by the tenant's CA,
// certificates that renew themselves and can be verified, the port that the tunnel may dial.
func force(doc map[string]any, s Settings, taints []corev1.Taint) {
	child(child(doc, "authentication"), "x509")["clientCAFile"] = s.Paths.CA
	doc["serverTLSBootstrap"] = true
	doc["rotateCertificates"] = true
	doc["port"] = int64(s.Port)

	all := taints
	for _, t := range s.Taints {
		have := false
		for _, o := range taints {
			have = have || (o.Key == t.Key && string(o.Effect) == t.Effect)
		}
		if !have {
			all = append(all, corev1.Taint{Key: t.Key, Value: t.Value, Effect: corev1.TaintEffect(t.Effect)})
		}
	}
	if len(all) == 0 {
		return
	}
	list := make([]any, 0, len(all))
	for _, t := range all {
		m := map[string]any{"key": t.Key, "effect": string(t.Effect)}
		if t.Value != "" {
			m["value"] = t.Value
		}
		list = append(list, m)
	}
	doc["registerWithTaints"] = list
}

// child returns doc[key] as a map that may be written to, making it if need be.
func child(doc map[string]any, key string) map[string]any {
	old, _ := doc[key].(map[string]any)
	m := maps.Clone(old)
	if m == nil {
		m = map[string]any{}
	}
	doc[key] = m
	return m
}

// dialAddress is where to reach the kubelet from this machine.
func dialAddress(c *kubeletv1.KubeletConfiguration) (netip.AddrPort, error) {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	addr := loopback
	if c.Address != "" {
		var err error
		if addr, err = netip.ParseAddr(c.Address); err != nil {
			return netip.AddrPort{}, fmt.Errorf("KubeletConfiguration: address: want an IP address, got %q", c.Address)
		}
		addr = addr.Unmap()
	}
	if addr.IsUnspecified() {
		addr = loopback
	}
	// The tunnel dials this address: it must not be a way to a metadata service.
	if addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("KubeletConfiguration: address: %s is not an address of this node that the kubelet can be reached at", addr)
	}
	if c.Port < 1 || c.Port > 65535 {
		return netip.AddrPort{}, errors.New("KubeletConfiguration: port: want 1 to 65535")
	}
	return netip.AddrPortFrom(addr, uint16(c.Port)), nil
}
