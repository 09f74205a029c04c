package tools

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// Konnectivity returns the path of upstream's konnectivity agent, built once from the module e2e/konnectivity into the cache. root is
// the repository's.
func Konnectivity(ctx context.Context, root string, logf Logf) (string, error) {
	module := filepath.Join(root, "e2e", "konnectivity")
	key, err := cacheKey(ctx, module)
	if err != nil {
		return "", err
	}
	path := filepath.Join(cacheRoot(), "tools", key, "konnectivity-agent")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	lock, err := host.TryLock(filepath.Dir(path) + ".lock")
	if errors.Is(err, host.ErrLocked) {
		logf("another build of the konnectivity agent is running; waiting for it")
		lock, err = host.WaitLock(filepath.Dir(path) + ".lock")
	}
	if err != nil {
		return "", err
	}
	defer lock.Release()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	logf("building the konnectivity agent into %s; once only, with cold caches some 90 s on two cores", filepath.Dir(path))
	start := time.Now()
	if err := build(ctx, module, "sigs.k8s.io/apiserver-network-proxy/cmd/agent", path, "-s -w"); err != nil {
		return "", err
	}
	logf("konnectivity agent built in %s", time.Since(start).Round(time.Second))
	return path, nil
}
