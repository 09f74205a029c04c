// Package tools builds the programs that the end-to-end tests run: the real Kubernetes and etcd, once,
// into a cache outside the tree; and the product, afresh, from the tree.
//
// It is not a downloader: nothing is fetched but Go modules, by the go command, pinned by tools/go.sum.
package tools

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// Logf prints one line of progress.
type Logf func(format string, args ...any)

// KubernetesVersion is that of tools/go.mod, stamped into the binaries: they say v0.0.0-master otherwise.
const KubernetesVersion = "v1.37.2"

const kubernetesFlags = "-s -w -X k8s.io/component-base/version.gitVersion=" + KubernetesVersion +
	" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"

// components in the order in which they are built: the first shows soonest that the set-up is wrong.
var components = []struct{ name, pkg string }{
	{"etcd", "go.etcd.io/etcd/server/v3"},
	{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
	{"kubeadm", "k8s.io/kubernetes/cmd/kubeadm"},
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
	{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
	{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
	{"kubelet", "k8s.io/kubernetes/cmd/kubelet"},
	{"kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"},
}

// Kubernetes returns the directory that holds the real components, building those that are absent.
// root is the repository's.
func Kubernetes(ctx context.Context, root string, logf Logf) (string, error) {
	module := filepath.Join(root, "e2e", "tools")
	key, err := cacheKey(ctx, module)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(CacheRoot(), "tools", key)
	if len(missing(dir)) == 0 {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := host.TryLock(dir + ".lock")
	if errors.Is(err, host.ErrLocked) {
		logf("another build of Kubernetes is running; waiting for it")
		lock, err = host.WaitLock(dir + ".lock")
	}
	if err != nil {
		return "", err
	}
	defer lock.Release()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	todo := missing(dir)
	if len(todo) == 0 {
		return dir, nil
	}
	logf("building Kubernetes %s and etcd from Go modules into %s", KubernetesVersion, dir)
	logf("once only; with cold caches about a quarter of an hour on two cores")
	start := time.Now()
	for i, c := range components {
		if !slices.Contains(todo, c.name) {
			continue
		}
		began := time.Now()
		logf("[%d/%d] %s ...", i+1, len(components), c.name)
		if err := build(ctx, module, c.pkg, filepath.Join(dir, c.name), kubernetesFlags); err != nil {
			return "", err
		}
		logf("[%d/%d] %s built in %.0f s", i+1, len(components), c.name, time.Since(began).Seconds())
	}
	logf("built in %s", time.Since(start).Round(time.Second))
	return dir, nil
}

// Product builds the agent and the broker as they are shipped (no cgo, stripped), and the tests' own
// programs, into dir.
func Product(ctx context.Context, root, dir string, logf Logf) error {
	start := time.Now()
	for _, p := range []struct{ module, pkg, name string }{
		{"e2e", "./cmd/helper", "helper"},
		{"e2e", "./cmd/podapp", "podapp"},
		{"e2e", "./cmd/timeshift", "timeshift"},
		{".", "./cmd/edge-agent", "edge-agent"},
		{".", "./cmd/broker", "broker"},
	} {
		if err := build(ctx, filepath.Join(root, p.module), p.pkg, filepath.Join(dir, p.name), "-s -w"); err != nil {
			return err
		}
	}
	logf("built edge-agent and broker from the tree (%.0f s)", time.Since(start).Seconds())
	return nil
}

// Root finds the repository from a directory within it.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		data, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module github.com/mooring-edge/mooring\n") {
			return d, nil
		}
	}
	return "", fmt.Errorf("%s is not within the Mooring repository: run from its tree", dir)
}

// build makes one binary, whole or not at all.
func build(ctx context.Context, module, pkg, out, ldflags string) error {
	temp := fmt.Sprintf("%s.tmp-%d", out, os.Getpid())
	defer os.Remove(temp)
	flags, err := os.ReadFile(filepath.Join(module, pkg, "build.flags"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	args := append([]string{"build", "-trimpath", "-ldflags", ldflags}, strings.Fields(string(flags))...)
	cmd := exec.CommandContext(ctx, "go", append(args, "-o", temp, pkg)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s in %s: %w\n%s", pkg, module, err, text)
	}
	return os.Rename(temp, out)
}

// cacheKey changes with all that decides what the binaries are.
func cacheKey(ctx context.Context, module string) (string, error) {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n%s", name, len(data), data)
	}
	cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION", "GOOS", "GOARCH")
	cmd.Dir = module
	env, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run go env: %w", err)
	}
	fmt.Fprintf(h, "%s%s", env, kubernetesFlags)
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// CacheRoot is the directory outside the tree for what is made once.
func CacheRoot() string {
	if dir := os.Getenv("MOORING_CACHE"); dir != "" {
		return dir
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "mooring")
	}
	return filepath.Join(os.TempDir(), "mooring-cache")
}

func missing(dir string) []string {
	var out []string
	for _, c := range components {
		if _, err := os.Stat(filepath.Join(dir, c.name)); err != nil {
			out = append(out, c.name)
		}
	}
	return out
}
