// Package box turns fresh namespaces into what looks like a machine of its own: private /etc, /var,
// /run and /tmp, so that the product runs with its default paths; and is that machine's first process.
//
// A box's disk is a directory: etc/ (what differs from the host's /etc) and var/. Killing the first
// process is cutting the power: everything in the box ends at once, the disk stays.
package box

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Spec describes a box.
type Spec struct {
	Hostname string
	Disk     string // the directory that outlives the box
	Bin      string // programs that appear in the box's /usr/bin
}

// ReadyFD is where Init writes "ok", or what went wrong.
const ReadyFD = 3

// kernelSettings are those that a kubelet wants to see and would else set, for the whole host. A box
// shows them as set.
var kernelSettings = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// Init is the first process of a box: it has to run in mount, UTS, IPC and PID namespaces of its own,
// with /proc mounted. It does not return but on an error.
func Init(specJSON string) error {
	ready := os.NewFile(ReadyFD, "ready")
	err := furnish(specJSON)
	if err != nil {
		fmt.Fprint(ready, err)
	} else {
		fmt.Fprint(ready, "ok")
	}
	_ = ready.Close()
	if err != nil {
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	for range children {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
	}
	return nil
}

func furnish(specJSON string) error {
	var s Spec
	if err := json.Unmarshal([]byte(specJSON), &s); err != nil {
		return fmt.Errorf("read the box's description: %w", err)
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	// The harness's namespaces are nothing that this machine should hold on to.
	mounts, _ := filepath.Glob("/run/netns/*")
	for _, m := range mounts {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	etc, work := filepath.Join(s.Disk, "etc"), filepath.Join(s.Disk, ".etc-work")
	varDir := filepath.Join(s.Disk, "var")
	for _, dir := range []string{etc, work, varDir + "/lib", varDir + "/log", varDir + "/cache", varDir + "/tmp"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"run": "/run", "lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(varDir, name)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	for _, m := range []struct {
		source, target, kind, options string
		flags                         uintptr
	}{
		{"overlay", "/usr/bin", "overlay", "lowerdir=" + s.Bin + ":/usr/bin", unix.MS_RDONLY},
		{"overlay", "/etc", "overlay", "lowerdir=/etc,upperdir=" + etc + ",workdir=" + work, 0},
		{varDir, "/var", "", "", unix.MS_BIND | unix.MS_REC},
		{"tmpfs", "/run", "tmpfs", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s on %s (%s): %w", m.source, m.target, m.options, err)
		}
	}
	if err := os.Mkdir("/run/lock", 0o1777); err != nil {
		return err
	}
	if err := showKernelSettings("/run/kernel-settings"); err != nil {
		return err
	}
	// Pods with mount propagation ask for it; the namespace is private to the box all the same.
	return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}

// showKernelSettings lays files over /proc/sys, so that the kubelet leaves the host's settings alone.
func showKernelSettings(dir string) error {
	for key, value := range kernelSettings {
		source, target := filepath.Join(dir, key), filepath.Join("/proc/sys", key)
		if _, err := os.Stat(target); err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(source, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("lay %s over %s: %w", source, target, err)
		}
	}
	return nil
}
