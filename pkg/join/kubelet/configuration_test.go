package kubelet

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletv1 "k8s.io/kubelet/config/v1beta1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/enrollapi"
)

func settings() Settings {
	return Settings{
		Node: "edge-1", APIAddress: "127.0.0.1:6443", APIServerName: "acme.tenants.test", APIServerCA: []byte("PEM"),
		Port: 10250, Paths: PathsIn("/var/lib/mooring", "/var/lib/kubelet"),
	}
}

// written is the configuration as the kubelet will read it: as a document, and as its own type.
func written(t *testing.T, s Settings) (map[string]any, *kubeletv1.KubeletConfiguration) {
	t.Helper()
	c, err := configuration(s)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSONStrict(c.yaml)
	if err != nil {
		t.Fatalf("%v in\n%s", err, c.yaml)
	}
	doc := map[string]any{}
	if err := json.Unmarshal(asJSON, &doc); err != nil {
		t.Fatal(err)
	}
	typed := &kubeletv1.KubeletConfiguration{}
	if strict, err := kjson.UnmarshalStrict(asJSON, typed); err != nil || len(strict) > 0 {
		t.Fatalf("the kubelet would not take it: %v %v\n%s", err, strict, c.yaml)
	}
	return doc, typed
}

func TestForcedWhateverIsSaid(t *testing.T) {
	for name, s := range map[string]func(*Settings){
		"nothing said": func(*Settings) {},
		"other things said": func(s *Settings) {
			s.Configuration = json.RawMessage(`{"port":1,"serverTLSBootstrap":false,"rotateCertificates":false,
				"authentication":{"x509":{"clientCAFile":"/etc/kubernetes/pki/ca.crt"},"webhook":{"cacheTTL":"1m"}}}`)
			s.Overlay = map[string]any{"port": 2.0, "serverTLSBootstrap": nil, "authentication": map[string]any{"x509": nil}}
		},
		"null said": func(s *Settings) { s.Configuration = json.RawMessage(`{"authentication":null}`) },
	} {
		t.Run(name, func(t *testing.T) {
			set := settings()
			s(&set)
			_, c := written(t, set)
			if c.Port != 10250 || !c.ServerTLSBootstrap || !c.RotateCertificates || c.Authentication.X509.ClientCAFile != set.Paths.CA {
				t.Errorf("port %d, serverTLSBootstrap %t, rotateCertificates %t, clientCAFile %q",
					c.Port, c.ServerTLSBootstrap, c.RotateCertificates, c.Authentication.X509.ClientCAFile)
			}
			if c.Kind != "KubeletConfiguration" || c.APIVersion != "kubelet.config.k8s.io/v1beta1" {
				t.Errorf("%s %s", c.APIVersion, c.Kind)
			}
		})
	}
}

// TestNothingIsSaidThatNobodySaid: the typed struct, marshalled, has zero values of fields that nobody
// set and lacks empty lists that somebody did. What is written has neither fault.
func TestNothingIsSaidThatNobodySaid(t *testing.T) {
	s := settings()
	s.Configuration = json.RawMessage(`{"enforceNodeAllocatable":[],"failSwapOn":false,"shutdownGracePeriod":"0s","imageMaximumGCAge":"12h"}`)
	doc, typed := written(t, s)
	want := []string{"apiVersion", "authentication", "enforceNodeAllocatable", "failSwapOn", "imageMaximumGCAge", "kind", "port",
		"rotateCertificates", "serverTLSBootstrap", "shutdownGracePeriod"}
	var got []string
	for k := range doc {
		got = append(got, k)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("written: %v\nwant:    %v", got, want)
	}
	if typed.EnforceNodeAllocatable == nil || len(typed.EnforceNodeAllocatable) != 0 {
		t.Errorf("enforceNodeAllocatable: %#v, want an empty list: the kubelet's default is another", typed.EnforceNodeAllocatable)
	}
	if typed.SyncFrequency != (metav1.Duration{}) || doc["syncFrequency"] != nil {
		t.Errorf("syncFrequency is said: %v", doc["syncFrequency"])
	}
}

