// Package nspawn runs machines with a real systemd in containers of systemd-nspawn: a Debian root that is made once, an overlay
// over it for each machine, and a network namespace of the harness's.
//
// There is no systemd on the host to ask for anything, and no cgroup controllers in the container: what needs those (a
// kubelet, MemoryMax) can't be shown here.
package nspawn

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

// What the root is made of. A change makes another one.
const (
	suite  = "bookworm"
	mirror = "http://deb.debian.org/debian"
)

var packages = []string{"systemd", "systemd-sysv", "dbus", "cloud-init", "iproute2", "procps", "rpm", "man-db"}

// Missing says what of the host's is missing to run machines; nil if nothing is.
func Missing() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: containers, mounts")
	}
	for program, pkg := range map[string]string{"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "nsenter": "util-linux", "unshare": "util-linux"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("needs %s of package %s: run hack/install-deps", program, pkg)
		}
	}
	return nil
}

// Root returns the directory of the Debian root, made once into the cache. Nothing may be written to it.
func Root(ctx context.Context, logf tools.Logf) (string, error) {
	include := strings.Join(packages, ",")
	sum := sha256.Sum256([]byte(suite + " " + mirror + " " + include))
	dir := filepath.Join(tools.CacheRoot(), "roots", suite+"-"+hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	lock, err := host.WaitLock(dir + ".lock")
	if err != nil {
		return "", err
	}
	defer lock.Release()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	logf("making a Debian root in %s; once only, a minute or two", dir)
	start := time.Now()
	unfinished := dir + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	// A tar file and not the directory: mmdebstrap would leave its mounts there if it were killed.
	archive := dir + ".tar"
	defer os.Remove(archive)
	for _, argv := range [][]string{
		{"mmdebstrap", "--quiet", "--variant=minbase", "--include=" + include, suite, archive, mirror},
		{"mkdir", unfinished},
		{"tar", "-C", unfinished, "--xattrs", "--exclude=./dev/*", "-xpf", archive},
	} {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
		}
	}
	if err := os.Rename(unfinished, dir); err != nil {
		return "", err
	}
	logf("made in %s", time.Since(start).Round(time.Second))
	return dir, nil
}
