package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// Proc is a long-running process of the run; its output goes to a file.
type Proc struct {
	Name string
	Log  string // the file
	// PID is the process itself, also where it had to be started through another.
	PID int

	cmd      *exec.Cmd
	done     chan struct{}
	err      error       // set before done is closed
	expected atomic.Bool // its end is the test's doing
}

// start runs a daemon. forks says that argv is an nsenter or unshare that forks, whose child is the
// process meant. The daemon gets files from descriptor 3 on.
func (e *Env) start(name string, forks bool, argv []string, files ...*os.File) (*Proc, error) {
	path := filepath.Join(e.Dir(), "logs", strings.ReplaceAll(name, "/", "-")+".log")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.ExtraFiles = log, log, e.environ(), files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is the harness's to handle
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Proc{Name: name, Log: path, PID: cmd.Process.Pid, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	if forks {
		if err := p.findChild(); err != nil {
			return nil, err
		}
	}
	e.mu.Lock()
	e.procs = append(e.procs, p)
	e.mu.Unlock()
	return p, nil
}

func (p *Proc) findChild() error {
	for range 500 {
		if kids := host.Children(p.PID); len(kids) > 0 {
			p.PID = kids[0]
			return nil
		}
		if p.Ended() {
			return fmt.Errorf("%s ended at once: %w\n%s", p.Name, p.err, tail(p.Log, 20))
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s: no process was started", p.Name)
}

// Ended says whether the process is gone.
func (p *Proc) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Kill ends the process as kill -9 does, and waits for its end.
func (p *Proc) Kill() { p.end(syscall.SIGKILL) }

// Stop asks the process to end, and kills it if it has not in ten seconds.
func (p *Proc) Stop() { p.end(syscall.SIGTERM) }

func (p *Proc) end(sig syscall.Signal) {
	p.expected.Store(true)
	if p.Ended() {
		return // its number may be another's by now
	}
	_ = syscall.Kill(p.PID, sig)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
		<-p.done
	}
}

// dead returns an error if a process ended that nobody ended.
func (e *Env) dead() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.procs {
		if p.Ended() && !p.expected.Load() {
			return fmt.Errorf("%s ended by itself (%v); the end of its log:\n%s", p.Name, p.err, tail(p.Log, 20))
		}
	}
	return nil
}

// tail returns a file's last lines, indented.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "    " + err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	for i, l := range all {
		if len(l) > 400 {
			l = l[:400] + "…"
		}
		all[i] = "    " + l
	}
	return strings.Join(all, "\n")
}
