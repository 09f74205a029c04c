package tools

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// Helm returns the path of helm, built once from the module packaging/tools into the cache. root is the repository's.
func Helm(ctx context.Context, root string, logf Logf) (string, error) {
	module := filepath.Join(root, "packaging", "tools")
	key, err := cacheKey(ctx, module)
	if err != nil {
		return "", err
	}
	path := filepath.Join(cacheRoot(), "tools", key, "helm")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	lock, err := host.TryLock(filepath.Dir(path) + ".lock")
	if errors.Is(err, host.ErrLocked) {
		logf("another build of helm is running; waiting for it")
		lock, err = host.WaitLock(filepath.Dir(path) + ".lock")
	}
	if err != nil {
		return "", err
	}
	defer lock.Release()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	logf("building helm into %s; once only, with cold caches some 6 minutes on two cores", filepath.Dir(path))
	start := time.Now()
	if err := build(ctx, module, "helm.sh/helm/v4/cmd/helm", path, "-s -w"); err != nil {
		return "", err
	}
	logf("helm built in %s", time.Since(start).Round(time.Second))
	return path, nil
}

// BrokerImage makes the broker's image for this machine alone, as `make images` does, in dir. It returns the archive's
// path and the image's name. root is the repository's.
func BrokerImage(ctx context.Context, root, dir string) (path, name string, err error) {
	const registry, version = "mooring.test", "v0.0.0-e2e"
	cmd := exec.CommandContext(ctx, "go", "run", ".", "--only", "edge-broker", "--platform", "linux/"+runtime.GOARCH,
		"--registry", registry, "--version", version, "--epoch", "0", "--root", root, "--out", dir)
	cmd.Dir = filepath.Join(root, "packaging", "oci")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", "", fmt.Errorf("make the broker's image: %w\n%s", err, stderr.String())
	}
	return strings.TrimSpace(string(out)), registry + "/edge-broker:" + version, nil
}
