package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain runs this binary as the kubelet where a test starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("MOORING_TEST_KUBELET") != "" {
		os.Exit(fakeKubelet())
	}
	goleak.VerifyTestMain(m)
}

// fakeKubelet runs until it is told to end. Arguments make it end at once, or hard to end.
func fakeKubelet() int {
	if slices.Contains(os.Args, "--die") {
		fmt.Fprintln(os.Stderr, "fake kubelet: no reason to live")
		return 3
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	if slices.Contains(os.Args, "--stubborn") {
		signal.Ignore(syscall.SIGTERM)
	}
	fmt.Println("fake kubelet: up")
	<-c
	return 0
}

// nest is a place for child kubelets; what still runs there is killed with the test.
type nest struct {
	t      *testing.T
	cfg    ChildConfig
	states chan State
}

func newNest(t *testing.T) *nest {
	t.Setenv("MOORING_TEST_KUBELET", "1")
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n := &nest{t: t, states: make(chan State, 100)}
	p := PathsIn(t.TempDir(), t.TempDir())
	n.cfg = ChildConfig{
		Program: self, Args: []string{"--config=" + p.Configuration}, Hash: "one", Paths: p,
		OnState:    func(s State) { n.states <- s },
		BackoffMin: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond, StopGrace: 10 * time.Second,
	}
	t.Cleanup(func() {
		if _, p := NewChild(n.cfg).find(); p != nil {
			_ = p.stop(context.Background(), 10*time.Second)
			p.release()
		}
	})
	return n
}

// agent runs a Child as an agent does; the result ends that agent (not the kubelet).
func (n *nest) agent(cfg ChildConfig) (stop func()) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewChild(cfg).Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("Run: %v", err)
		}
	}
	n.t.Cleanup(stop)
	return stop
}

// await returns the next state for which ok holds.
func (n *nest) await(what string, ok func(State) bool) State {
	n.t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case s := <-n.states:
			if ok(s) {
				return s
			}
		case <-limit:
			n.t.Fatalf("no kubelet that is %s within a minute", what)
		}
	}
}

func (n *nest) running() int {
	n.t.Helper()
	return n.await("running", func(s State) bool { return s.Running }).PID
}

// kill ends a kubelet behind the agent's back.
func (n *nest) kill(pid int) {
	n.t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
}

func TestKubeletOutlivesTheAgent(t *testing.T) {
	n := newNest(t)
	stop := n.agent(n.cfg)
	pid := n.running()
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d of kubelet %d, %v: it would get the agent's signals", sid, pid, err)
	}
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err != nil || strings.Contains(string(env), "NOTIFY_SOCKET") {
		t.Errorf("the kubelet has the agent's notify socket (%v)", err)
	}
	stop()

	n.agent(n.cfg)
	if again := n.running(); again != pid {
		t.Errorf("the next agent has kubelet %d, the first left %d running", again, pid)
	}
	// Its end is noticed although it is no child any more.
	n.kill(pid)
	if s := n.await("down", func(s State) bool { return !s.Running }); s.Reason != "Exited" || !strings.Contains(s.Message, n.cfg.Paths.Log) {
		t.Errorf("state %+v", s)
	}
	if third := n.running(); third == pid {
		t.Errorf("kubelet %d was killed and is said to run", third)
	}
}

// TestNotStartedWithoutPermission: it is asked before each start, and a kubelet that runs is left alone.
func TestNotStartedWithoutPermission(t *testing.T) {
	n := newNest(t)
	var no atomic.Pointer[error]
	forbid := func(why string) { err := errors.New(why); no.Store(&err) }
	n.cfg.Permit = func() error {
		if err := no.Load(); err != nil {
			return *err
		}
		return nil
	}
	forbid("its certificate expired")
	stop := n.agent(n.cfg)
	if s := n.await("waiting", func(s State) bool { return s.Reason == "Waiting" }); s.Running || !strings.Contains(s.Message, "its certificate expired") {
		t.Errorf("state %+v", s)
	}
	no.Store(nil)
	pid := n.running()
	stop()

	// Another agent, another configuration, and no permission: the kubelet that runs goes on.
	forbid("again")
	n.cfg.Hash = "two"
	n.agent(n.cfg)
	if again := n.running(); again != pid {
		t.Errorf("kubelet %d, it was %d", again, pid)
	}
	n.kill(pid)
	n.await("waiting", func(s State) bool { return s.Reason == "Waiting" })
	no.Store(nil)
	n.running()
}

func TestChangedConfigurationRestarts(t *testing.T) {
	for _, stubborn := range []bool{false, true} {
		t.Run(fmt.Sprintf("stubborn=%t", stubborn), func(t *testing.T) {
			n := newNest(t)
			if stubborn {
				n.cfg.Args = append(n.cfg.Args, "--stubborn")
				n.cfg.StopGrace = 200 * time.Millisecond
			}
			stop := n.agent(n.cfg)
			pid := n.running()
			stop()
			n.cfg.Hash = "two"
			n.agent(n.cfg)
			if again := n.running(); again == pid {
				t.Errorf("kubelet %d runs on with its old configuration", pid)
			}
			if _, err := adopt(identity{PID: pid}); err == nil {
				t.Error("the old kubelet still runs beside the new one")
			}
		})
	}
}

