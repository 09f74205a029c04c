// Package harness raises the whole thing on one machine: a platform (etcd, the broker, a real control
// plane for each tenant) and edge sites behind NAT with one node each, in network namespaces.
//
// The tests and the demo are written on it. It runs the programs that a user runs, with the commands
// that a user types, and asserts nothing: that is the tests' part. Everything that it makes lies under
// one run, which Close removes; see package host for what happens when Close never comes.
package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/mooring-edge/mooring/e2e/internal/host"
	"github.com/mooring-edge/mooring/e2e/internal/image"
	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

// Env is one run.
type Env struct {
	Logf tools.Logf // progress, for a person
	Keep bool       // leave the run's directory behind

	run        *host.Run
	kubernetes string         // directory of the real components
	reaper     io.WriteCloser // its end tells the reaper that this process is gone

	mu    sync.Mutex // guards procs
	procs []*Proc
}

// needed are the programs that a run calls, and the Debian packages that hold them.
var needed = map[string]string{
	"containerd": "containerd", "ctr": "containerd", "runc": "runc", "nft": "nftables", "ip": "iproute2",
	"nsenter": "util-linux", "unshare": "util-linux", "busybox": "busybox-static", "go": "golang",
}

const (
	cniBin  = "/usr/lib/cni"
	busybox = "/usr/bin/busybox"
)

// Missing says why a run is not possible here; nil if it is.
func Missing() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: network namespaces, containers (try: sudo -E make …)")
	}
	for program, pkg := range needed {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("needs %s of package %s: run hack/install-deps", program, pkg)
		}
	}
	if _, err := os.Stat(cniBin + "/bridge"); err != nil {
		return fmt.Errorf("needs %s/bridge of package containernetworking-plugins: run hack/install-deps", cniBin)
	}
	if out, err := exec.Command("sh", "-c", "LC_ALL=C ldd "+busybox+" 2>&1").Output(); err == nil {
		return fmt.Errorf("%s is not static (package busybox-static): run hack/install-deps\n%s", busybox, out)
	}
	return nil
}

// New builds what is absent and takes a run.
func New(ctx context.Context, logf tools.Logf) (*Env, error) {
	if err := Missing(); err != nil {
		return nil, err
	}
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	removed, err := host.Sweep()
	for _, r := range removed {
		logf("removed what a run that was killed had left (%s)", r)
	}
	if err != nil {
		return nil, err
	}
	kubernetes, err := tools.Kubernetes(ctx, root, logf)
	if err != nil {
		return nil, err
	}
	run, err := host.NewRun()
	if err != nil {
		return nil, err
	}
	e := &Env{Logf: logf, Keep: os.Getenv("MOORING_E2E_KEEP") == "1", run: run, kubernetes: kubernetes}
	if err := e.prepare(ctx, root); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *Env) prepare(ctx context.Context, root string) error {
	for _, dir := range []string{"bin", "home", "logs"} {
		if err := os.Mkdir(filepath.Join(e.Dir(), dir), 0o755); err != nil {
			return err
		}
	}
	if err := tools.Product(ctx, root, filepath.Join(e.Dir(), "bin"), e.Logf); err != nil {
		return err
	}
	applets, err := host.Output(busybox, "--list")
	if err != nil {
		return err
	}
	if err := image.Write(e.ImageArchive(), busybox, splitLines(applets), e.Product("podapp")); err != nil {
		return err
	}
	return e.startReaper()
}

// startReaper leaves a process behind that cleans up however this one ends.
func (e *Env) startReaper() error {
	cmd := exec.Command(e.Product("helper"), "reap", e.run.ID)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the reaper: %w", err)
	}
	e.reaper = in
	return nil
}

// Dir is the run's directory.
func (e *Env) Dir() string { return e.run.Dir }

// Product is the path of a program built from the tree.
func (e *Env) Product(name string) string { return filepath.Join(e.Dir(), "bin", name) }

// Tool is the path of a real component.
func (e *Env) Tool(name string) string { return filepath.Join(e.kubernetes, name) }

// ImageArchive holds the images of the tests' pods, as package image makes them.
func (e *Env) ImageArchive() string { return filepath.Join(e.Dir(), "images.tar") }

// environ is the environment of everything that the run starts: none of the caller's settings.
func (e *Env) environ() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + filepath.Join(e.Dir(), "home"), "LC_ALL=C.UTF-8",
	}
}

// Close ends and removes everything.
func (e *Env) Close() error {
	e.mu.Lock()
	for _, p := range e.procs {
		p.expected.Store(true)
	}
	e.mu.Unlock()
	err := e.run.Close(e.Keep)
	if e.reaper != nil {
		_ = e.reaper.Close()
	}
	if e.Keep {
		e.Logf("kept %s", e.Dir())
	}
	return err
}

// DumpLogs prints the end of every log, for a run that failed.
func (e *Env) DumpLogs(w io.Writer) {
	for _, pattern := range []string{"logs/*.log", "disks/*/var/log/mooring/*.log", "disks/*/var/lib/mooring/*.log"} {
		logs, _ := filepath.Glob(filepath.Join(e.Dir(), pattern))
		for _, l := range logs {
			fmt.Fprintf(w, "--- the end of %s\n%s\n", e.Relative(l), tail(l, 25))
		}
	}
}
