// Package vm is a machine in QEMU, without hardware virtualization: UEFI firmware, a disk, a seed for cloud-init, a serial
// console that is read line by line as it is written, and a power switch that cuts or asks.
//
// It knows nothing of what runs in the machine, and puts nothing into it but the seed. Its network is QEMU's user mode
// one: the guest has 10.0.2.15 behind a NAT whose far side is wherever QEMU runs, such as a network namespace
// (Config.Enter).
package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Config describes a machine.
type Config struct {
	// Dir is the machine's directory, which New makes: disk, firmware variables, seed. Its path has to be short enough
	// for a unix socket's (some 100 characters).
	Dir string
	// Image is what the disk holds at first; it is copied. Empty = there is no disk, and no network: the firmware would look
	// for something to boot there, for minutes.
	Image string
	// DiskSize is the disk's size in bytes; at least the image's. Default 8 GiB, of which only what is written takes space.
	DiskSize int64
	// Serial is the machine's serial number, as its firmware says it; empty = QEMU sets none.
	Serial string
	// ConsoleLog is a file to which all that the console says is appended. Default console.log in Dir.
	ConsoleLog string
	// Memory is in MiB. Default 2048.
	Memory int
	// CPUs that the machine has. Default 1: more of them than there are to run them wait for each other.
	CPUs int
	// Enter wraps QEMU's command line, so that it runs in a network namespace; the command must keep the process ID.
	// Default: it runs where the caller does.
	Enter func(argv ...string) []string
}

const (
	qemu     = "qemu-system-x86_64"
	firmware = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	blank    = "/usr/share/OVMF/OVMF_VARS_4M.fd" // firmware variables of a new machine
	// cpu is one that needs no page-table isolation: with Meltdown's cure each system call costs the emulator its translations
	// (a first boot then took 213 s of CPU, not 148).
	cpu             = "EPYC"
	defaultDiskSize = 8 << 30
	defaultMemory   = 2048
)

// Machine is off until PowerOn. Its methods are for one goroutine at a time, but for those of its Console, On and Died.
type Machine struct {
	Console *Console

	cfg  Config
	seed bool

	mu       sync.Mutex // guards the following
	since    time.Time  // of the last PowerOn
	proc     *os.Process
	done     chan struct{} // closed when QEMU has ended and its console is read; nil before the first PowerOn
	expected bool          // QEMU's end is the caller's doing
	err      error         // of an end that was not
}

// Missing says why a machine can't run here; nil if it can.
func Missing() error {
	for program, pkg := range map[string]string{qemu: "qemu-system-x86", "mcopy": "mtools", "mkfs.vfat": "dosfstools"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("needs %s of package %s: run hack/install-deps", program, pkg)
		}
	}
	for _, file := range []string{firmware, blank} {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("needs %s of package ovmf: run hack/install-deps", file)
		}
	}
	return nil
}

