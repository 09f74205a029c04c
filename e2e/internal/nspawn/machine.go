package nspawn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// Machine is one machine. It is off until Boot.
type Machine struct {
	Name string
	// Credentials are files that the machine's systemd gets as credentials, by name.
	Credentials map[string]string

	root  string // Debian's
	dir   string // upper and work directory, and the mount point
	netns host.Netns

	cmd    *exec.Cmd
	done   chan struct{}
	leader int // the container's first process
}

// New makes a machine of a root, with what it changes in dir, in a network namespace.
func New(name, root, dir string, netns host.Netns) (*Machine, error) {
	m := &Machine{Name: name, root: root, dir: dir, netns: netns}
	for _, sub := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	return m, m.Write("/etc/hostname", name+"\n", 0o644)
}

// Write writes a file of the machine, which is on or off.
func (m *Machine) Write(path, content string, perm os.FileMode) error {
	path = m.Path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(content), perm); err != nil {
		return err
	}
	return os.Chmod(path, perm)
}

// Path is where a file of the machine is found from outside; of one that is off, only what differs from the root.
func (m *Machine) Path(path string) string {
	if m.leader != 0 {
		return filepath.Join("/proc", strconv.Itoa(m.leader), "root", path)
	}
	return filepath.Join(m.dir, "upper", path)
}

// The mount is in a namespace of its own, and gone with its last process, however that ends.
const bootScript = `mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root" && shift 2 && exec "$@"`

// Boot starts the machine and returns when its systemd has started all that it is going to.
func (m *Machine) Boot(ctx context.Context) error {
	argv := []string{"--mount", "--propagation", "private", "--", "sh", "-c", bootScript, "sh", m.root, m.dir,
		"systemd-nspawn", "--quiet", "--directory=" + filepath.Join(m.dir, "root"), "--register=no", "--keep-unit", "--console=pipe",
		"--network-namespace-path=" + m.netns.Path(), "--machine=" + m.Name, "--capability=CAP_NET_ADMIN", "--resolv-conf=off", "--timezone=off", "--link-journal=no"}
	for name, path := range m.Credentials {
		argv = append(argv, "--load-credential="+name+":"+path)
	}
	log, err := os.OpenFile(filepath.Join(m.dir, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	m.cmd = exec.Command("unshare", append(argv, "--boot")...)
	m.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1"}
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := m.cmd.Start(); err != nil {
		return err
	}
	m.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(m.cmd, m.done)
	// The container's systemd offers no event before there is a way to ask it.
	var last error
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		if last = m.booted(ctx); last == nil {
			tick.Stop()
			return nil
		}
		select {
		case <-m.done:
			m.leader = 0
			return fmt.Errorf("machine %s ended at once: %w\n%s", m.Name, last, m.Console())
		case <-ctx.Done():
			return fmt.Errorf("boot machine %s: %w (%w)\n%s", m.Name, ctx.Err(), last, m.Console())
		case <-tick.C:
		}
	}
}

func (m *Machine) booted(ctx context.Context) error {
	if m.leader == 0 {
		// unshare and sh have become nspawn, whose child becomes the container's first process.
		for _, pid := range host.Children(m.cmd.Process.Pid) {
			if host.Comm(pid) == "systemd" {
				m.leader = pid
			}
		}
		if m.leader == 0 {
			return errors.New("no systemd yet")
		}
	}
	out, err := m.Run(ctx, "systemctl", "is-system-running", "--wait")
	if state := strings.TrimSpace(out); state == "running" || state == "degraded" {
		return nil // which of them is the test's to say
	}
	return fmt.Errorf("systemd: %q (%w)", strings.TrimSpace(out), err)
}

// Console is what the machine and nspawn said there.
func (m *Machine) Console() string {
	data, _ := os.ReadFile(filepath.Join(m.dir, "console.log"))
	return string(bytes.TrimSpace(data[max(0, len(data)-4000):]))
}

// Argv is a command line that runs a command in the machine.
func (m *Machine) Argv(argv ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(m.leader), "-m", "-p", "-u", "-i", "-n", "-C", "--",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER="}, argv...)
}

// Run runs a command in the machine and returns all that it said.
func (m *Machine) Run(ctx context.Context, argv ...string) (string, error) {
	full := m.Argv(argv...)
	cmd := exec.CommandContext(ctx, full[0], full[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // an nsenter has a child
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", m.Name, strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// PowerOff shuts the machine down in an orderly way.
func (m *Machine) PowerOff(ctx context.Context) error {
	_, err := m.Run(ctx, "systemctl", "poweroff", "--no-block")
	if err != nil {
		return err
	}
	select {
	case <-m.done:
		m.leader = 0
		return nil
	case <-ctx.Done():
		return fmt.Errorf("power off %s: %w\n%s", m.Name, ctx.Err(), m.Console())
	}
}

// Close ends the machine at once, if it is on.
func (m *Machine) Close() {
	if m.cmd == nil {
		return
	}
	if m.leader != 0 {
		_ = syscall.Kill(m.leader, syscall.SIGKILL) // and the kernel all else in the container
	}
	select {
	case <-m.done:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(m.cmd.Process.Pid, syscall.SIGKILL)
		<-m.done
	}
	m.leader = 0
}

// Chroot runs a command in the tree of a machine that is off, with none of its services, as who makes an image does.
func (m *Machine) Chroot(ctx context.Context, argv ...string) (string, error) {
	full := append([]string{"--mount", "--propagation", "private", "--", "sh", "-c", bootScript, "sh", m.root, m.dir,
		"chroot", filepath.Join(m.dir, "root"), "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}, argv...)
	out, err := exec.CommandContext(ctx, "unshare", full...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s, off: %s: %w: %s", m.Name, strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}
