package sysmon

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCalm: one thread is woken late, which is not the first, and all others as exactly as before.
func TestCalm(t *testing.T) {
	if _, err := os.ReadFile("/proc/1/timerslack_ns"); err != nil { // it takes CAP_SYS_NICE
		if os.Getenv("MOORING_REQUIRE_ALL") != "" {
			t.Fatal(err)
		}
		t.Skipf("the timer slack of other threads can't be read: %v", err)
	}
	program := filepath.Join(t.TempDir(), "threads")
	build := exec.Command("go", "build", "-o", program, "./testdata/threads")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the programs are built; the race detector's tests are not
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	own, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		run := exec.Command(program)
		if i%2 > 0 {
			run.Env = append(os.Environ(), "GOMAXPROCS=3")
		}
		out, err := run.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		all := strings.Fields(string(out))
		if len(all) < 20 || len(all) > 35 {
			t.Fatalf("%d threads, of 20 and some more", len(all))
		}
		wide, narrow := 0, 0
		for _, got := range all {
			switch got {
			case strconv.FormatInt(Slack.Nanoseconds(), 10):
				wide++
			case strconv.Itoa(own):
				narrow++
			}
		}
		if wide != 1 || narrow != len(all)-1 || all[0] != strconv.Itoa(own) {
			t.Errorf("want a slack of %d ns on one thread that is not the first, and %d on all others: %v", Slack.Nanoseconds(), own, all)
		}
	}
}
