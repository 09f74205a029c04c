package packages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
	"github.com/mooring-edge/mooring/e2e/internal/begin"
	"github.com/mooring-edge/mooring/e2e/internal/nspawn"
	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

// The versions that are built: what is installed first, and what it is upgraded to.
const (
	older = "0.0.1"
	newer = "0.0.2"
)

type suite struct {
	ctx      context.Context
	start    time.Time
	env      *harness.Env
	platform *harness.Platform
	tenant   *harness.Tenant
	root     string // Debian's
	built    string // the directory of the packages
}

func TestPackages(t *testing.T) {
	s := newSuite(t)
	var err error
	s.root, err = nspawn.Root(s.ctx, s.logf)
	must(t, err)
	s.build(t)
	s.platform, err = s.env.StartPlatform(s.ctx)
	must(t, err)
	must(t, s.platform.StartBroker(s.ctx))
	s.tenant, err = s.platform.NewTenant(s.ctx, "acme")
	must(t, err)
	must(t, s.tenant.Admit(s.ctx))
	must(t, s.tenant.Start(s.ctx))
	must(t, s.tenant.SetKubeletConfig(s.ctx))
	s.logf("the control plane is up")

	t.Run("Broker", s.brokerPackage)
	t.Run("Deb", s.debLifeCycle)
	t.Run("KubeletOfOthers", s.kubeletOfOthers)
	t.Run("CloudInit", s.cloudInit)
	t.Run("Image", s.image)
	t.Run("RPM", s.rpmLifeCycle)
}

func newSuite(t *testing.T) *suite {
	s := &suite{start: time.Now()}
	ctx, env := begin.Suite(t, errors.Join(harness.Missing(), nspawn.Missing()), s.logf, func() {})
	s.env = env
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithTimeout(ctx, 15*time.Minute)
	t.Cleanup(cancel)
	return s
}

func (s *suite) logf(format string, args ...any) {
	fmt.Printf("[packages %6.1f] %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}

// build makes the packages for this machine, as `make packages` does.
func (s *suite) build(t *testing.T) {
	root, err := tools.Root()
	must(t, err)
	s.built = filepath.Join(s.env.Dir(), "packages")
	for _, args := range [][]string{{"--version", "v" + older}, {"--version", "v" + newer, "--only", "edge-agent"}} {
		cmd := exec.CommandContext(s.ctx, filepath.Join(root, "packaging", "build"), append(args, "--arch", runtime.GOARCH, "--out", s.built)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the packages: %v\n%s", err, out)
		}
	}
	s.logf("packages built")
}

// one returns the one package that matches.
func (s *suite) one(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.built, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("packages %s: %v (%v)", pattern, found, err)
	}
	return found[0]
}

func (s *suite) deb(t *testing.T, name, version string) string {
	return s.one(t, name+"_"+version+"-1_*.deb")
}
func (s *suite) rpm(t *testing.T, name, version string) string {
	return s.one(t, name+"-"+version+"-1.*.rpm")
}

// machine is a machine of a test, at a site of its own.
type machine struct {
	*nspawn.Machine
	s *suite
	t *testing.T
}

// standIn is what runs in the place of a kubelet: one process that ends when it is told to, and not otherwise. Its command line is
// the kubelet's.
const standIn = `#!/bin/sh
sleep infinity &
trap 'kill $!; exit 0' TERM
while :; do wait; done
`

// newMachine makes a machine that is off, with a kubelet and the way to the broker.
func (s *suite) newMachine(t *testing.T, name string) *machine {
	t.Helper()
	site, err := s.platform.AddSite(name)
	must(t, err)
	nm, err := nspawn.New(name, s.root, filepath.Join(s.env.Dir(), "machines", name), site.LAN)
	must(t, err)
	t.Cleanup(nm.Close)
	m := &machine{nm, s, t}
	m.write("/etc/hosts", "127.0.0.1 localhost "+name+"\n"+harness.BrokerAddress+" "+harness.BrokerName+"\n", 0o644)
	m.write("/usr/bin/kubelet", standIn, 0o755)
	return m
}

// boot starts the machine.
func (m *machine) boot() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.s.ctx, time.Minute)
	defer cancel()
	must(m.t, m.Boot(ctx))
	m.t.Cleanup(func() {
		if m.t.Failed() {
			out, _ := m.Run(m.s.ctx, "sh", "-c", "systemctl --failed; journalctl --no-pager -b -n 120; tail -n 40 /var/log/cloud-init-output.log")
			fmt.Printf("--- %s\n%s\n", m.Name, out)
		}
	})
}