// New builds a machine: its directory, its disk and blank firmware variables. It is off.
func New(cfg Config) (*Machine, error) {
	if cfg.DiskSize == 0 {
		cfg.DiskSize = defaultDiskSize
	}
	if cfg.Memory == 0 {
		cfg.Memory = defaultMemory
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	if cfg.ConsoleLog == "" {
		cfg.ConsoleLog = filepath.Join(cfg.Dir, "console.log")
	}
	if cfg.Enter == nil {
		cfg.Enter = func(argv ...string) []string { return argv }
	}
	m := &Machine{cfg: cfg, Console: newConsole()}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := copyFile(blank, m.path("vars.fd")); err != nil {
		return nil, err
	}
	if cfg.Image == "" {
		return m, nil
	}
	return m, newDisk(cfg.Image, m.Disk(), cfg.DiskSize)
}

func (m *Machine) path(name string) string { return filepath.Join(m.cfg.Dir, name) }

// Disk is the file with the disk's content. What is written to it while the machine runs, the machine sees where it has
// not read it before.
func (m *Machine) Disk() string { return m.path("disk.raw") }

// Insert gives the machine a seed from its next PowerOn on, in place of the one it has.
func (m *Machine) Insert(s Seed) error {
	m.seed = true
	return s.write(m.path("seed.img"))
}

// Eject takes the seed out, from the next PowerOn on.
func (m *Machine) Eject() error {
	m.seed = false
	return os.RemoveAll(m.path("seed.img"))
}

// argv is QEMU's command line.
func (m *Machine) argv() []string {
	argv := []string{qemu, "-nodefaults", "-no-user-config", "-display", "none",
		"-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", cpu, "-smp", strconv.Itoa(m.cfg.CPUs), "-m", strconv.Itoa(m.cfg.Memory),
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + firmware,
		"-drive", "if=pflash,format=raw,unit=1,file=" + m.path("vars.fd"),
		"-serial", "stdio", "-qmp", "unix:" + m.path("qmp") + ",server=on,wait=off",
		"-device", "virtio-rng-pci"}
	if m.cfg.Serial != "" {
		argv = append(argv, "-smbios", "type=1,manufacturer=Mooring,product=edge,serial="+m.cfg.Serial)
	}
	if m.cfg.Image != "" {
		// A power cut loses what the guest has not written to the disk yet. What it has written, flushed or not, is in this
		// machine's page cache, which outlives QEMU: so it is on a disk whose cache has a battery.
		argv = append(argv, "-drive", "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file="+m.Disk(),
			"-device", "virtio-blk-pci,drive=disk,bootindex=1",
			"-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,netdev=net,romfile=")
	}
	if m.seed {
		argv = append(argv, "-drive", "if=none,id=seed,format=raw,readonly=on,file="+m.path("seed.img"),
			"-device", "virtio-blk-pci,drive=seed")
	}
	return argv
}

// PowerOn switches the machine on.
func (m *Machine) PowerOn() error {
	if m.On() {
		return errors.New("the machine is on")
	}
	log, err := os.OpenFile(m.cfg.ConsoleLog, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	console, theirs, err := os.Pipe()
	if err != nil {
		_ = log.Close()
		return err
	}
	argv := m.cfg.Enter(m.argv()...)
	cmd := exec.Command(argv[0], argv[1:]...)
	said := &lastWords{}
	cmd.Stdout, cmd.Stderr = theirs, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is the caller's to handle
	start := time.Now()
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		_, _ = console.Close(), log.Close()
		return fmt.Errorf("start %s: %w", qemu, err)
	}
	done := make(chan struct{})
	m.mu.Lock()
	m.since, m.proc, m.done, m.expected, m.err = start, cmd.Process, done, false, nil
	m.mu.Unlock()
	go func() {
		defer close(done)
		m.Console.read(io.TeeReader(console, log))
		err := cmd.Wait()
		_, _ = console.Close(), log.Close()
		m.mu.Lock()
		defer m.mu.Unlock()
		if !m.expected {
			m.err = fmt.Errorf("the machine in %s has switched itself off (%v) %s", m.cfg.Dir, err, said)
		}
	}()
	return nil
}

// Since is when the machine was switched on last; zero if it never was.
func (m *Machine) Since() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.since
}

// On says whether the machine has power.
func (m *Machine) On() bool {
	m.mu.Lock()
	done := m.done
	m.mu.Unlock()
	if done == nil {
		return false
	}
	select {
	case <-done:
		return false
	default:
		return true
	}
}

// Died returns an error if the machine went off by itself.
func (m *Machine) Died() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Alive is ctx for as long as the machine is on: it ends when the machine goes off, with the reason as its cause.
func (m *Machine) Alive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	m.mu.Lock()
	done := m.done
	m.mu.Unlock()
	if done == nil {
		cancel(errors.New("the machine was never switched on"))
		return ctx, func() {}
	}
	go func() {
		select {
		case <-ctx.Done():
		case <-done:
			cancel(cmp.Or(m.Died(), fmt.Errorf("the machine in %s was switched off", m.cfg.Dir)))
		}
	}()
	return ctx, func() { cancel(context.Canceled) }
}

// expect says that what happens to QEMU is meant, and returns what to wait on; nil if the machine is off.
func (m *Machine) expect() (*os.Process, chan struct{}) {
	if !m.On() {
		return nil, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expected = true
	return m.proc, m.done
}

// PowerCut takes the power away, with whatever the machine was doing. It returns when the machine is off.
func (m *Machine) PowerCut() {
	if proc, done := m.expect(); done != nil {
		_ = proc.Kill()
		<-done
	}
}

// PowerDown presses the power button and waits until the machine has switched itself off. If ctx ends first, the power is cut.
func (m *Machine) PowerDown(ctx context.Context) error {
	_, done := m.expect()
	if done == nil {
		return errors.New("the machine is off")
	}
	if err := m.command(ctx, "system_powerdown"); err != nil {
		m.PowerCut()
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		m.PowerCut()
		return fmt.Errorf("the machine in %s did not switch itself off: %w", m.cfg.Dir, context.Cause(ctx))
	}
}

// Reset presses the reset button: the machine starts anew with the disk as it is.
func (m *Machine) Reset(ctx context.Context) error { return m.command(ctx, "system_reset") }

// Close takes the power away and removes the machine. It may be called again.
func (m *Machine) Close() error {
	m.PowerCut()
	return os.RemoveAll(m.cfg.Dir)
}

// lastWords keeps the start of what QEMU says about itself: a wrong option, a missing file.
type lastWords struct{ text []byte }

func (w *lastWords) Write(p []byte) (int, error) {
	w.text = append(w.text, p[:min(len(p), 4096-len(w.text))]...)
	return len(p), nil
}

func (w *lastWords) String() string { return string(w.text) }
