package sysmon

import (
	"fmt"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mooring-edge/mooring/internal/processors"
)

// Calm widens the timer slack (prctl(2), PR_SET_TIMERSLACK) of the runtime's own thread to Slack. Those which run goroutines keep their own, so that
// their timers come as exactly as before. An error means that all is as it was, which does no harm: the system doesn't know this, or the program was built with cgo.
//
// It is the first thing that a program does, before it opens a file or waits for signals: a thread that waits for these keeps the wide slack. So does one that
// sysmon starts later, which it does when it takes a processor from a thread that is blocked, or too long in a system call, and no thread is idle; and any thread that such a one
// starts. Their timers come up to Slack late, and where one looks for goroutines to take from others it may sleep for that long. There are few or none.
func Calm() error {
	own, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	if own <= 0 || int64(own) >= Slack.Nanoseconds() { // who started this wants more (systemd's TimerSlackNSec=)
		return nil
	}
	defer oneProcessor()() // or threads that look for work sleep meanwhile, now and then and for as long as the wide slack has it
	// sysmon runs no goroutine that could do this, but takes part in what is for all threads, as setuid(2) is. All others take it back.
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, uintptr(Slack.Nanoseconds()), 0); errno != 0 {
		return fmt.Errorf("timer slack of all threads: %w", errno)
	}
	err = onThreads(func() error {
		// Raw, as it does not block: from another kind of call the goroutine might come back on another thread.
		if _, _, errno := syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, uintptr(own), 0); errno != 0 {
			return fmt.Errorf("timer slack of a thread: %w", errno)
		}
		return nil
	})
	if err != nil { // rather none than all
		_, _, _ = syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, uintptr(own), 0)
	}
	return err
}

// oneProcessor has goroutines run one at a time until the function that it returns is called.
func oneProcessor() (back func()) {
	was := runtime.GOMAXPROCS(1)
	if processors.Named() {
		return func() { runtime.GOMAXPROCS(was) }
	}
	return runtime.SetDefaultGOMAXPROCS // which follows what a container is given
}

const (
	// others are the threads that run no goroutine: sysmon, and the one by which threads are made once a goroutine keeps its own.
	others = 2
	// attempts bounds how many threads are made to find those that there were.
	attempts = 32
)

// onThreads runs f on each thread that runs goroutines, of which one does at a time. f must not block.
func onThreads(f func() error) error {
	var held sync.WaitGroup
	defer held.Wait()
	release := make(chan struct{})
	defer close(release)
	for n := 1; n <= attempts; n++ {
		done := make(chan error)
		held.Go(func() {
			_ = f() // what LockOSThread starts takes after this thread
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			done <- f()
			<-release
		})
		if err := <-done; err != nil {
			return err
		}
		// This goroutine has to be on another thread now: one that was idle, or, where there was none, a new one.
		if err := f(); err != nil {
			return err
		}
		if all, _ := runtime.ThreadCreateProfile(nil); all <= n+1+others {
			break
		}
	}
	return nil
}
