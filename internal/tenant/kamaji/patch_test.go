package kamaji

import (
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

const front = "acme.edge.example"

func testPlan() plan { return newPlan("acme", "registry.example/broker:v1", front, "the config") }

// readSpec reads YAML as the API's clients see it.
func readSpec(t *testing.T, text []byte) map[string]any {
	t.Helper()
	spec := map[string]any{}
	raw, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

func golden(t *testing.T, name string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return readSpec(t, text)
}

func text(t *testing.T, v any) string {
	t.Helper()
	out, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// roundtrip is what an object's record becomes in its annotation.
func roundtrip(t *testing.T, r record) *record {
	t.Helper()
	s, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	out, err := readRecord(map[string]string{annotationApplied: s})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestApplyGolden: exactly what is promised, and the user's own in its place; the record says what is ours.
func TestApplyGolden(t *testing.T) {
	for _, name := range []string{"plain", "busy"} {
		t.Run(name, func(t *testing.T) {
			spec := golden(t, name+".before.yaml")
			r := apply(spec, testPlan(), nil)
			got := text(t, map[string]any{"spec": spec, "record": r})
			path := filepath.Join("testdata", name+".after.yaml")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestApplyAgain: ten times in a row change nothing, neither the spec nor the record. (Seen failing with items that are
// appended without a look at what is there, and with addresses that forget what they replaced.)
func TestApplyAgain(t *testing.T) {
	for _, name := range []string{"plain", "busy"} {
		spec := golden(t, name+".before.yaml")
		r := apply(spec, testPlan(), nil)
		once := text(t, spec)
		for range 10 {
			again := apply(spec, testPlan(), roundtrip(t, r))
			if text(t, again) != text(t, r) {
				t.Fatalf("%s: the record became\n%swas\n%s", name, text(t, again), text(t, r))
			}
			if text(t, spec) != once {
				t.Fatalf("%s: the spec became\n%swas\n%s", name, text(t, spec), once)
			}
			r = again
		}
	}
}

// TestApplyLeavesDefaults: what a server fills in to our objects is no reason to write them again.
func TestApplyLeavesDefaults(t *testing.T) {
	spec := golden(t, "plain.before.yaml")
	r := apply(spec, testPlan(), nil)
	list, _ := lookup(spec, fieldVolumes)
	list.([]any)[0].(object)["secret"].(object)["defaultMode"] = int64(420)
	list, _ = lookup(spec, fieldContainers)
	list.([]any)[0].(object)["terminationMessagePath"] = "/dev/termination-log"
	want := text(t, spec)
	apply(spec, testPlan(), roundtrip(t, r))
	if got := text(t, spec); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestApplyMends: an entry of ours that somebody changed is put right in its place, one that is no more part of the plan goes.
func TestApplyMends(t *testing.T) {
	spec := golden(t, "busy.before.yaml")
	r := apply(spec, testPlan(), nil)
	want := text(t, spec)
	list, _ := lookup(spec, fieldContainers)
	list.([]any)[1].(object)["image"] = "evil:1"
	list, _ = lookup(spec, fieldArgs)
	deployment := spec["controlPlane"].(object)["deployment"].(object)
	deployment["extraArgs"].(object)["apiServer"] = list.([]any)[:2] // ours is gone
	r = apply(spec, testPlan(), roundtrip(t, r))
	if got := text(t, spec); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	apply(spec, newPlan("acme", "registry.example/broker:v1", "acme.other.example", "the config"), roundtrip(t, r))
	sans, _ := lookup(spec, fieldSANs)
	if got := stringsOf(sans.([]any)); !reflect.DeepEqual(got, []string{"api.example", "198.51.100.7", "acme.other.example"}) {
		t.Errorf("certSANs %q", got)
	}
}

// restored is what a spec is to be when ours has been taken out: what it was, but for the list that Kamaji needs.
func restored(spec map[string]any) map[string]any {
	out := runtime.DeepCopyJSON(spec)
	dropFlags(out)
	return out
}

// TestRestore: byte for byte what it was; and extraArgs.apiServer is an empty list where there was none, since Kamaji
// takes no flag back otherwise. (Seen failing with the entries in made not removed, and with the addresses not put back.)
func TestRestore(t *testing.T) {
	for _, name := range []string{"plain", "busy"} {
		before := golden(t, name+".before.yaml")
		spec := runtime.DeepCopyJSON(before)
		r := apply(spec, testPlan(), nil)
		restore(spec, *roundtrip(t, r))
		if got, want := text(t, spec), text(t, restored(before)); got != want {
			t.Errorf("%s: got\n%swant\n%s", name, got, want)
		}
	}
	plain := golden(t, "plain.before.yaml")
	restore(plain, apply(plain, testPlan(), nil))
	if args, there := lookup(plain, fieldArgs); !there || !reflect.DeepEqual(args, []any{}) {
		t.Errorf("extraArgs.apiServer is %v, want an empty list", args)
	}
}

// TestRestoreWithoutFlags: where the user has thrown out the lists of flags since, there is an empty one again: Kamaji's API server has
// ours still. (Seen failing without dropFlags in restore.)
func TestRestoreWithoutFlags(t *testing.T) {
	spec := golden(t, "plain.before.yaml")
	r := apply(spec, testPlan(), nil)
	remove(spec, fieldExtraArgs)
	restore(spec, r)
	if args, there := lookup(spec, fieldArgs); !there || !reflect.DeepEqual(args, []any{}) {
		t.Errorf("extraArgs.apiServer is %v, want an empty list", args)
	}
}

// TestRestoreKeepsTheUsers: over many shapes of a spec, with changes of the user's made while ours was in, what is left is
// what the user would have without us. The shapes are random, the seed is printed. (Seen failing with restore that empties the lists, and with one that puts
// the old address types over the user's new ones.)
func TestRestoreKeepsTheUsers(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	full := golden(t, "busy.before.yaml")
	for range 500 {
		spec := runtime.DeepCopyJSON(full)
		for _, path := range []string{
			fieldArgs, fieldExtraArgs, fieldVolumes, fieldMounts, fieldDeployment + ".additionalVolumeMounts", fieldContainers,
			fieldAnnotations, fieldDeployment + ".podAdditionalMetadata", fieldAddresses, fieldSANs, "networkProfile", fieldDeployment,
		} {
			if rnd.IntN(3) == 0 {
				remove(spec, path)
			}
		}
		if rnd.IntN(2) == 0 && spec["networkProfile"] != nil {
			spec["networkProfile"].(object)["certSANs"] = []any{front} // the user has it already
		}
		before := text(t, spec)
		without := runtime.DeepCopyJSON(spec)
		r := roundtrip(t, apply(spec, testPlan(), nil))
		edits := rnd.IntN(64)
		for _, s := range []map[string]any{spec, without} {
			edit(s, edits)
		}
		if rnd.IntN(2) == 0 {
			r = roundtrip(t, apply(spec, testPlan(), r))
		}
		restore(spec, *r)
		if got, want := text(t, spec), text(t, restored(without)); got != want {
			t.Fatalf("edits %b: got\n%swant\n%swas\n%s", edits, got, want, before)
		}
	}
}

// edit makes changes that a user may make at any time.
func edit(spec map[string]any, which int) {
	add := func(path string, item any) {
		list, _ := lookup(spec, path)
		have, _ := list.([]any)
		m := merger{spec: spec}
		m.set(path, append([]any{item}, have...)) // before ours
	}
	if which&1 != 0 {
		add(fieldArgs, "--v=4")
	}
	if which&2 != 0 {
		add(fieldVolumes, object{"name": "mine", "emptyDir": object{}})
	}
	if which&4 != 0 {
		add(fieldContainers, object{"name": "mine", "image": "mine:1"})
	}
	if which&8 != 0 {
		add(fieldMounts, object{"name": "mine", "mountPath": "/mine"})
	}
	if which&16 != 0 {
		add(fieldSANs, "mine.example")
	}
	if which&32 != 0 {
		m := merger{spec: spec}
		m.object(fieldAnnotations)["mine"] = "yes"
		m.set(fieldAddresses, []any{"InternalDNS"})
	}
}

func remove(spec map[string]any, path string) {
	in, ok := lookup(spec, parent(path))
	if parent(path) == "" {
		in, ok = spec, true
	}
	if m, isMap := in.(object); ok && isMap {
		delete(m, last(path))
	}
}

// TestNamesAvoidKamajis: the names that its konnectivity builder uses.
func TestNamesAvoidKamajis(t *testing.T) {
	out := text(t, testPlan().volumes)
	for _, name := range []string{"konnectivity-uds", "egress-selector-configuration", "konnectivity-server-kubeconfig"} {
		if strings.Contains(out, name) {
			t.Errorf("%s is Kamaji's", name)
		}
	}
}

func TestEgressSelector(t *testing.T) {
	for _, protocol := range []string{HTTPConnect, GRPC} {
		got, err := egressSelector(protocol)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"kind: EgressSelectorConfiguration", "name: cluster", "proxyProtocol: " + protocol, "udsName: /run/mooring/egress.sock"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in\n%s", want, got)
			}
		}
	}
	a, _ := egressSelector(HTTPConnect)
	b, _ := egressSelector(GRPC)
	if newPlan("a", "i", "", a).hash == newPlan("a", "i", "", b).hash {
		t.Error("another configuration rolls no pod")
	}
	again, _ := egressSelector(HTTPConnect)
	if newPlan("a", "i", "", again).hash != newPlan("a", "i", "", a).hash {
		t.Error("the hash changes by itself")
	}
}

func TestCheck(t *testing.T) {
	set := func(path string, v any) func(map[string]any) {
		return func(spec map[string]any) {
			m := merger{spec: spec}
			m.object(parent(path))[last(path)] = v
		}
	}
	for _, c := range []struct {
		name   string
		change func(map[string]any)
		reason string // "" = none
		undo   bool
		says   string
	}{
		{"nothing", func(map[string]any) {}, "", false, ""},
		{"konnectivity", set("addons.konnectivity", object{}), reasonKonnectivity, true, "spec.addons.konnectivity"},
		{"egress flag", set(fieldArgs, []any{"--egress-selector-config-file=/etc/mine.yaml"}), reasonUserFlag, true, "/etc/mine.yaml"},
		{"address flag", set(fieldArgs, []any{"--kubelet-preferred-address-types=InternalIP"}), reasonUserFlag, true, "preferredAddressTypes"},
		{"kubelet CA flag", set(fieldArgs, []any{"--kubelet-certificate-authority=/etc/mine.crt"}), "", false, ""},
		{"old", set("kubernetes.version", "v1.29.8"), reasonKubernetes, false, "v1.30"},
		{"oldest", set("kubernetes.version", "v1.30.0"), "", false, ""},
		{"no version", set("kubernetes.version", "latest"), reasonKubernetes, false, `"latest"`},
		{"volume", set(fieldVolumes, []any{object{"name": volumeSocket, "hostPath": object{"path": "/"}}}), reasonNamesTaken, false, volumeSocket},
		{"mount", set(fieldMounts, []any{object{"name": "x", "mountPath": pathConfig}}), reasonNamesTaken, false, pathConfig},
		{"container", set(fieldContainers, []any{object{"name": containerName, "image": "x"}}), reasonNamesTaken, false, containerName},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := golden(t, "plain.before.yaml")
			c.change(spec)
			got := check(spec, testPlan(), nil)
			if got == nil {
				got = &trouble{}
			}
			if got.reason != c.reason || got.undo != c.undo || !strings.Contains(got.message, c.says) {
				t.Errorf("got %+v", got)
			}
		})
	}
	spec := golden(t, "plain.before.yaml")
	r := apply(spec, testPlan(), nil)
	if got := check(spec, testPlan(), &r); got != nil {
		t.Errorf("what was put in is refused: %v", got)
	}
	if got := check(spec, newPlan("acme", "registry.example/broker:v2", front, "the config"), &r); got != nil {
		t.Errorf("with another image what is ours is refused: %v", got)
	}
	if got := check(spec, testPlan(), nil); got != nil {
		t.Errorf("with its record lost what was put in is refused: %v", got)
	}
}
