package edgeos

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

// images are the versions of the image that the tests use, each in a directory of its own.
type images struct {
	s     *suite
	dir   string
	ready map[string]chan error
}

// deaf is laid over version 3: its agent is sent through a proxy that there is not, so that it never connects, and a trial
// lasts no longer than it takes to see that.
var deaf = map[string]string{
	"usr/lib/systemd/system/edge-agent.service.d/90-test.conf":  "[Service]\nEnvironment=HTTPS_PROXY=http://127.0.0.1:9\n",
	"usr/lib/systemd/system/edge-os-trial.timer.d/90-test.conf": "[Timer]\nOnBootSec=\nOnBootSec=150s\n",
}

// hasty is laid over version 2: what it updates to has one try, where a box in the field gives it three. The counting is the boot
// loader's; each try more would only cost a boot under emulation.
func hasty(root string) (map[string]string, error) {
	const name = "usr/lib/edge-os/sysupdate.d/30-uki.transfer"
	transfer, err := os.ReadFile(filepath.Join(root, "images/edge-os/tree", name))
	if err != nil {
		return nil, err
	}
	const three = "TriesLeft=3\n"
	if !strings.Contains(string(transfer), three) {
		return nil, fmt.Errorf("%s has no %q any more", name, three)
	}
	return map[string]string{name: strings.Replace(string(transfer), three, "TriesLeft=1\n", 1)}, nil
}

// overlay is what is laid over a version; all but the first are only for updates.
func overlay(version, root string) (map[string]string, error) {
	switch version {
	case "2":
		return hasty(root)
	case "3":
		return deaf, nil
	}
	return nil, nil
}

// missingTools says what building the image lacks; nil if nothing.
func missingTools() error {
	for program, pkg := range map[string]string{"mmdebstrap": "mmdebstrap", "gpg": "gpg"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("needs %s of package %s: run hack/install-deps", program, pkg)
		}
	}
	return nil
}

// newImages takes those that MOORING_EDGE_OS_IMAGES has, from an earlier run; by default there are none.
func newImages(s *suite) *images {
	dir := os.Getenv("MOORING_EDGE_OS_IMAGES")
	if dir == "" {
		dir = filepath.Join(s.env.Dir(), "images")
	}
	return &images{s: s, dir: dir, ready: map[string]chan error{}}
}

// of is a version's directory.
func (i *images) of(version string) string { return filepath.Join(i.dir, version) }

// raw is the whole disk of a version.
func (i *images) raw(version string) string {
	return filepath.Join(i.of(version), "edge-os_"+version+".raw")
}

// update is the directory with the files of an update to a version.
func (i *images) update(version string) string { return filepath.Join(i.of(version), "update") }

// root is the file with a version's root.
func (i *images) root(version string) (string, error) {
	found, err := filepath.Glob(filepath.Join(i.update(version), "edge-os_"+version+"_*.root"))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("want one root in %s, have %v", i.update(version), found)
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// build makes a version, unless it is there.
func (i *images) build(ctx context.Context, version string) error {
	done := filepath.Join(i.of(version), "done")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	root, err := tools.Root()
	if err != nil {
		return err
	}
	files, err := overlay(version, root)
	if err != nil {
		return err
	}
	over := filepath.Join(i.of(version), "overlay")
	for name, content := range files {
		path := filepath.Join(over, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	args := []string{"--version", version, "--out", i.of(version), "--kubelet", i.s.env.Tool("kubelet"), "--preload", i.s.env.ImageArchive()}
	if len(files) > 0 {
		args = append(args, "--overlay", over)
	}
	if version != "1" {
		args = append(args, "--no-disk")
	}
	start := time.Now()
	cmd := exec.CommandContext(ctx, filepath.Join(root, "images/edge-os/build"), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) } // it unmounts what it has mounted
	cmd.WaitDelay = 30 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build version %s of the image: %w\n%s", version, err, out)
	}
	i.s.logf("built version %s of the image in %.0f s", version, time.Since(start).Seconds())
	return os.WriteFile(done, nil, 0o644)
}

// start builds versions one after the other while other things go on, until stop; see await.
func (i *images) start(ctx context.Context, versions ...string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	for _, v := range versions {
		i.ready[v] = make(chan error, 1)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, v := range versions {
			i.ready[v] <- i.build(ctx, v)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// await returns when a version that was started is there. It may be called once for each.
func (i *images) await(version string) error { return <-i.ready[version] }

// sizes says how large a version is.
func (i *images) sizes(version string) string {
	disk, err := os.Stat(i.raw(version))
	if err != nil {
		return err.Error()
	}
	path, err := i.root(version)
	if err != nil {
		return err.Error()
	}
	root, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	const mb = 1e6
	return fmt.Sprintf("disk %.0f MB, of which %.0f MB are written; root %.0f MB", float64(disk.Size())/mb,
		float64(disk.Sys().(*syscall.Stat_t).Blocks)*512/mb, float64(root.Size())/mb)
}

// flipped copies a version's update with one byte of its root changed. resum has the list of checksums fit the changed root, as
// somebody would see to who has the server but not the key.
func (i *images) flipped(version, as string, resum bool) error {
	from, to := i.update(version), i.update(as)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	files, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	root, err := i.root(version)
	if err != nil {
		return err
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(from, f.Name()))
		if err != nil {
			return err
		}
		if f.Name() == filepath.Base(root) {
			data[len(data)/2] ^= 1
		}
		if err := os.WriteFile(filepath.Join(to, f.Name()), data, 0o644); err != nil {
			return err
		}
	}
	if !resum {
		return nil
	}
	return resumRoot(to, filepath.Base(root))
}

// resumRoot corrects a file's line in SHA256SUMS.
func resumRoot(dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	path := filepath.Join(dir, "SHA256SUMS")
	sums, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	line := regexp.MustCompile(`(?m)^[0-9a-f]{64}( [ *]` + regexp.QuoteMeta(name) + `)$`)
	corrected := line.ReplaceAll(sums, fmt.Appendf(nil, "%x$1", sum.Sum(nil)))
	if bytes.Equal(corrected, sums) {
		return fmt.Errorf("%s has no line of %s to correct:\n%s", path, name, sums)
	}
	return os.WriteFile(path, corrected, 0o644)
}

// updatesPort is where a site has its mirror of updates: the router lets nothing out but what goes to the broker.
const updatesPort = "8080"

// serve serves all versions at a site, until stop.
func (i *images) serve(ctx context.Context, site *harness.Site) (stop func(), err error) {
	l, err := site.LAN.Listen(ctx, "tcp", harness.NodeAddress+":"+updatesPort)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(i.dir)), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l)
	}()
	return func() {
		_ = server.Close()
		<-ended
	}, nil
}

// url is where a box finds a version.
func url(version string) string {
	return fmt.Sprintf("http://%s:%s/%s/update/", harness.NodeAddress, updatesPort, version)
}