func TestOverlay(t *testing.T) {
	s := settings()
	s.Configuration = json.RawMessage(`{"maxPods":110,"clusterDNS":["10.0.0.10"],"evictionHard":{"memory.available":"100Mi","nodefs.available":"10%"},
		"featureGates":{"A":true},"cgroupDriver":"systemd"}`)
	s.Overlay = map[string]any{
		"maxPods": 20.0, "clusterDNS": []any{"10.9.0.10"}, "evictionHard": map[string]any{"memory.available": "50Mi"}, "cgroupDriver": nil,
		"registryBurst": 16777217.0, // more than a float32 holds, and would be 1.6777217e+07 in %v
	}
	doc, c := written(t, s)
	if c.MaxPods != 20 || !slices.Equal(c.ClusterDNS, []string{"10.9.0.10"}) || c.RegistryBurst != 16777217 {
		t.Errorf("maxPods %d, clusterDNS %v, registryBurst %d", c.MaxPods, c.ClusterDNS, c.RegistryBurst)
	}
	if want := map[string]string{"memory.available": "50Mi", "nodefs.available": "10%"}; !reflect.DeepEqual(c.EvictionHard, want) {
		t.Errorf("evictionHard %v, want %v", c.EvictionHard, want)
	}
	if _, there := doc["cgroupDriver"]; there {
		t.Error("cgroupDriver is still there, although the overlay says null")
	}
	if !c.FeatureGates["A"] {
		t.Error("featureGates was lost")
	}
}

