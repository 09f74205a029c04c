package hostsfile

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func nodesIn(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	nodes := []string{}
	for line := range strings.Lines(string(data)) {
		if addr, name, _ := strings.Cut(strings.TrimSpace(line), " "); addr == placeholder {
			nodes = append(nodes, name)
		}
	}
	if !strings.Contains(string(data), "127.0.0.1 localhost\n") {
		t.Errorf("localhost is missing:\n%s", data)
	}
	return nodes
}

func TestFilesFollowTenantsAndNodes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hosts")
	f, err := New(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	acme := filepath.Join(dir, "acme")
	want := func(names ...string) {
		t.Helper()
		if got := nodesIn(t, acme); strings.Join(got, " ") != strings.Join(names, " ") {
			t.Errorf("file holds %q, want %q", got, names)
		}
	}
	f.Begin()
	f.Tenant("acme", false)
	want()
	before, err := os.Stat(acme)
	if err != nil {
		t.Fatal(err)
	}
	f.Node("acme", "edge-2", false)
	f.Node("acme", "edge-1", false)
	f.Node("globex", "edge-9", false)
	want("edge-1", "edge-2")
	f.Node("acme", "edge-1", true)
	f.Node("nobody", "x", true)
	want("edge-2")
	if after, err := os.Stat(acme); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was replaced (%v): a mount of it would keep the old one", err)
	}
	f.Tenant("acme", true)
	if _, err := os.Stat(acme); !os.IsNotExist(err) {
		t.Errorf("file of a removed tenant: %v", err)
	}
	f.Tenant("acme", false)
	want() // a new tenant of the name inherits nothing
}

// A broker that starts learns of the nodes one by one; meanwhile none of them may vanish.
func TestStartKeepsWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	acme := filepath.Join(dir, "acme")
	for range 2 {
		f, err := New(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		before, _ := os.ReadFile(acme)
		f.Tenant("acme", false)
		f.Node("acme", "edge-1", false)
		f.Node("gone", "edge-9", false)
		f.Node("acme", "edge-2", false)
		if now, _ := os.ReadFile(acme); string(now) != string(before) {
			t.Errorf("the file changed before all was told:\n%s\nit was:\n%s", now, before)
		}
		f.Begin()
		if got := nodesIn(t, acme); strings.Join(got, " ") != "edge-1 edge-2" {
			t.Errorf("file holds %q", got)
		}
		if _, err := os.Stat(filepath.Join(dir, "gone")); err == nil {
			t.Error("a file was made for a tenant that there is not")
		}
	}
}

// What kube-apiserver checks of the address that it finds.
func TestPlaceholderPassesTheAPIServersCheck(t *testing.T) {
	if !net.ParseIP(placeholder).IsGlobalUnicast() {
		t.Fatal("kube-apiserver would answer: address not allowed")
	}
}
