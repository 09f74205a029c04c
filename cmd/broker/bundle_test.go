package main

import (
	"bytes"
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
	var b bytes.Buffer
	if err := printBundle(&b, format, r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Every form holds the bundle, whole, in a way that the agent reads.
func TestBundleForms(t *testing.T) {
	for _, tenant := range []string{"acme", ""} {
		r := someToken(tenant, "manual")
		text := printed(t, formatText, r)
		_, text, _ = strings.Cut(text, "keep it there:\n\n")
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
	RunCmd [][]string `json:"runcmd"`
}

func userData(t *testing.T, r admin.TokenResponse) (c cloudConfig) {
	t.Helper()
	data := printed(t, formatCloudInit, r)
	if !strings.HasPrefix(data, "#cloud-config\n") {
		t.Fatalf("the first line decides what user-data is: %.40q", data)
	}
	if err := yaml.UnmarshalStrict([]byte(data), &c); err != nil || len(c.WriteFiles) != 1 {
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
	if len(c.RunCmd) != 2 || c.RunCmd[0][1] != "enable" || c.RunCmd[1][1] != "start" || c.RunCmd[1][2] != "--no-block" {
		t.Errorf("%v", c.RunCmd)
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
		data := printed(t, formatCloudInit, r)
		if out, err := check(data); err != nil || !strings.Contains(out, "Valid") {
			t.Errorf("%v\n%s\n%s", err, out, data)
		}
	}
	if out, err := check(strings.Replace(printed(t, formatCloudInit, someToken("acme", "auto")), "permissions:", "mode:", 1)); err == nil {
		t.Errorf("cloud-init takes what is wrong: %s", out)
	}
}
