package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/box"
	"github.com/mooring-edge/mooring/e2e/internal/host"
	"github.com/mooring-edge/mooring/e2e/internal/image"
)

// Box is the one machine of a site. It is off until PowerOn.
type Box struct {
	Hostname string
	Site     *Site
	// Cgroup is the kubelet's cgroupRoot: machines would have cgroups of their own, these share one tree.
	Cgroup string

	// Clock is by how much the agent's and the kubelet's wall clock is off, from their next start on. The
	// kubelet needs ConfigureAgentWith for that.
	Clock time.Duration

	disk string
	init *Proc
	proc map[string]*Proc // by name, since the last PowerOn
}

const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + image.Pause + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "` + cniBin + `"
    conf_dir = "/etc/cni/net.d"
`

// cniConfig has pods' addresses from a range that is the same on each machine.
var cniConfig = cniConfigOf("10.88.0.0/24")

func cniConfigOf(subnet string) string {
	return `{"cniVersion": "0.4.0", "name": "pods", "plugins": [{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "` + subnet + `"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}
}]}
`
}

const cniPath = "etc/cni/net.d/10-pods.conflist"

// NewBox installs a machine at a site: a disk with containerd's and the CNI's configuration.
func (s *Site) NewBox(hostname string) (*Box, error) {
	e := s.env
	b := &Box{Hostname: hostname, Site: s, Cgroup: e.run.Name(s.Name), disk: filepath.Join(e.Dir(), "disks", s.Name)}
	bin := b.bin()
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	for _, program := range []string{e.Tool("kubelet"), e.Tool("kube-proxy"), e.Tool("kubectl"), e.Product("edge-agent"), e.Product("timeshift")} {
		if err := copyFile(program, filepath.Join(bin, filepath.Base(program))); err != nil && !os.IsExist(err) {
			return nil, err
		}
	}
	for path, content := range map[string]string{
		"etc/hostname":               hostname + "\n",
		"etc/hosts":                  "127.0.0.1 localhost\n" + NodeAddress + " " + hostname + "\n" + s.brokerHosts(),
		"etc/resolv.conf":            "# no name server: names that are not in /etc/hosts have no answer\n",
		"etc/machine-id":             machineID(s.Name),
		"etc/site":                   s.Name + "\n",
		"etc/containerd/config.toml": containerdConfig,
		cniPath:                      cniConfig,
	} {
		if err := b.Write(path, content); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// bin holds the programs that boxes have and the host may not; all boxes share it.
func (b *Box) bin() string { return filepath.Join(b.Site.env.Dir(), "box-bin") }

func machineID(name string) string { return fmt.Sprintf("%032x\n", name)[:32] + "\n" }

// Path is where a file of the box is found from outside, whether it is on or off (then only what is on
// its disk: /etc and /var).
func (b *Box) Path(path string) string {
	if b.On() {
		return filepath.Join("/proc", strconv.Itoa(b.init.PID), "root", path)
	}
	return filepath.Join(b.disk, path)
}

// Write writes a file of the box.
func (b *Box) Write(path, content string) error {
	path = b.Path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o600)
}

// On says whether the box has power.
func (b *Box) On() bool { return b.init != nil && !b.init.Ended() }

// PowerOn boots the box from its disk: fresh /run, /tmp and process numbers; containerd runs.
func (b *Box) PowerOn(ctx context.Context) error {
	if err := host.AddCgroup(b.Cgroup); err != nil {
		return err
	}
	if err := b.startInit(); err != nil {
		return fmt.Errorf("power on %s: %w", b.Site.Name, err)
	}
	b.proc = map[string]*Proc{}
	if err := b.Start("containerd", "containerd"); err != nil {
		return err
	}
	if _, err := b.Site.env.Wait(ctx, "containerd of "+b.Site.Name, time.Minute, func(ctx context.Context) error {
		_, err := b.Run(ctx, "ctr", "version")
		return err
	}); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(b.disk, "images-imported")); err == nil {
		return nil
	}
	archive, err := os.Open(b.Site.env.ImageArchive()) // the box does not see the run's directory
	if err != nil {
		return err
	}
	defer archive.Close()
	cmd := b.Command(ctx, "ctr", "-n", "k8s.io", "images", "import", "-")
	cmd.Stdin = archive
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import images at %s: %w\n%s", b.Site.Name, err, out)
	}
	return os.WriteFile(filepath.Join(b.disk, "images-imported"), nil, 0o644)
}

func (b *Box) startInit() error {
	spec, err := json.Marshal(box.Spec{Hostname: b.Hostname, Disk: b.disk, Bin: b.bin()})
	if err != nil {
		return err
	}
	argv := b.Site.LAN.Argv("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child", "--",
		b.Site.env.Product("helper"), "init", string(spec))
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	p, err := b.Site.env.start(b.Site.Name+"/init", true, argv, theirs)
	_ = theirs.Close()
	if err != nil {
		return err
	}
	// One read: unshare holds the pipe as well, so its end comes with the box's.
	answer := make([]byte, 4096)
	n, err := ready.Read(answer)
	if string(answer[:n]) != "ok" {
		return fmt.Errorf("%s (%w)\n%s", answer[:n], err, tail(p.Log, 10))
	}
	b.init = p
	return nil
}

// PowerOff cuts the power: every process of the box ends at once, with whatever it was doing.
func (b *Box) PowerOff() error {
	for _, p := range b.proc {
		p.expected.Store(true)
	}
	b.init.Kill()
	for _, p := range b.proc {
		<-p.done
	}
	// What a machine's kernel would have forgotten.
	_ = b.Site.LAN.IP("link del cni0")
	return host.RemoveCgroup(b.Cgroup)
}

func (b *Box) enter(argv ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(b.init.PID), "-m", "-u", "-i", "-p", "-n", "--"}, argv...)
}

// Start starts a daemon on the box.
func (b *Box) Start(name string, argv ...string) error {
	p, err := b.Site.env.start(b.Site.Name+"/"+name, true, b.enter(argv...))
	if err == nil {
		b.proc[name] = p
	}
	return err
}

// Proc is the daemon last started under the name.
func (b *Box) Proc(name string) *Proc { return b.proc[name] }

// Command makes a command on the box, not started.
func (b *Box) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return b.Site.env.command(ctx, b.enter(argv...)...)
}

// Run runs a command on the box and returns all that it said.
func (b *Box) Run(ctx context.Context, argv ...string) (string, error) {
	out, err := b.Command(ctx, argv...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", b.Site.Name, strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// FindProcess returns the box's process of that short name, 0 if there is none or more than one.
func (b *Box) FindProcess(comm string) int {
	found := 0
	for _, pid := range b.Site.LAN.Processes() {
		if host.Comm(pid) == comm {
			if found != 0 {
				return 0
			}
			found = pid
		}
	}
	return found
}

func copyFile(from, to string) error {
	if err := os.Link(from, to); err == nil || os.IsExist(err) {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}
