// Package proc runs the programs that are measured, and reads what they use.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a child of this one. What it prints goes to a file and can be waited on.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  *logWatch
	done chan struct{} // closed once it has ended
	err  error         // set before done is closed
}

// New prepares a program whose log is appended to a file. name is for a person.
func New(name, logFile string, argv ...string) (*Process, error) {
	f, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	p := &Process{name: name, cmd: exec.Command(argv[0], argv[1:]...), log: &logWatch{out: f, lines: map[string]chan struct{}{}}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL} // Ctrl-C is ours to handle
	return p, nil
}

// Run starts it. What is to be seen in its log has been asked for by then.
func (p *Process) Run() error {
	if err := p.cmd.Start(); err != nil {
		p.log.out.Close()
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		p.log.out.Close()
		close(p.done)
	}()
	return nil
}

// PID is its process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Await returns when seen is closed, which is a channel of Seen.
func (p *Process) Await(ctx context.Context, seen <-chan struct{}) error {
	select {
	case <-seen:
		return nil
	case <-p.done:
		return fmt.Errorf("%s ended by itself (%v); the end of its log:\n%s", p.name, p.err, p.log.tail())
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w; the end of its log:\n%s", p.name, context.Cause(ctx), p.log.tail())
	}
}

// Kill ends the process as kill -9 does, and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop asks the process to end, and kills it if it has not in half a minute.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(30 * time.Second):
		p.Kill()
		return errors.New(p.name + " did not stop within 30 s, and was killed")
	}
}

// logWatch passes a log on to a file, remembers its end, and tells when a text was seen in it.
type logWatch struct {
	out io.WriteCloser

	mu    sync.Mutex // guards the following
	last  []byte     // the end of what was written
	lines map[string]chan struct{}
}

const logTail = 4 << 10

// seen returns a channel that is closed once text was in the log. It is asked for before the process runs.
func (l *logWatch) seen(text string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := make(chan struct{})
	l.lines[text] = c
	return c
}

// Write implements io.Writer.
func (l *logWatch) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keep := max(0, len(l.last)-logTail)
	l.last = append(l.last[keep:], p...)
	for text, c := range l.lines {
		if bytes.Contains(l.last, []byte(text)) {
			close(c)
			delete(l.lines, text)
		}
	}
	return l.out.Write(p)
}

func (l *logWatch) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.ToValidUTF8(string(l.last[max(0, len(l.last)-logTail):]), "?")
}

// Seen returns a channel that is closed once text was in its log. It is asked for before Run.
func (p *Process) Seen(text string) <-chan struct{} { return p.log.seen(text) }

// Name is that for a person.
func (p *Process) Name() string { return p.name }

// Tail is the end of its log.
func (p *Process) Tail() string { return p.log.tail() }
