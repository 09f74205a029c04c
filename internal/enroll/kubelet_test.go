package enroll

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/mooring-edge/mooring/internal/tenant"
)

func clientsOf(c kubernetes.Interface) *Clients {
	return NewClients(fixedTenants{"acme": someTenant("acme")}, func(tenant.Tenant) (kubernetes.Interface, error) { return c, nil })
}

func kubeletConfigMapOf(text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kubelet-config", Namespace: "kube-system"}, Data: map[string]string{"kubelet": text}}
}

const header = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"

func TestKubeletConfiguration(t *testing.T) {
	const needed = `"apiVersion":"kubelet.config.k8s.io/v1beta1","kind":"KubeletConfiguration","serverTLSBootstrap":true,"rotateCertificates":true,"authorization":{"mode":"Webhook"}`
	const auth = `"authentication":{"anonymous":{"enabled":false},"webhook":{"enabled":true}}`
	for name, tc := range map[string]struct {
		objects []runtime.Object
		overlay map[string]any
		want    string
	}{
		"nothing":           {nil, nil, `{` + needed + `,` + auth + `}`},
		"empty key":         {[]runtime.Object{kubeletConfigMapOf("")}, nil, `{` + needed + `,` + auth + `}`},
		"operator's":        {nil, map[string]any{"maxPods": 9}, `{"maxPods":9,` + needed + `,` + auth + `}`},
		"tenant's":          {[]runtime.Object{kubeletConfigMapOf(header + "clusterDNS: [10.96.0.10]\npodPidsLimit: 9007199254740993\n")}, nil, `{"clusterDNS":["10.96.0.10"],"podPidsLimit":9007199254740993,` + needed + `,` + auth + `}`},
		"operator's on top": {[]runtime.Object{kubeletConfigMapOf(header + "clusterDNS: [a]\nmaxPods: 1\nlogging: {verbosity: 1, format: text}\n")}, map[string]any{"clusterDNS": []any{"b"}, "logging": map[string]any{"verbosity": 2}, "maxPods": nil}, `{"clusterDNS":["b"],"logging":{"verbosity":2,"format":"text"},` + needed + `,` + auth + `}`},
		"none weakens it": {
			[]runtime.Object{kubeletConfigMapOf(header + "authentication: {anonymous: {enabled: true}, webhook: {enabled: false, cacheTTL: 1s}, x509: {clientCAFile: /x}}\nauthorization: {mode: AlwaysAllow}\nserverTLSBootstrap: false\ntlsCertFile: /x\ntlsPrivateKeyFile: /y\n")},
			map[string]any{"authentication": map[string]any{"anonymous": "yes"}, "rotateCertificates": false, "kind": "Pod"},
			`{` + needed + `,"authentication":{"anonymous":{"enabled":false},"webhook":{"enabled":true,"cacheTTL":"1s"}}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			before, _ := json.Marshal(tc.overlay)
			got, err := kubeletConfiguration(t.Context(), clientsOf(fake.NewClientset(tc.objects...)), "acme", tc.overlay)
			if err != nil {
				t.Fatal(err)
			}
			if g, w := decoded(t, string(got)), decoded(t, tc.want); !reflect.DeepEqual(g, w) {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if after, _ := json.Marshal(tc.overlay); string(after) != string(before) {
				t.Errorf("the operator's overlay was changed to %s", after)
			}
		})
	}
}

func decoded(t *testing.T, s string) map[string]any {
	t.Helper()
	m, err := object([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestKubeletConfigurationRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"not YAML": "{", "a list": "[]", "other kind": "apiVersion: v1\nkind: Pod\n", "no kind": "maxPods: 1\n",
		"key twice": header + "maxPods: 1\nmaxPods: 2\n", "oversized": header + "a: " + strings.Repeat("x", maxKubeletConfig),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := kubeletConfiguration(t.Context(), clientsOf(fake.NewClientset(kubeletConfigMapOf(text))), "acme", nil)
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "kube-system/kubelet-config") {
				t.Errorf("error %v, want ErrUnavailable naming the ConfigMap", err)
			}
		})
	}
	t.Run("API server away", func(t *testing.T) {
		client := fake.NewClientset()
		client.PrependReactor("get", "configmaps", func(k8stesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("away") })
		if _, err := kubeletConfiguration(t.Context(), clientsOf(client), "acme", nil); !errors.Is(err, ErrUnavailable) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("unknown tenant", func(t *testing.T) {
		if _, err := kubeletConfiguration(t.Context(), clientsOf(fake.NewClientset()), "x", nil); !errors.Is(err, tenant.ErrNotFound) {
			t.Errorf("error %v", err)
		}
	})
}

func FuzzDecodeKubeletConfig(f *testing.F) {
	f.Add(header + "maxPods: 1\n")
	f.Add("null")
	f.Add(header + "authentication: 7\nauthorization: []\n")
	f.Fuzz(func(t *testing.T, text string) {
		cfg, err := decodeKubeletConfig(text)
		if err != nil {
			return
		}
		require(cfg)
		out, err := json.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			ServerTLSBootstrap bool `json:"serverTLSBootstrap"`
			Authentication     struct {
				Anonymous, Webhook struct{ Enabled bool }
				X509               map[string]any
			}
			Authorization struct{ Mode string }
		}
		d, err := object(out)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := json.Marshal(map[string]any{"serverTLSBootstrap": d["serverTLSBootstrap"], "Authentication": d["authentication"], "Authorization": d["authorization"]})
		if err := json.Unmarshal(again, &got); err != nil {
			t.Fatal(err)
		}
		if !got.ServerTLSBootstrap || got.Authentication.Anonymous.Enabled || !got.Authentication.Webhook.Enabled || got.Authentication.X509 != nil || got.Authorization.Mode != "Webhook" {
			t.Fatalf("weakened: %s", out)
		}
	})
}

func TestClientsFollowTheTenant(t *testing.T) {
	tenants, made := fixedTenants{"acme": someTenant("acme")}, 0
	c := NewClients(tenants, func(tenant.Tenant) (kubernetes.Interface, error) { made++; return fake.NewClientset(), nil })
	get := func() {
		t.Helper()
		if _, err := c.Client("acme"); err != nil {
			t.Fatal(err)
		}
	}
	get()
	get()
	if made != 1 {
		t.Errorf("%d clients made, want one", made)
	}
	changed := someTenant("acme")
	changed.Address = "203.0.113.8:6443"
	tenants["acme"] = changed
	get()
	if made != 2 {
		t.Errorf("%d clients made, want a new one for the changed tenant", made)
	}
	delete(tenants, "acme")
	if _, err := c.Client("acme"); !errors.Is(err, tenant.ErrNotFound) || len(c.made) != 0 {
		t.Errorf("removed tenant: %v, %d kept", err, len(c.made))
	}
}
