package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/need"
)

// TestMain lets this binary be the run that TestSweep kills.
func TestMain(m *testing.M) {
	if os.Getenv("MOORING_TEST_DOOMED_RUN") == "1" {
		if err := doomedRun(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		for { // until it is killed; a goroutine that waits for nothing, alone in its process, would be a deadlock
			time.Sleep(time.Hour)
		}
	}
	os.Exit(m.Run())
}

// doomed holds the run for as long as the process lives: a lock that nobody refers to is released.
var doomed *Run

// doomedRun makes one of everything, and says so.
func doomedRun() error {
	run, err := NewRun()
	if err != nil {
		return err
	}
	doomed = run
	ns, err := AddNetns(run.Name("a"))
	if err != nil {
		return err
	}
	if err := AddCgroup(run.Name("a")); err != nil {
		return err
	}
	argv := ns.Argv("sleep", "1000")
	sleep := exec.Command(argv[0], argv[1:]...)
	sleep.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := sleep.Start(); err != nil {
		return err
	}
	for len(ns.Processes()) == 0 { // nsenter is on its way
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println(run.ID, run.Dir, sleep.Process.Pid)
	return nil
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		need.Set(t, errors.New("needs root: network namespaces, cgroups"))
	}
}

// TestSweep: a run that lives is left alone; of one that was killed, nothing stays.
func TestSweep(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "MOORING_TEST_DOOMED_RUN=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var id, dir string
	var pid int
	if _, err := fmt.Sscan(line, &id, &dir, &pid); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	left := func() (out []string) {
		for _, n := range listNetns(Prefix + id + "-") {
			out = append(out, n.Path())
		}
		for _, h := range hierarchies() {
			found, _ := filepath.Glob(filepath.Join(h, Prefix+id+"-*"))
			out = append(out, found...)
		}
		for _, path := range []string{dir, recordPath(id)} {
			if _, err := os.Stat(path); err == nil {
				out = append(out, path)
			}
		}
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil { // not for one that has ended but was not waited for
			out = append(out, fmt.Sprint("process ", pid))
		}
		return out
	}

	before := left()
	if len(before) < 5 {
		t.Fatalf("the run made only %q", before)
	}
	if removed, err := Sweep(); err != nil || strings.Contains(fmt.Sprint(removed), id) {
		t.Fatalf("Sweep took from a run that lives: %q, %v", removed, err)
	}
	if now := left(); fmt.Sprint(now) != fmt.Sprint(before) {
		t.Fatalf("Sweep took from a run that lives: %q is left of %q", now, before)
	}

	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	removed, err := Sweep()
	if err != nil || !strings.Contains(fmt.Sprint(removed), Prefix+id) {
		t.Errorf("Sweep = %q, %v; want it to remove %s", removed, err, Prefix+id)
	}
	if now := left(); len(now) > 0 {
		t.Errorf("Sweep left %q", now)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryLock(path); err != ErrLocked {
		t.Errorf("a second TryLock: %v, want ErrLocked", err)
	}
	first.Release()
	second, err := WaitLock(path)
	if err != nil {
		t.Fatal(err)
	}
	second.Release()
}
