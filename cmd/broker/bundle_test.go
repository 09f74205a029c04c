package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enrollapi"
)

func someToken(tenant, approval string) admin.TokenResponse {
	return admin.TokenResponse{
		Bundle: config.JoinBundle{
			TypeMeta: config.TypeMeta{APIVersion: config.APIVersion, Kind: config.KindJoinBundle},
			Endpoint: "edge.example:443", Tenant: tenant, Token: enrollapi.NewToken().String(),
			CACertHashes: []string{"sha256:" + strings.Repeat("ab", 32), "sha256:" + strings.Repeat("cd", 32)},
		},
		Expires: time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC), Uses: 7, Approval: approval,
	}
}

func printed(t *testing.T, format string, r admin.TokenResponse) string {
	t.Helper()
	return printedWith(t, format, r, debPackage{})
}

func printedWith(t *testing.T, format string, r admin.TokenResponse, pkg debPackage) string {
	t.Helper()
	var b bytes.Buffer
	if err := printBundle(&b, format, r, pkg); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Every form holds the bundle, whole, in a way that the agent reads.
func TestBundleForms(t *testing.T) {
	for _, tenant := range []string{"acme", ""} {
		r := someToken(tenant, "manual")
		text := printed(t, formatText, r)
		_, text, _ = strings.Cut(text, "mode 0600):\n\n")
		text, _, _ = strings.Cut(text, "\n2. ")
		for form, bundle := range map[string]string{
			formatYAML: printed(t, formatYAML, r), formatJSON: printed(t, formatJSON, r), formatText: text,
			formatCloudInit: userData(t, r).WriteFiles[0].Content,
		} {
			got, err := config.DecodeJoinBundle(form, []byte(bundle))
			if err != nil || !reflect.DeepEqual(*got, r.Bundle) {
				t.Errorf("%s: %+v, %v", form, got, err)
			}
		}
	}
}

type cloudConfig struct {
	WriteFiles []struct {
		Path, Owner, Permissions, Content string
	} `json:"write_files"`
	BootCmd []string   `json:"bootcmd"`
	RunCmd  [][]string `json:"runcmd"`
}

func userData(t *testing.T, r admin.TokenResponse) cloudConfig {
	t.Helper()
	c := decodeUserData(t, printed(t, formatCloudInit, r))
	if len(c.WriteFiles) != 1 {
		t.Fatalf("%+v", c)
	}
	return c
}

func decodeUserData(t *testing.T, data string) (c cloudConfig) {
	t.Helper()
	if !strings.HasPrefix(data, "#cloud-config\n") {
		t.Fatalf("the first line decides what user-data is: %.40q", data)
	}
	if err := yaml.UnmarshalStrict([]byte(data), &c); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return c
}

func TestCloudInit(t *testing.T) {
	r := someToken("acme", "auto")
	c := userData(t, r)
	f := c.WriteFiles[0]
	if f.Path != "/etc/mooring/join.yaml" || f.Owner != "root:root" || f.Permissions != "0600" || f.Content != printed(t, formatYAML, r) {
		t.Errorf("%+v", f)
	}
	want := [][]string{{"systemctl", "daemon-reload"}, {"systemctl", "enable", "edge-agent.service"}, {"systemctl", "start", "--no-block", "edge-agent.service"}}
	if !reflect.DeepEqual(c.RunCmd, want) {
		t.Errorf("%v", c.RunCmd)
	}
}

// TestCloudInitBootCommand: the user-data's bootcmd takes cloud-init's marks away where it has to write again, and only there. Seen failing with a
// bootcmd that has the overwritten secret's characters in it, and takes those for the secret.
func TestCloudInitBootCommand(t *testing.T) {
	const written, empty = "x", ""
	for _, c := range []struct {
		what          string
		files         map[string]string // below /
		image, debian bool              // user-data for which it is written again
	}{
		{"the first boot", nil, true, true},
		{"all is lost", map[string]string{bundlePath: empty, cloudCommands: empty, installUnitPath: empty}, true, true},
		{"the unit is lost", map[string]string{bundlePath: written, cloudCommands: written, installUnitPath: empty}, false, true},
		{"the commands are lost", map[string]string{bundlePath: written, cloudCommands: empty, installUnitPath: written}, true, true},
		{"all is there", map[string]string{bundlePath: written, cloudCommands: written, installUnitPath: written}, false, false},
		{"enrolled", map[string]string{identityPath: "{}", installUnitPath: empty}, false, false},
		{"reset, and the secret overwritten", map[string]string{cloudInstance + "/user-data.txt": "token: abc." + strings.Repeat("x", 32) + "\n"}, false, false},
	} {
		for pkg, again := range map[debPackage]bool{{}: c.image, somePackage: c.debian} {
			root := t.TempDir()
			write := func(path, text string) {
				path = filepath.Join(root, path)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			marks := []string{"config_write_files", "config_runcmd", "config_scripts_user", "config_set_hostname"}
			for _, mark := range marks {
				write(cloudInstance+"/sem/"+mark, "")
			}
			userData := printedWith(t, formatCloudInit, someToken("acme", "auto"), pkg)
			write(cloudInstance+"/user-data.txt", userData) // where the bootcmd must not find itself
			for path, text := range c.files {
				write(path, text)
			}
			data := decodeUserData(t, userData)
			if len(data.BootCmd) != 1 {
				t.Fatalf("%+v", data)
			}
			line := strings.NewReplacer("/var/", root+"/var/", "/etc/", root+"/etc/").Replace(data.BootCmd[0])
			if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s: %v\n%s\n%s", c.what, err, line, out)
			}
			left, err := os.ReadDir(filepath.Join(root, cloudInstance, "sem"))
			if err != nil {
				t.Fatal(err)
			}
			want := len(marks)
			if again {
				want = 1
			}
			if len(left) != want {
				t.Errorf("%s, package %q: %d marks are left, want %d", c.what, pkg.url, len(left), want)
			}
		}
	}
}

// A plain Debian gets a unit that installs the package: cloud-init alone would try once.
func TestCloudInitWithPackage(t *testing.T) {
	r := someToken("acme", "auto")
	c := decodeUserData(t, printedWith(t, formatCloudInit, r, somePackage))
	if len(c.WriteFiles) != 2 || c.WriteFiles[0].Content != printed(t, formatYAML, r) {
		t.Fatalf("%+v", c)
	}
	f := c.WriteFiles[1]
	for _, want := range []string{
		"download-file https://deb.example/a%%20b/edge-agent_1.0.0-1_amd64.deb?k=$$1 /var/cache/edge-agent.deb SHA256:" + strings.Repeat("ab", 32) + "\n", // systemd's own signs doubled
		"install -y --no-install-recommends /var/cache/edge-agent.deb\n", "Restart=on-failure\n", "WantedBy=multi-user.target\n",
	} {
		if f.Path != "/etc/systemd/system/edge-agent-install.service" || f.Permissions != "0644" || !strings.Contains(f.Content, want) {
			t.Errorf("no %q in %+v", want, f)
		}
	}
	if got := c.RunCmd[2]; got[3] != "edge-agent-install.service" || got[2] != "--no-block" {
		t.Errorf("%v", c.RunCmd)
	}
}

var somePackage = debPackage{"https://deb.example/a%20b/edge-agent_1.0.0-1_amd64.deb?k=$1", strings.Repeat("AB", 32)}

func TestPackageFlags(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	for _, c := range []struct {
		format string
		pkg    debPackage
		ok     bool
	}{
		{formatYAML, debPackage{}, true},
		{formatCloudInit, debPackage{}, true},
		{formatCloudInit, somePackage, true},
		{formatCloudInit, debPackage{"file:///media/usb/a.deb", sum}, true},
		{formatYAML, somePackage, false},
		{formatCloudInit, debPackage{"https://deb.example/a.deb", ""}, false},
		{formatCloudInit, debPackage{"", sum}, false},
		{formatCloudInit, debPackage{"https://deb.example/a.deb", sum[2:]}, false},
		{formatCloudInit, debPackage{"https://deb.example/a.deb", "z" + sum[1:]}, false},
		{formatCloudInit, debPackage{"/media/usb/a.deb", sum}, false},
		{formatCloudInit, debPackage{"ftp://deb.example/a.deb", sum}, false},
		{formatCloudInit, debPackage{"https://me:secret@deb.example/a.deb", sum}, false},
		{formatCloudInit, debPackage{"https://deb.example/a.deb\nExecStart=/bin/evil.deb", sum}, false},
		{formatCloudInit, debPackage{"https://deb.example/a b.deb", sum}, false},
		{formatCloudInit, debPackage{"https://deb.example/a.rpm", sum}, false},
	} {
		if err := c.pkg.check(c.format); (err == nil) != c.ok {
			t.Errorf("%s %+v: %v", c.format, c.pkg, err)
		}
	}
}

// cloud-init itself says that the user-data is well-formed.
func TestCloudInitSchema(t *testing.T) {
	tool, err := exec.LookPath("cloud-init")
	if err != nil {
		if os.Getenv("MOORING_REQUIRE_ALL") != "" {
			t.Fatal("cloud-init is missing: run hack/install-deps")
		}
		t.Skip("cloud-init is not installed (hack/install-deps installs it)")
	}
	check := func(data string) (string, error) {
		path := filepath.Join(t.TempDir(), "user-data")
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(tool, "schema", "--config-file", path).CombinedOutput()
		return string(out), err
	}
	for _, r := range []admin.TokenResponse{someToken("acme", "auto"), someToken("", "manual")} {
		for _, pkg := range []debPackage{{}, somePackage} {
			data := printedWith(t, formatCloudInit, r, pkg)
			if out, err := check(data); err != nil || !strings.Contains(out, "Valid") {
				t.Errorf("%v\n%s\n%s", err, out, data)
			}
		}
	}
	if out, err := check(strings.Replace(printed(t, formatCloudInit, someToken("acme", "auto")), "permissions:", "mode:", 1)); err == nil {
		t.Errorf("cloud-init takes what is wrong: %s", out)
	}
}