func TestKubeletThatNobodyNotedIsFound(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"not noted":  os.Remove,
		"torn":       func(p string) error { return os.WriteFile(p, []byte(`{"pid":`), 0o600) },
		"empty":      func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"wrong time": func(p string) error { return os.WriteFile(p, []byte(`{"pid":1,"startTime":1}`), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNest(t)
			stop := n.agent(n.cfg)
			pid := n.running()
			stop()
			if err := spoil(n.cfg.Paths.Process); err != nil {
				t.Fatal(err)
			}
			n.agent(n.cfg)
			if again := n.running(); again == pid {
				t.Errorf("kubelet %d was adopted although nothing says what it was started with", pid)
			}
			if p := stray("--config=" + n.cfg.Paths.Configuration + "-not"); p != nil {
				t.Error("a process with another argument is taken for the kubelet")
			}
			if !gone(t, pid) {
				t.Error("the kubelet that was not noted runs beside the new one")
			}
		})
	}
}

// gone tells whether a process has ended; one that nobody has waited for yet counts.
func gone(t *testing.T, pid int) bool {
	t.Helper()
	p, err := open(pid)
	if err != nil {
		return true
	}
	defer p.release()
	return p.ended()
}

// TestAnotherProcessIsNotTakenForTheKubelet: the pid of the note belongs to somebody else by now.
func TestAnotherProcessIsNotTakenForTheKubelet(t *testing.T) {
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]identity{
		"started at another time": {self.PID, self.StartTime + 1, self.BootID},
		"of another boot":         {self.PID, self.StartTime, "another"},
		"init":                    {1, 0, self.BootID},
		"no such process":         {1 << 22, 1, self.BootID},
		"negative":                {-1, 1, self.BootID},
	} {
		if p, err := adopt(id); err == nil {
			p.release()
			t.Errorf("%s: adopted", name)
		}
	}
	p, err := adopt(self)
	if err != nil {
		t.Fatalf("itself: %v", err)
	}
	p.release()
}

func TestStop(t *testing.T) {
	n := newNest(t)
	stop := n.agent(n.cfg)
	pid := n.running()
	stop()
	if was, err := NewChild(n.cfg).Stop(t.Context()); err != nil || !was {
		t.Errorf("stop: %t, %v", was, err)
	}
	if !gone(t, pid) {
		t.Errorf("kubelet %d still runs", pid)
	}
	if was, err := NewChild(n.cfg).Stop(t.Context()); err != nil || was {
		t.Errorf("second stop: %t, %v", was, err)
	}
}

func TestKubeletThatDiesIsStartedAgainWithBackoff(t *testing.T) {
	n := newNest(t)
	n.cfg.Args = append(n.cfg.Args, "--die")
	n.agent(n.cfg)
	var waits []string
	for range 4 {
		s := n.await("down", func(s State) bool { return !s.Running })
		if !strings.Contains(s.Message, "exit status 3") {
			t.Fatalf("message %q", s.Message)
		}
		_, wait, _ := strings.Cut(s.Message, "again in ")
		waits = append(waits, wait)
	}
	if want := []string{"10ms", "20ms", "40ms", "50ms"}; !slices.Equal(waits, want) {
		t.Errorf("waited %v, want %v", waits, want)
	}
	if log, err := os.ReadFile(n.cfg.Paths.Log); err != nil || !strings.Contains(string(log), "no reason to live") {
		t.Errorf("log %q, %v", log, err)
	}
}

func TestKubeletThatIsNotInstalled(t *testing.T) {
	n := newNest(t)
	n.cfg.Program = filepath.Join(t.TempDir(), "no-kubelet")
	n.agent(n.cfg)
	s := n.await("down", func(s State) bool { return !s.Running })
	if s.Reason != "StartFailed" || !strings.Contains(s.Message, "no-kubelet") {
		t.Errorf("state %+v", s)
	}
}

func TestLogIsSetAside(t *testing.T) {
	n := newNest(t)
	n.cfg.LogLimit = 1000
	old := strings.Repeat("x", 1001)
	if err := os.WriteFile(n.cfg.Paths.Log, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	n.agent(n.cfg)
	n.running()
	if aside, err := os.ReadFile(n.cfg.Paths.Log + ".1"); err != nil || string(aside) != old {
		t.Errorf("set aside: %d bytes, %v", len(aside), err)
	}
	if info, err := os.Stat(n.cfg.Paths.Log); err != nil || info.Size() > 1000 {
		t.Errorf("log: %v, %v", info, err)
	}
}

func TestParseStartTime(t *testing.T) {
	const after = "S 1 10 10 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 1000"
	for stat, want := range map[string]uint64{
		"10 (kubelet) " + after:            4711,
		"10 (a b) c) (d) " + after:         4711,
		"10 (S 1 2 3 4 5 6 7) " + after:    4711,
		"":                                 0,
		"10 (kubelet":                      0,
		"10 (kubelet) S 1 10":              0,
		"10 (kubelet) " + after[:50] + "x": 0,
	} {
		got, err := parseStartTime([]byte(stat))
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v, want %d", stat, got, err, want)
		}
	}
	// As the kernel writes it.
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	mine, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if its, err := startTime(cmd.Process.Pid); err != nil || its < mine {
		t.Errorf("a child started at %d, its parent at %d (%v)", its, mine, err)
	}
}

func FuzzParseStartTime(f *testing.F) {
	f.Add([]byte("10 (kubelet) S 1 10 10 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 1000"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		if n, err := parseStartTime(stat); err != nil && n != 0 {
			t.Fatalf("%d with %v", n, err)
		}
	})
}
