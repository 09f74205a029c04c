package tools

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// KamajiVersion is that of tools-kamaji/go.mod.
const KamajiVersion = "v1.0.0"

const (
	kamajiModule = "github.com/clastix/kamaji"
	kamajiFlags  = "-s -w -X github.com/clastix/kamaji/internal.GitTag=" + KamajiVersion
)

// Kamaji returns the path of Kamaji's controller, built once into the cache, and the directory of its CRDs. root is the
// repository's.
func Kamaji(ctx context.Context, root string, logf Logf) (controller, crds string, err error) {
	module := filepath.Join(root, "e2e", "tools-kamaji")
	key, err := cacheKey(ctx, module)
	if err != nil {
		return "", "", err
	}
	controller = filepath.Join(CacheRoot(), "tools", "kamaji-"+key)
	program := program{"Kamaji " + KamajiVersion, module, kamajiModule, kamajiFlags, "some 70 s"}
	if err := program.once(ctx, controller, logf); err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", kamajiModule)
	cmd.Dir, cmd.Env = module, append(os.Environ(), "GOWORK=off")
	dir, err := cmd.Output()
	if err != nil {
		return "", "", err
	}
	return controller, filepath.Join(strings.TrimSpace(string(dir)), "charts", "kamaji", "crds"), nil
}
