package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeSystemd is a systemd with one unit.
type fakeSystemd struct {
	mu     sync.Mutex // guards the following fields
	active string
	jobs   []string
	err    error // of Apply
	away   error // of State
}

func (f *fakeSystemd) Enable(context.Context, string) error {
	return errors.New("read-only file system")
}

func (f *fakeSystemd) Apply(_ context.Context, _ string, restart bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs = append(f.jobs, fmt.Sprintf("restart=%t", restart))
	if f.err == nil {
		f.active = "active"
	}
	return f.err
}

func (f *fakeSystemd) State(context.Context, string) (string, int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.active, 4711, f.away
}

// now changes what systemd says from here on.
func (f *fakeSystemd) now(active string, err, away error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active, f.err, f.away = active, err, away
}

func TestSystemd(t *testing.T) {
	for name, c := range map[string]struct {
		active, applied string
		jobs            []string
	}{
		"not running":              {"inactive", "", []string{"restart=false"}},
		"not running, same files":  {"inactive", "one", []string{"restart=false"}},
		"failed":                   {"failed", "one", []string{"restart=false"}},
		"running, same files":      {"active", "one", nil},
		"starting, same files":     {"activating", "one", nil},
		"running, other files":     {"active", "two", []string{"restart=true"}},
		"running, nobody knows on": {"active", "", []string{"restart=true"}},
	} {
		t.Run(name, func(t *testing.T) {
			paths := PathsIn(t.TempDir(), t.TempDir())
			if c.applied != "" {
				if err := os.WriteFile(paths.Applied, []byte(c.applied+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				sd := &fakeSystemd{active: c.active}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				s := NewSystemd(SystemdConfig{Unit: "kubelet.service", Hash: "one", Paths: paths, manager: sd})
				if err := s.Run(ctx); err != nil {
					t.Error(err)
				}
				if !slices.Equal(sd.jobs, c.jobs) {
					t.Errorf("jobs %v, want %v", sd.jobs, c.jobs)
				}
			})
		})
	}
}

func TestSystemdOverTime(t *testing.T) {
	paths := PathsIn(t.TempDir(), t.TempDir())
	synctest.Test(t, func(t *testing.T) {
		sd := &fakeSystemd{active: "inactive", err: errors.New("unit not found")}
		var states []string
		ctx, cancel := context.WithCancel(t.Context())
		s := NewSystemd(SystemdConfig{
			Unit: "kubelet.service", Hash: "one", Paths: paths, manager: sd, Interval: 10 * time.Second,
			OnState: func(st State) {
				if len(states) == 0 || states[len(states)-1] != st.Reason {
					states = append(states, st.Reason)
				}
				if !strings.Contains(st.Message, "kubelet.service") {
					t.Errorf("message %q names no unit", st.Message)
				}
			},
		})
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		pass := func() { time.Sleep(time.Minute); synctest.Wait() }
		pass() // it can't be started
		sd.now("inactive", nil, nil)
		pass() // now it can
		jobs := len(sd.jobs)
		sd.now("inactive", nil, nil)
		pass() // somebody stopped it: left alone
		if len(sd.jobs) != jobs {
			t.Error("a kubelet that was stopped by hand was started again")
		}
		sd.now("failed", nil, nil)
		pass() // it crashed too often: started again
		sd.now("active", nil, errors.New("no bus"))
		pass()
		sd.now("active", nil, nil)
		pass()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := []string{"StartFailed", "Running", "Stopped", "Failed", "Running", "SystemdUnreachable", "Running"}
		if !slices.Equal(states, want) {
			t.Errorf("states %v\nwant   %v", states, want)
		}
	})
}

// TestSystemdWithoutPermission: a unit that can only fail is neither started nor left to be started by systemd
// again and again; one that runs is left alone.
func TestSystemdWithoutPermission(t *testing.T) {
	for name, c := range map[string]struct {
		active, applied, reason string
		halted                  bool
	}{
		"not running":                 {"inactive", "", "Waiting", false},
		"failed":                      {"failed", "one", "Waiting", false},
		"between two starts":          {"activating", "one", "Waiting", true},
		"running with the same":       {"active", "one", "Running", false},
		"running with another":        {"active", "two", "Running", false},
		"stopped by the agent before": {"inactive", "one", "Waiting", false},
	} {
		t.Run(name, func(t *testing.T) {
			paths := PathsIn(t.TempDir(), t.TempDir())
			if c.applied != "" {
				if err := os.WriteFile(paths.Applied, []byte(c.applied+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				sd := &fakeSystemd{active: c.active}
				var permitted atomic.Bool
				var halts atomic.Int32
				var state atomic.Pointer[State]
				s := NewSystemd(SystemdConfig{
					Unit: "kubelet.service", Hash: "one", Paths: paths, manager: sd,
					OnState: func(st State) { state.Store(&st) },
					Permit: func() error {
						if permitted.Load() {
							return nil
						}
						return errors.New("its certificate expired")
					},
					halt: func(context.Context, string) error {
						halts.Add(1)
						sd.now("inactive", nil, nil)
						return nil
					},
				})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- s.Run(ctx) }()
				time.Sleep(65 * time.Second)
				synctest.Wait()
				last, halted := state.Load(), halts.Load()
				if len(sd.jobs) != 0 || last.Reason != c.reason || (halted > 0) != c.halted || halted > 1 {
					t.Errorf("jobs %v, halted %d times, state %+v", sd.jobs, halted, *last)
				}
				permitted.Store(true)
				time.Sleep(65 * time.Second)
				synctest.Wait()
				last = state.Load()
				sd.mu.Lock()
				defer sd.mu.Unlock()
				if sd.active != "active" || !last.Running || len(sd.jobs) > 1 {
					t.Errorf("permitted: jobs %v, unit %s, state %+v", sd.jobs, sd.active, *last)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestSystemdWithAnothersUnit: a unit that would run another kubelet is neither enabled nor started, until it is put right.
func TestSystemdWithAnothersUnit(t *testing.T) {
	paths := PathsIn(t.TempDir(), t.TempDir())
	synctest.Test(t, func(t *testing.T) {
		sd := &fakeSystemd{active: "inactive"}
		var suits atomic.Bool
		var state atomic.Pointer[State]
		s := NewSystemd(SystemdConfig{
			Unit: "kubelet.service", Hash: "one", Paths: paths, manager: sd, OnState: func(st State) { state.Store(&st) },
			suits: func(context.Context, string) error {
				if suits.Load() {
					return nil
				}
				return errors.New("kubelet.service is another's")
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if last := state.Load(); last.Running || last.Reason != "UnitUnsuitable" || last.Message != "kubelet.service is another's" || len(sd.jobs) != 0 {
			t.Errorf("state %+v, jobs %v", *last, sd.jobs)
		}
		suits.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		if last := state.Load(); !last.Running || len(sd.jobs) != 1 {
			t.Errorf("put right: state %+v, jobs %v", *last, sd.jobs)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
