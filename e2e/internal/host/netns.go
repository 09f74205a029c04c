package host

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Prefix starts the name of everything that a run makes in the kernel.
const Prefix = "moor-"

const netnsDir = "/run/netns"

// Netns is a named network namespace.
type Netns string

// AddNetns makes a network namespace with its loopback up and IPv6 off.
func AddNetns(name string) (Netns, error) {
	if _, err := Output("ip", "netns", "add", name); err != nil {
		return "", err
	}
	n := Netns(name)
	for _, key := range []string{"all", "default"} {
		if err := n.Sysctl("net/ipv6/conf/"+key+"/disable_ipv6", "1"); err != nil {
			return n, err
		}
	}
	return n, n.IP("link set lo up")
}

// Path is the file that nsenter and setns take.
func (n Netns) Path() string { return filepath.Join(netnsDir, string(n)) }

// Argv wraps a command so that it runs in the namespace. nsenter and not `ip netns exec`, which
// mounts a /sys without cgroups, on which a kubelet dies. The command keeps nsenter's process ID.
func (n Netns) Argv(argv ...string) []string {
	return append([]string{"nsenter", "--net=" + n.Path(), "--"}, argv...)
}

// IP runs one ip(8) command in the namespace.
func (n Netns) IP(command string) error {
	_, err := Output("ip", append([]string{"-n", string(n)}, strings.Fields(command)...)...)
	return err
}

// Nft loads an nftables script in the namespace.
func (n Netns) Nft(script string) error {
	argv := n.Argv("nft", "-f", "-")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load nftables rules in %s: %w\n%s", n, err, out)
	}
	return nil
}

// Sysctl sets a kernel setting of the namespace; key is a path under /proc/sys.
func (n Netns) Sysctl(key, value string) error {
	return n.do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) })
}

// Dial connects from within the namespace. The connection may be used from anywhere.
func (n Netns) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := n.do(func() (err error) {
		// No resolver and no second attempt: both would run in goroutines outside the namespace.
		d := net.Dialer{FallbackDelay: -1, Resolver: nil}
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens in the namespace.
func (n Netns) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var l net.Listener
	err := n.do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// The first thread is what the kernel shows as the process, and the runtime can't end it: no goroutine
// but main's may run there, so that none enters a namespace with it.
func init() { runtime.LockOSThread() }

// do runs fn on a thread that is in the namespace, and ends that thread.
func (n Netns) do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		done <- func() error {
			fd, err := unix.Open(n.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open network namespace %s: %w", n, err)
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", n, err)
			}
			return fn()
		}()
	}()
	return <-done
}

// Processes lists the processes that are in the namespace now.
func (n Netns) Processes() []int {
	var st syscall.Stat_t
	if syscall.Stat(n.Path(), &st) != nil {
		return nil
	}
	return pidsWhere(func(dir string) bool {
		link, err := os.Readlink(dir + "/ns/net")
		return err == nil && link == fmt.Sprintf("net:[%d]", st.Ino)
	})
}

// Delete removes the namespace, with its links. Absent is no error.
func (n Netns) Delete() error {
	if _, err := os.Stat(n.Path()); os.IsNotExist(err) {
		return nil
	}
	_, err := Output("ip", "netns", "del", string(n))
	return err
}

// listNetns returns the namespaces whose name starts with prefix.
func listNetns(prefix string) []Netns {
	entries, _ := os.ReadDir(netnsDir)
	var out []Netns
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			out = append(out, Netns(e.Name()))
		}
	}
	return out
}

// Output runs a command and returns its standard output; its error holds what the command said.
func Output(name string, args ...string) (string, error) {
	var stderr strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
