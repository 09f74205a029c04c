package enroll

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const (
	kubeletConfigMap     = "kubelet-config" // where kubeadm and Kamaji keep it
	kubeletConfigKey     = "kubelet"
	kubeletConfigVersion = "kubelet.config.k8s.io/v1beta1"
	kubeletConfigKind    = "KubeletConfiguration"
	// maxKubeletConfig keeps the answer well below enrollapi.MaxAnswer. A full configuration has 2 KiB.
	maxKubeletConfig = 256 << 10
)

// kubeletConfiguration makes the KubeletConfiguration for a tenant's nodes: that of its kubelet-config ConfigMap
// if there is one, over it the operator's overlay, over both what the product needs. A ConfigMap that can't be
// used is an error: a kubelet with another configuration than its cluster's fails in stranger ways.
func kubeletConfiguration(ctx context.Context, clients *Clients, tenant string, overlay map[string]any) (json.RawMessage, error) {
	client, err := clients.Client(tenant)
	if err != nil {
		return nil, err
	}
	cfg := map[string]any{}
	cm, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, kubeletConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return nil, unavailable(tenant, "read ConfigMap kube-system/"+kubeletConfigMap, err)
	case cm.Data[kubeletConfigKey] != "":
		if cfg, err = decodeKubeletConfig(cm.Data[kubeletConfigKey]); err != nil {
			return nil, unavailable(tenant, fmt.Sprintf("ConfigMap kube-system/%s, key %s: mend or delete it", kubeletConfigMap, kubeletConfigKey), err)
		}
	}
	over, err := plain(overlay)
	if err != nil {
		return nil, fmt.Errorf("kubelet.config of the broker's configuration: %w", err)
	}
	merge(cfg, over)
	require(cfg)
	return json.Marshal(cfg)
}

func decodeKubeletConfig(text string) (map[string]any, error) {
	if len(text) > maxKubeletConfig {
		return nil, fmt.Errorf("it has %d bytes, at most %d are taken", len(text), maxKubeletConfig)
	}
	b, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return nil, err
	}
	cfg, err := object(b)
	if err != nil {
		return nil, err
	}
	if v, k := cfg["apiVersion"], cfg["kind"]; v != kubeletConfigVersion || k != kubeletConfigKind {
		return nil, fmt.Errorf("it is a %v %v, want %s %s", v, k, kubeletConfigVersion, kubeletConfigKind)
	}
	return cfg, nil
}

// plain copies the overlay into JSON's own types, whatever it was decoded by.
func plain(overlay map[string]any) (map[string]any, error) {
	if len(overlay) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		return nil, err
	}
	return object(b)
}

func object(b []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber() // an int64 must not become a float
	cfg := map[string]any{}
	if err := d.Decode(&cfg); err != nil {
		return nil, err
	}
	if cfg == nil { // the text "null"
		cfg = map[string]any{}
	}
	return cfg, nil
}

// merge puts over onto base: objects member by member, all else as a whole; null removes.
func merge(base, over map[string]any) {
	for k, v := range over {
		o, isObject := v.(map[string]any)
		b, was := base[k].(map[string]any)
		switch {
		case v == nil:
			delete(base, k)
		case isObject && was:
			merge(b, o)
		default:
			base[k] = v
		}
	}
}

// require sets what the product relies on: certificates that are asked for and renewed, and an API server that
// has to show who it is. Files belong to the node, so those named by the cluster's configuration are dropped;
// the agent sets its own.
func require(cfg map[string]any) {
	merge(cfg, map[string]any{
		"apiVersion":         kubeletConfigVersion,
		"kind":               kubeletConfigKind,
		"serverTLSBootstrap": true,
		"rotateCertificates": true,
		"tlsCertFile":        nil,
		"tlsPrivateKeyFile":  nil,
	})
	merge(member(cfg, "authentication"), map[string]any{"x509": nil})
	merge(member(member(cfg, "authentication"), "webhook"), map[string]any{"enabled": true})
	merge(member(member(cfg, "authentication"), "anonymous"), map[string]any{"enabled": false})
	merge(member(cfg, "authorization"), map[string]any{"mode": "Webhook"})
}

// member returns the object of that name, made if need be.
func member(cfg map[string]any, name string) map[string]any {
	m, ok := cfg[name].(map[string]any)
	if !ok {
		m = map[string]any{}
		cfg[name] = m
	}
	return m
}
