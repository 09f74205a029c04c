package tools

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
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
	controller = filepath.Join(cacheRoot(), "tools", "kamaji-"+key)
	if err := buildOnce(ctx, module, controller, logf); err != nil {
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

func buildOnce(ctx context.Context, module, out string, logf Logf) error {
	if _, err := os.Stat(out); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	lock, err := host.TryLock(out + ".lock")
	if errors.Is(err, host.ErrLocked) {
		logf("another build of Kamaji is running; waiting for it")
		lock, err = host.WaitLock(out + ".lock")
	}
	if err != nil {
		return err
	}
	defer lock.Release()
	if _, err := os.Stat(out); err == nil {
		return nil
	}
	start := time.Now()
	logf("building Kamaji %s from its Go module, once", KamajiVersion)
	if err := build(ctx, module, kamajiModule, out, kamajiFlags); err != nil {
		return err
	}
	logf("built Kamaji in %.0f s", time.Since(start).Seconds())
	return nil
}
