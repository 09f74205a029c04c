package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Lock makes this process the only one at work in a state directory: two would enrol, bootstrap and
// start kubelets across each other. The kernel drops it with the process, however that ends.
type Lock struct{ f *os.File }

// AcquireLock takes the lock for a command ("run", "join", "reset"); if another process has it, the
// error says which.
func AcquireLock(stateDir, command string) (*Lock, error) {
	path := filepath.Join(stateDir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, syscall.EROFS) {
		f, err = os.Open(path) // a box whose disk has gone read-only can still run
	}
	if err != nil {
		return nil, fmt.Errorf("lock state directory %s: %w", stateDir, err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder := make([]byte, 100)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		return nil, fmt.Errorf("another edge-agent (%s) is at work in %s: stop it first (systemctl stop edge-agent), or ask it (edge-agent status)",
			strings.TrimSpace(string(holder[:n])), stateDir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock state directory %s: %w", stateDir, err)
	}
	// For the message above only, so a full disk may stand in the way of it.
	if f.Truncate(0) == nil {
		_, _ = fmt.Fprintf(f, "%s, pid %d\n", command, os.Getpid())
	}
	return &Lock{f}, nil
}

// Release gives the lock back.
func (l *Lock) Release() error { return l.f.Close() }
