package host

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pidsWhere lists the processes for whose /proc directory match holds.
func pidsWhere(match func(dir string) bool) []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && match("/proc/"+e.Name()) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Children lists the direct children of a process.
func Children(parent int) []int {
	return pidsWhere(func(dir string) bool {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			return false
		}
		// "pid (comm) state ppid …", and comm may hold anything.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		return len(fields) > 1 && fields[1] == strconv.Itoa(parent)
	})
}

// Comm is the short name of a process, empty if it is gone.
func Comm(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(data))
}

// RSS is the resident memory of a process in bytes.
func RSS(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS: it has ended", pid)
}

// StartTime tells two processes with the same number apart: field 22 of /proc/PID/stat, empty if gone.
func StartTime(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

// killAll ends every process that list returns, until it returns none or the limit passes.
func killAll(list func() []int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		pids := list()
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", pids)
		}
		for _, pid := range pids {
			if pid == os.Getpid() {
				return errors.New("this process is in the run's own network namespace")
			}
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
