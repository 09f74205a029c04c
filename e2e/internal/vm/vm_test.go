package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/e2e/internal/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine makes one whose firmware finds nothing to boot and runs the script of its shell that is on the seed.
func machine(t *testing.T, script string) *Machine {
	t.Helper()
	need.Set(t, Missing())
	dir, err := os.MkdirTemp("", "vm-") // t.TempDir's path is too long for a socket
	must(t, err)
	m, err := New(Config{Dir: filepath.Join(dir, "m"), Serial: "TEST-0001", Memory: 256})
	must(t, err)
	t.Cleanup(func() {
		must(t, m.Close())
		if m.On() {
			t.Error("the machine is on after Close")
		}
		must(t, os.RemoveAll(dir))
	})
	must(t, m.Insert(Seed{UserData: "#cloud-config\nthe-users-data: 1\n", Hostname: "edge-1", InstanceID: "i-1"}))
	must(t, run([]byte(strings.ReplaceAll(script, "\n", "\r\n")), "mcopy", "-i", m.path("seed.img"), "-", "::/startup.nsh"))
	return m
}

// TestMachine boots the firmware's own shell, and has it read the seed: what the guest says comes line by line with its
// time, a machine that goes off by itself is told from one that was switched off, and the seed can be taken out.
func TestMachine(t *testing.T) {
	t.Parallel()
	m := machine(t, "FS0:\ntype meta-data\ntype user-data\nsmbiosview -t 1\nreset -s\n")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if m.On() || !m.Since().IsZero() {
		t.Error("it is on before it was switched on")
	}
	must(t, m.PowerOn())
	if err := m.PowerOn(); err == nil {
		t.Error("it was switched on twice")
	}
	alive, stop := m.Alive(ctx)
	defer stop()
	mark, before := 0, m.Since()
	for _, want := range []string{`^instance-id: i-1`, `local-hostname: edge-1`, `the-users-data: 1`, `SerialNumber: TEST-0001`, `^Reset with`} {
		line, next, err := m.Console.Wait(ctx, mark, regexp.MustCompile(want))
		must(t, err)
		if line.At.Before(before) {
			t.Errorf("%q came at %s, before the line before it", line.Text, line.At)
		}
		mark, before = next, line.At
	}
	<-alive.Done()
	if err := context.Cause(alive); err == nil || err != m.Died() {
		t.Errorf("the cause is %v, and Died says %v", err, m.Died())
	}
	if err := m.Died(); err == nil || !strings.Contains(err.Error(), "switched itself off") {
		t.Errorf("it switched itself off, and Died says %v", err)
	}
	log, err := os.ReadFile(m.path("console.log"))
	must(t, err)
	if !strings.Contains(string(log), "the-users-data: 1") {
		t.Error("the console's log lacks what the console said")
	}

	must(t, m.Eject())
	must(t, m.PowerOn())
	if m.Died() != nil {
		t.Error("it is on again, and Died says otherwise")
	}
	_, _, err = m.Console.Wait(ctx, mark, regexp.MustCompile(`UEFI Interactive Shell`))
	must(t, err)
	m.PowerCut()
	for _, line := range m.Console.From(mark) {
		if strings.Contains(line.Text, "the-users-data") {
			t.Error("it has read a seed that was taken out")
		}
	}
	if m.On() || m.Died() != nil {
		t.Errorf("after a power cut: on %v, died %v", m.On(), m.Died())
	}
}

// TestButtons: the reset button starts it anew within the same run of QEMU; the power button does nothing to a guest that
// does not listen, so that the limit cuts the power.
func TestButtons(t *testing.T) {
	t.Parallel()
	m := machine(t, "echo at-rest\n")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := m.PowerDown(ctx); err == nil {
		t.Error("the power button of a machine that is off did something")
	}
	must(t, m.PowerOn())
	atRest := regexp.MustCompile(`^at-rest`)
	_, mark, err := m.Console.Wait(ctx, 0, atRest)
	must(t, err)
	must(t, m.Reset(ctx))
	_, _, err = m.Console.Wait(ctx, mark, atRest)
	must(t, err)
	if err := m.command(ctx, "no-such-command"); err == nil || !strings.Contains(err.Error(), "CommandNotFound") {
		t.Errorf("QEMU took a command that there is not: %v", err)
	}
	short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if err := m.PowerDown(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("want that the guest does not answer, got %v", err)
	}
	if m.On() {
		t.Error("it is on after the limit")
	}
}

// TestWrongStart: what QEMU says of itself is in the error.
func TestWrongStart(t *testing.T) {
	m := machine(t, "")
	must(t, os.Remove(m.path("vars.fd")))
	must(t, m.PowerOn())
	<-m.done
	if err := m.Died(); err == nil || !strings.Contains(err.Error(), "vars.fd") {
		t.Errorf("want an error that names the file, got %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