func (m *machine) write(path, content string, perm os.FileMode) {
	m.t.Helper()
	must(m.t, m.Write(path, content, perm))
}

// copyIn puts a file into the machine's root directory and returns its path there.
func (m *machine) copyIn(path string) string {
	m.t.Helper()
	data, err := os.ReadFile(path)
	must(m.t, err)
	to := "/root/" + filepath.Base(path)
	m.write(to, string(data), 0o644)
	return to
}

// sh runs a shell line that must not fail, and returns what it said.
func (m *machine) sh(line string) string {
	m.t.Helper()
	out, err := m.Run(m.s.ctx, "sh", "-c", line)
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// healthy checks that no unit has failed.
func (m *machine) healthy(when string) {
	m.t.Helper()
	if out, err := m.Run(m.s.ctx, "systemctl", "--failed", "--quiet", "--no-legend"); err != nil || strings.TrimSpace(out) != "" {
		m.t.Errorf("%s: failed units: %s (%v)", when, out, err)
	}
	if out, _ := m.Run(m.s.ctx, "systemctl", "is-system-running"); strings.TrimSpace(out) != "running" {
		m.t.Errorf("%s: the system is %s", when, out)
	}
}

// show is a property of a unit.
func (m *machine) show(unit, property string) string {
	m.t.Helper()
	return m.sh("systemctl show --timestamp=us+utc -P " + property + " " + unit)
}

func (m *machine) state(unit, want, when string) {
	m.t.Helper()
	if got := m.show(unit, "ActiveState") + "/" + m.show(unit, "Result"); got != want+"/success" {
		m.t.Errorf("%s: %s is %s, want %s", when, unit, got, want)
	}
}

// timestamp is a time that systemd keeps of a unit.
func (m *machine) timestamp(unit, property string) time.Time {
	m.t.Helper()
	text := m.show(unit, property)
	at, err := time.Parse("Mon 2006-01-02 15:04:05.000000 MST", text)
	if err != nil {
		m.t.Fatalf("%s of %s: %v", property, unit, err)
	}
	return at
}

type status struct {
	Version  string `json:"version"`
	Ready    bool   `json:"ready"`
	Summary  string `json:"summary"`
	Identity *struct {
		Node        string `json:"node"`
		Fingerprint string `json:"fingerprint"`
	} `json:"identity"`
	Tunnel struct {
		Connected bool      `json:"connected"`
		Since     time.Time `json:"since"`
	} `json:"tunnel"`
	Kubelet struct {
		PID     int    `json:"pid"`
		Message string `json:"message"`
	} `json:"kubelet"`
	Conditions []struct{ Type, Status, Message string } `json:"conditions"`
}

// status asks edge-agent; err is what the command failed with.
func (m *machine) status() (s status, err error) {
	out, err := m.Run(m.s.ctx, "edge-agent", "status", "-o", "json")
	if jsonErr := json.Unmarshal([]byte(out), &s); jsonErr != nil && err == nil {
		err = jsonErr
	}
	return s, err
}

// ready waits until the agent says that the node is ready.
func (m *machine) ready(what string, limit time.Duration) (got status) {
	m.t.Helper()
	took, err := m.s.env.Wait(m.s.ctx, what, limit, func(context.Context) (err error) {
		if got, err = m.status(); err != nil && got.Summary != "" {
			err = errors.New(got.Summary)
		}
		return err
	})
	must(m.t, err)
	m.s.logf("%s: %s: ready in %.1f s", m.Name, what, took.Seconds())
	return got
}

// untilGone waits until a file of the machine is gone.
func (m *machine) untilGone(path string) {
	m.t.Helper()
	_, err := m.s.env.Wait(m.s.ctx, path+" to go", 30*time.Second, func(context.Context) error {
		if _, err := m.Run(m.s.ctx, "test", "!", "-e", path); err != nil {
			return fmt.Errorf("%s is there", path)
		}
		return nil
	})
	must(m.t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(path, content string) error { return os.WriteFile(path, []byte(content), 0o600) }
