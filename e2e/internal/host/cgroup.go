package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const cgroupMount = "/sys/fs/cgroup"

// hierarchies are the directories under which a cgroup of ours lies: one with cgroup v2, one for
// each controller with v1.
func hierarchies() []string {
	if _, err := os.Stat(cgroupMount + "/cgroup.controllers"); err == nil {
		return []string{cgroupMount}
	}
	entries, _ := os.ReadDir(cgroupMount)
	var out []string
	for _, e := range entries {
		dir := filepath.Join(cgroupMount, e.Name())
		if _, err := os.Stat(dir + "/cgroup.procs"); err == nil && e.IsDir() {
			out = append(out, dir)
		}
	}
	return out
}

// AddCgroup makes a top-level cgroup in every hierarchy, to be a kubelet's cgroupRoot.
func AddCgroup(name string) error {
	for _, h := range hierarchies() {
		dir := filepath.Join(h, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		// v2 hands controllers down only where told to; v1 has no such file.
		if data, err := os.ReadFile(h + "/cgroup.controllers"); err == nil && h == cgroupMount {
			for _, c := range strings.Fields(string(data)) {
				_ = os.WriteFile(h+"/cgroup.subtree_control", []byte("+"+c), 0o644)
				_ = os.WriteFile(dir+"/cgroup.subtree_control", []byte("+"+c), 0o644)
			}
		}
		// v1 cpusets start empty and then take no process.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			if data, err := os.ReadFile(filepath.Join(h, f)); err == nil && h != cgroupMount {
				_ = os.WriteFile(filepath.Join(dir, f), data, 0o644)
			}
		}
	}
	return nil
}

// removeCgroups removes the top-level cgroups whose name starts with prefix, waiting for the last
// processes in them to go.
func removeCgroups(prefix string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		var left error
		for _, h := range hierarchies() {
			matches, _ := filepath.Glob(filepath.Join(h, prefix+"*"))
			for _, m := range matches {
				if err := removeTree(m); err != nil {
					left = err
				}
			}
		}
		if left == nil || time.Now().After(deadline) {
			return left
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// removeTree removes a cgroup, deepest first; cgroups take rmdir only.
func removeTree(dir string) error {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// RemoveCgroup removes one cgroup of ours with all below it, waiting for its processes to go.
func RemoveCgroup(name string) error { return removeCgroups(name, 10*time.Second) }
