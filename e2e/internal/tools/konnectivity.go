package tools

import (
	"context"
	"path/filepath"
)

// Konnectivity returns the path of upstream's konnectivity agent, built once from the module e2e/konnectivity into the cache. root is
// the repository's.
func Konnectivity(ctx context.Context, root string, logf Logf) (string, error) {
	module := filepath.Join(root, "e2e", "konnectivity")
	key, err := cacheKey(ctx, module)
	if err != nil {
		return "", err
	}
	path := filepath.Join(CacheRoot(), "tools", key, "konnectivity-agent")
	agent := program{"the konnectivity agent", module, "sigs.k8s.io/apiserver-network-proxy/cmd/agent", "-s -w", "some 90 s"}
	return path, agent.once(ctx, path, logf)
}

// KonnectivityServer returns the path of upstream's server, built once from the module bench/peers into the cache.
func KonnectivityServer(ctx context.Context, root string, logf Logf) (string, error) {
	module := filepath.Join(root, "bench", "peers")
	key, err := cacheKey(ctx, module)
	if err != nil {
		return "", err
	}
	path := filepath.Join(CacheRoot(), "tools", key, "konnectivity-server")
	server := program{"the konnectivity server", module, "sigs.k8s.io/apiserver-network-proxy/cmd/server", "-s -w", "some 90 s"}
	return path, server.once(ctx, path, logf)
}
