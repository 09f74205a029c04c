package tools

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Helm returns the path of helm, built once from the module packaging/tools into the cache. root is the repository's.
func Helm(ctx context.Context, root string, logf Logf) (string, error) {
	module := filepath.Join(root, "packaging", "tools")
	key, err := cacheKey(ctx, module)
	if err != nil {
		return "", err
	}
	path := filepath.Join(CacheRoot(), "tools", key, "helm")
	helm := program{"helm", module, "helm.sh/helm/v4/cmd/helm", "-s -w", "some 6 minutes"}
	return path, helm.once(ctx, path, logf)
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
