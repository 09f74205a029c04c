package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running process that need not be a child of this one. Its pidfd stands for exactly that
// process: the pid may be given to another once it has ended, the descriptor never is.
type process struct {
	pid int
	fd  int
}

// identity of a process beyond its pid: no two processes of one boot share pid and start time. The
// executable says less (a wrapper script execs, an upgrade replaces the file), so it is not compared.
type identity struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // in clock ticks since boot
	BootID    string `json:"bootID"`
}

// identify describes a living process.
func identify(pid int) (identity, error) {
	start, err := startTime(pid)
	if err != nil {
		return identity{}, err
	}
	boot, err := bootID()
	if err != nil {
		return identity{}, err
	}
	return identity{pid, start, boot}, nil
}

// adopt opens the process that id describes; it fails if that process is no more.
func adopt(id identity) (*process, error) {
	if id.PID <= 1 {
		return nil, fmt.Errorf("no such process: pid %d", id.PID)
	}
	p, err := open(id.PID)
	if err != nil {
		return nil, err
	}
	// Only now, with the descriptor held: what is read below is about the process that it stands for.
	now, err := identify(id.PID)
	if err == nil && now != id {
		err = fmt.Errorf("pid %d is another process by now", id.PID)
	}
	if err == nil && p.ended() {
		err = fmt.Errorf("process %d has ended", id.PID)
	}
	if err != nil {
		p.release()
		return nil, err
	}
	return p, nil
}

func open(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &process{pid: pid, fd: fd}, nil
}

func (p *process) release() { unix.Close(p.fd) }

func (p *process) ended() bool {
	n, err := poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// wait returns nil when the process has ended, ctx's error when that comes first.
func (p *process) wait(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer func() {
		if stop() {
			w.Close()
		}
	}()
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}, {Fd: int32(r.Fd()), Events: unix.POLLIN}}
	if _, err := poll(fds, -1); err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	if fds[0].Revents != 0 {
		return nil
	}
	return context.Cause(ctx)
}

func poll(fds []unix.PollFd, timeout int) (int, error) {
	for {
		n, err := unix.Poll(fds, timeout)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// stop ends the process: gently, and after the grace time for certain.
func (p *process) stop(ctx context.Context, grace time.Duration) error {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(p.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop process %d: %w", p.pid, err)
		}
		limit, cancel := context.WithTimeout(ctx, grace)
		err := p.wait(limit)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("process %d does not end, not even by SIGKILL: it hangs in the kernel (storage or network mount?)", p.pid)
}

// stray returns a living process that was started with exactly this argument, if there is one.
func stray(arg string) *process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !hasArgument(pid, arg) {
			continue
		}
		p, err := open(pid)
		if err != nil {
			continue
		}
		// Once more with the descriptor held: the pid may have changed hands.
		if hasArgument(pid, arg) && !p.ended() {
			return p
		}
		p.release()
	}
	return nil
}

func hasArgument(pid int, arg string) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(cmdline, []byte("\x00"+arg+"\x00"))
}

func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStartTime(data)
}

// parseStartTime reads field 22 of /proc/PID/stat. The second field, the name in parentheses, may hold
// anything, spaces and parentheses too: fields are counted from its end.
func parseStartTime(stat []byte) (uint64, error) {
	const fieldsAfterName = 22 - 2
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < fieldsAfterName {
		return 0, errors.New("/proc stat: cut short")
	}
	n, err := strconv.ParseUint(fields[fieldsAfterName-1], 10, 64)
	if err != nil {
		return 0, errors.New("/proc stat: start time is no number")
	}
	return n, nil
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}