func TestTaintsAreJoined(t *testing.T) {
	s := settings()
	s.Configuration = json.RawMessage(`{"registerWithTaints":[{"key":"a","value":"1","effect":"NoSchedule"}]}`)
	s.Taints = []enrollapi.Taint{{Key: "a", Value: "2", Effect: "NoSchedule"}, {Key: "b", Effect: "NoExecute"}}
	_, c := written(t, s)
	want := []corev1.Taint{{Key: "a", Value: "1", Effect: "NoSchedule"}, {Key: "b", Effect: "NoExecute"}}
	if !reflect.DeepEqual(c.RegisterWithTaints, want) {
		t.Errorf("%v, want %v", c.RegisterWithTaints, want)
	}
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ configuration, want string }{
		"not an object":      {`[1]`, "not a JSON object"},
		"another kind":       {`{"kind":"Pod"}`, "kind is Pod"},
		"another version":    {`{"apiVersion":"kubelet.config.k8s.io/v1alpha1"}`, "apiVersion"},
		"a wrong type":       {`{"maxPods":"many"}`, "maxPods"},
		"a wrong duration":   {`{"syncFrequency":"soon"}`, "duration"},
		"metadata's address": {`{"address":"169.254.169.254"}`, "169.254.169.254"},
		"a name to listen":   {`{"address":"localhost"}`, "want an IP address"},
		"link-local":         {`{"address":"fe80::1%eth0"}`, "fe80::1"},
	} {
		t.Run(name, func(t *testing.T) {
			s := settings()
			s.Configuration = json.RawMessage(c.configuration)
			if _, err := configuration(s); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestUnknownKeysAreKeptWithAWarning(t *testing.T) {
	s := settings()
	s.Overlay = map[string]any{"somethingNew": true}
	c, err := configuration(s)
	if err != nil || len(c.warnings) != 1 || !strings.Contains(c.warnings[0], "somethingNew") {
		t.Fatalf("warnings %q, err %v", c.warnings, err)
	}
	if !strings.Contains(string(c.yaml), "somethingNew: true") {
		t.Errorf("lost:\n%s", c.yaml)
	}
}

func TestDialAddress(t *testing.T) {
	for address, want := range map[string]string{
		`""`: "127.0.0.1:10250", `"0.0.0.0"`: "127.0.0.1:10250", `"::"`: "127.0.0.1:10250",
		`"192.168.1.10"`: "192.168.1.10:10250", `"::ffff:192.168.1.10"`: "192.168.1.10:10250", `"2001:db8::1"`: "[2001:db8::1]:10250",
	} {
		s := settings()
		s.Configuration = json.RawMessage(`{"address":` + address + `}`)
		c, err := configuration(s)
		if err != nil || c.dial.String() != want {
			t.Errorf("%s: %s, %v, want %s", address, c.dial, err, want)
		}
	}
}

func TestArguments(t *testing.T) {
	s := settings()
	s.Labels = map[string]string{"site": "shop-7", "arch": "x", "empty": ""}
	s.Addresses = []netip.Addr{netip.MustParseAddr("192.168.1.10"), netip.MustParseAddr("192.168.1.11"), netip.MustParseAddr("2001:db8::1")}
	s.ExtraArgs = []string{"--v=2", "--note=two words"}
	want := []string{
		"--config=/var/lib/mooring/kubelet.yaml", "--kubeconfig=/var/lib/mooring/kubelet.kubeconfig", "--hostname-override=edge-1",
		"--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki", "--node-labels=arch=x,empty=,site=shop-7",
		"--node-ip=192.168.1.10,2001:db8::1", "--v=2", "--note=two words",
	}
	if got := arguments(s); !slices.Equal(got, want) {
		t.Errorf("%q\nwant\n%q", got, want)
	}
	env, err := environment(want)
	if err != nil {
		t.Fatal(err)
	}
	if line := strings.TrimPrefix(string(env), header); line != `KUBELET_ARGS="`+strings.Join(want[:8], " ")+` '--note=two words'"`+"\n" {
		t.Errorf("environment file:\n%s", line)
	}
	for _, bad := range []string{`a"b`, "a'b", `a\b`, "a\nb"} {
		if _, err := environment([]string{bad}); err == nil {
			t.Errorf("%q would reach the kubelet as something else", bad)
		}
	}
}

func TestRenderedIsWrittenOnce(t *testing.T) {
	s := settings()
	s.Paths = PathsIn(t.TempDir(), filepath.Join(t.TempDir(), "kubelet"))
	s.Labels = map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}
	render := func() *Rendered {
		r, err := Render(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := render()
	if changed, err := first.Write(); err != nil || !changed {
		t.Fatalf("first: %t, %v", changed, err)
	}
	for range 20 { // maps have no order; the files must
		again := render()
		if changed, err := again.Write(); err != nil || changed || again.Hash() != first.Hash() {
			t.Fatalf("again: changed %t, %v", changed, err)
		}
	}
	s.Overlay = map[string]any{"maxPods": 7.0}
	if r := render(); r.Hash() == first.Hash() {
		t.Error("another configuration, the same hash: the kubelet would not be restarted")
	}
	s.Overlay, s.ExtraArgs = nil, []string{"--v=4"}
	if r := render(); r.Hash() == first.Hash() {
		t.Error("other arguments, the same hash: the kubelet would not be restarted")
	}
}

// FuzzConfiguration: whatever the broker sends, what is written is what the kubelet must have, or nothing.
func FuzzConfiguration(f *testing.F) {
	f.Add([]byte(`{"maxPods":110,"authentication":{"x509":{"clientCAFile":"/x"}}}`), []byte(`{"port":1}`))
	f.Add([]byte(`{"authentication":[],"kind":7}`), []byte(`{"authentication":{"x509":3}}`))
	f.Add([]byte(`{"registerWithTaints":[{"key":"a"}],"address":"::"}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, base, over []byte) {
		s := settings()
		s.Configuration = base
		_ = json.Unmarshal(over, &s.Overlay)
		out, err := configuration(s)
		if err != nil {
			return
		}
		var c kubeletv1.KubeletConfiguration
		if err := yaml.Unmarshal(out.yaml, &c); err != nil {
			t.Fatalf("%v in\n%s", err, out.yaml)
		}
		if c.Port != 10250 || !c.ServerTLSBootstrap || !c.RotateCertificates || c.Authentication.X509.ClientCAFile != s.Paths.CA {
			t.Fatalf("not forced:\n%s", out.yaml)
		}
		if a := out.dial.Addr(); out.dial.Port() != 10250 || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.Is4In6() {
			t.Fatalf("dials %s", out.dial)
		}
	})
}
