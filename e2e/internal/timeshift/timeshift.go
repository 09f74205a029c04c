// Package timeshift starts a program whose wall clock differs from the machine's by a fixed offset; the
// program itself need not know, nor be linked in any way. Time spans (the monotonic clocks, timers) are untouched.
//
// A static program, such as those written in Go, reads the time from the kernel's vDSO page and asks no library
// that could be replaced. So the page is: at the program's execve, a tracer overwrites the program's private copy
// of the functions there with ones that do the system call and add the offset. The tracer is then gone; nothing
// slows the program down but the system call that the vDSO had spared it.
//
// Children by fork inherit the page. Programs that it executes do not: each is to be started through here. What the
// kernel stamps by itself, such as files' times, shows the machine's time.
package timeshift

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The tracer is this program again, told by the first of these that it is to start the second, in a
// session of its own, and to end: so the program that is started has no child that it does not know.
const (
	argStartTracer = "-start-tracer"
	argTracer      = "-tracer"
)

// ready is what the tracer says, on descriptor 3, when the program may be executed.
const ready = "ready"

// ErrNotSupported says that the machine's architecture has no shifted functions here.
var ErrNotSupported = fmt.Errorf("timeshift: not supported on %s, only on amd64", runtime.GOARCH)

// init keeps the main goroutine on the first thread: that is the one that a tracer sees execute another program.
func init() { runtime.LockOSThread() }

// Main is the command line: OFFSET PROGRAM [ARGS...]. It replaces this process (same process ID, same
// descriptors) by the program and does not return, but with an error when it can't. It has to be called from the
// main goroutine. OFFSET is of package time's form, such as 9600h, and counted in whole seconds.
func Main(args []string) error {
	if len(args) == 3 && (args[0] == argStartTracer || args[0] == argTracer) {
		return tracerMain(args)
	}
	if len(args) < 2 {
		return errors.New("usage: timeshift OFFSET PROGRAM [ARGS...]")
	}
	offset, err := time.ParseDuration(args[0])
	if err != nil {
		return fmt.Errorf("read the offset: %w", err)
	}
	if machineCode == nil {
		return ErrNotSupported
	}
	program, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	if err := startTracer(offset); err != nil {
		return fmt.Errorf("start %s with another clock: %w", program, err)
	}
	return fmt.Errorf("execute %s: %w", program, syscall.Exec(program, args[1:], os.Environ()))
}

// startTracer returns when a tracer waits for this process's execve.
func startTracer(offset time.Duration) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", argStartTracer, strconv.Itoa(os.Getpid()), offset.String())
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{w}
	err = cmd.Run()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start the tracer: %w", err)
	}
	answer, err := io.ReadAll(io.LimitReader(r, int64(len(ready))))
	if string(answer) != ready {
		return errors.Join(errors.New("the tracer ended"), err)
	}
	return nil
}

func tracerMain(args []string) error {
	fd3 := os.NewFile(3, "ready")
	if args[0] == argStartTracer {
		cmd := exec.Command("/proc/self/exe", argTracer, args[1], args[2])
		cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{fd3}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd.Start()
	}
	pid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	offset, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	options := unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL // rather no program than one with the wrong clock
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, uintptr(options), 0, 0); errno != 0 {
		return fmt.Errorf("trace process %d: %w", pid, errno)
	}
	if _, err := io.WriteString(fd3, ready); err != nil {
		return err
	}
	_ = fd3.Close()
	if err := awaitExec(pid); err != nil {
		return err
	}
	if err := patch(pid, offset); err != nil {
		return err
	}
	return unix.PtraceDetach(pid)
}

// awaitExec lets the process go on until it has executed another program.
func awaitExec(pid int) error {
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		switch {
		case !ws.Stopped():
			return fmt.Errorf("process %d ended before it executed its program", pid)
		case ws.TrapCause() == unix.PTRACE_EVENT_EXEC:
			return nil
		}
		sig := int(ws.StopSignal())
		if ws.StopSignal() == unix.SIGTRAP {
			sig = 0
		}
		if err := unix.PtraceCont(pid, sig); err != nil {
			return fmt.Errorf("let process %d go on: %w", pid, err)
		}
	}
}
