package layers

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	metricName    = regexp.MustCompile(`"(mooring_[a-z_]+)"`)
	conditionName = regexp.MustCompile(`(?m)^(?:const )?\s*(?:cond|Condition)[A-Z]\w*\s*=\s*"([A-Z]\w*)"`)
)

// TestOperatorsKnowEachMetricAndCondition: docs/operations.md has a line for each that the programs show, and for no other metric.
func TestOperatorsKnowEachMetricAndCondition(t *testing.T) {
	const root = "../.."
	page, err := os.ReadFile(filepath.Join(root, "docs/operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, dir := range []string{"cmd", "internal", "pkg"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			code, err := os.ReadFile(path)
			for _, found := range append(metricName.FindAllSubmatch(code, -1), conditionName.FindAllSubmatch(code, -1)...) {
				shown[string(found[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !shown["mooring_sessions"] || !shown["Clones"] || !shown["Tunnel"] || !shown["TenantAccess"] {
		t.Fatalf("the look at the code finds too little: %v", shown)
	}
	for name := range shown {
		if !regexp.MustCompile("`" + name + "[`{]").Match(page) {
			t.Errorf("docs/operations.md says nothing of %s", name)
		}
	}
	for _, name := range regexp.MustCompile(`mooring_[a-z_]+`).FindAllString(string(page), -1) {
		if !shown[name] {
			t.Errorf("docs/operations.md names %s, which no program shows", name)
		}
	}
}
