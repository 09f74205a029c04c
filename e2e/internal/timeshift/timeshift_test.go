package timeshift

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/need"
)

// The test binary also is the command under test (role "shift"), and a program with a clock (role "show").
const role = "MOORING_TEST_ROLE"

func TestMain(m *testing.M) {
	tracer := len(os.Args) > 1 && (os.Args[1] == argStartTracer || os.Args[1] == argTracer)
	switch {
	case tracer, os.Getenv(role) == "shift":
		if !tracer {
			os.Setenv(role, "show") // for the program that it becomes
		}
		if err := Main(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Getenv(role) == "show":
		start := time.Now()
		time.Sleep(20 * time.Millisecond)
		fmt.Println(os.Getpid(), start.Unix(), time.Since(start).Milliseconds(), monotonic())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// monotonic is the runtime's reading of the monotonic clock, in whole seconds since the program's start.
func monotonic() int64 {
	_, m, _ := strings.Cut(time.Now().String(), "m=+")
	seconds, err := strconv.ParseFloat(m, 64)
	if err != nil {
		return -1
	}
	return int64(seconds)
}

// shift runs a program through the command and returns what it printed.
func shift(t *testing.T, args ...string) (pid int, out string) {
	t.Helper()
	if machineCode == nil {
		t.Skip(ErrNotSupported)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), role+"=shift", "TZ=UTC")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, stderr.String())
	}
	return cmd.Process.Pid, strings.TrimSpace(stdout.String())
}

// near fails unless seconds since 1970 are now + offset, give or take what a busy machine takes.
func near(t *testing.T, seconds string, offset time.Duration) {
	t.Helper()
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if off := time.Since(time.Unix(n, 0).Add(-offset)); off < -time.Second || off > time.Minute {
		t.Errorf("the program's clock says %s, want about %s", time.Unix(n, 0).UTC(), time.Now().Add(offset).UTC())
	}
}

func TestGoProgram(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, offset := range []time.Duration{400 * 24 * time.Hour, -time.Duration(time.Now().Unix()-86400) * time.Second, 0} {
		t.Run(offset.String(), func(t *testing.T) {
			pid, out := shift(t, offset.String(), exe)
			f := strings.Fields(out)
			if len(f) != 4 {
				t.Fatalf("the program said %q", out)
			}
			if f[0] != strconv.Itoa(pid) {
				t.Errorf("the program is process %s, want to keep %d", f[0], pid)
			}
			near(t, f[1], offset)
			if ms, err := strconv.Atoi(f[2]); err != nil || ms < 20 || ms > 60_000 {
				t.Errorf("a sleep of 20 ms took %s ms by the program's clock", f[2])
			}
			if s, err := strconv.Atoi(f[3]); err != nil || s < 0 || s > 60 {
				t.Errorf("the program's monotonic clock says %s s after its start", f[3])
			}
		})
	}
}

// TestLibcProgram: a static program of another make. Its date asks for the time by clock_gettime or time.
func TestLibcProgram(t *testing.T) {
	_, err := exec.LookPath("busybox")
	need.Set(t, err)
	_, out := shift(t, "9600h", "busybox", "date", "+%s")
	near(t, out, 9600*time.Hour)
}

func TestFailures(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "usage"},
		{[]string{"1h"}, "usage"},
		{[]string{"tomorrow", "busybox"}, "read the offset"},
		{[]string{"1h", "no-such-program"}, "not found"},
	} {
		if machineCode == nil {
			continue
		}
		if err := Main(c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestNotSupportedElsewhere(t *testing.T) {
	saved := machineCode
	defer func() { machineCode = saved }()
	machineCode = nil
	if err := Main([]string{"1h", "true"}); !errors.Is(err, ErrNotSupported) {
		t.Errorf("got %v, want %v", err, ErrNotSupported)
	}
	if !strings.Contains(ErrNotSupported.Error(), runtime.GOARCH) {
		t.Errorf("%q does not name the architecture", ErrNotSupported)
	}
}
