package kubelet

import (
	"os"
	"strings"
	"testing"
)

func TestUnitSuits(t *testing.T) {
	p := PathsIn("/var/lib/mooring", "/var/lib/kubelet")
	here, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		unit unit
		want string // in the error; empty = it suits
	}{
		"ours": {unit{loaded: "loaded", environmentFiles: []string{"/var/lib/mooring/kubelet.env"}, program: here, command: []string{here, "$KUBELET_ARGS"}}, ""},
		"one that says it all": {unit{loaded: "loaded", program: here,
			command: []string{here, "--config=/var/lib/mooring/kubelet.yaml", "--kubeconfig=/var/lib/mooring/kubelet.kubeconfig"}}, ""},
		"none":           {unit{loaded: "not-found"}, "there is no kubelet.service"},
		"masked":         {unit{loaded: "masked"}, "systemctl unmask kubelet.service"},
		"kubeadm's":      {unit{loaded: "loaded", environmentFiles: []string{"/var/lib/kubelet/kubeadm-flags.env"}, program: here, command: []string{here, "--kubeconfig=/etc/kubernetes/kubelet.conf"}}, "does not read /var/lib/mooring/kubelet.env"},
		"without a file": {unit{loaded: "loaded", program: here, command: []string{here}}, "is not started"},
		"no program":     {unit{loaded: "loaded", environmentFiles: []string{"/var/lib/mooring/kubelet.env"}, program: "/nowhere/kubelet"}, "install a kubelet"},
	} {
		c.unit.name = "kubelet.service"
		err := c.unit.suits(p)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// What D-Bus says of EnvironmentFiles is a(sb).
func TestFirsts(t *testing.T) {
	if got := firsts([][]any{{"/a", true}, {}, {7}, {"/b", false}}); len(got) != 2 || got[0] != "/a" || got[1] != "/b" {
		t.Errorf("%v", got)
	}
	if got := firsts("no structs"); got != nil {
		t.Errorf("%v", got)
	}
}
