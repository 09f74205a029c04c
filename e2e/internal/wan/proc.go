package wan

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// Event is what a process says: on its own account, or as the answer to a command.
type Event struct {
	// Name is what happened: see the roles.
	Name string    `json:"event"`
	At   time.Time `json:"at"`
	// Client tells the agents of one process apart, from 0.
	Client    int    `json:"client,omitempty"`
	Transport string `json:"transport,omitempty"`
	Remote    string `json:"remote,omitempty"`
	// Err is the text of an error; empty = there was none.
	Err string `json:"err,omitempty"`
	// Took is how long it took, Bytes how many it was.
	Took  time.Duration `json:"took,omitempty"`
	Bytes int64         `json:"bytes,omitempty"`
	// Text is what else there is to say.
	Text string `json:"text,omitempty"`
	// Values are measurements by name.
	Values map[string]float64 `json:"values,omitempty"`

	ID int `json:"id,omitempty"` // of the command that this answers
}

// Mbits is Bytes in Took, in Mbit/s.
func (e Event) Mbits() float64 { return float64(e.Bytes) * 8 / e.Took.Seconds() / 1e6 }

// String is for failures.
func (e Event) String() string {
	b, err := json.Marshal(e)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// answered is the Name of an Event that answers a command.
const answered = "answer"

// closeLimit is how long a process has to end by itself.
const closeLimit = 10 * time.Second

// Proc is a process in a namespace. All methods may be called from any goroutine.
type Proc struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	log   string
	ended chan struct{} // closed when the process is gone

	mu      sync.Mutex // guards the following
	events  []Event
	next    int           // the first event that no Await has passed
	changed chan struct{} // closed with each event
	ids     int
	answers map[int]chan Event
}

// start runs role in ns with a configuration.
func (w *World) start(ns host.Netns, role string, config any) (*Proc, error) {
	p := &Proc{
		name:  fmt.Sprintf("%s-%s-%d", w.name, role, len(w.procs)),
		ended: make(chan struct{}), changed: make(chan struct{}), answers: map[int]chan Event{},
	}
	first, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p.log = filepath.Join(w.run.Dir, p.name+".log")
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	argv := ns.Argv(exe)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), roleVar+"="+role)
	p.cmd.Stderr = log
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	w.procs = append(w.procs, p)
	go p.read(out)
	if _, err := p.stdin.Write(append(first, '\n')); err != nil {
		return nil, fmt.Errorf("configure %s: %w", p.name, err)
	}
	return p, nil
}

// read takes the process's events to its end.
func (p *Proc) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			e = Event{Name: "garbled", Err: err.Error(), Text: lines.Text()}
		}
		p.mu.Lock()
		if e.Name == answered && p.answers[e.ID] != nil {
			p.answers[e.ID] <- e
			delete(p.answers, e.ID)
		} else {
			p.events = append(p.events, e)
			close(p.changed)
			p.changed = make(chan struct{})
		}
		p.mu.Unlock()
	}
	_ = p.cmd.Wait()
	close(p.ended)
}

// Await returns the next event that match holds for, of those that no Await has passed. limit is for failures alone.
func (p *Proc) Await(limit time.Duration, what string, match func(Event) bool) (Event, error) {
	timeout := time.After(limit)
	for {
		p.mu.Lock()
		for p.next < len(p.events) {
			e := p.events[p.next]
			p.next++
			if match(e) {
				p.mu.Unlock()
				return e, nil
			}
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-p.ended:
			return Event{}, p.fail(fmt.Errorf("wait for %s: the process has ended", what))
		case <-timeout:
			return Event{}, p.fail(fmt.Errorf("wait for %s: not within %s", what, limit))
		}
	}
}

// Events returns all that were there so far.
func (p *Proc) Events() []Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Event(nil), p.events...)
}

// Do has a command carried out, and returns the answer. That the command failed is an Event.Err, and no error.
func (p *Proc) Do(limit time.Duration, command string) (Event, error) {
	answer := make(chan Event, 1)
	p.mu.Lock()
	p.ids++
	id := p.ids
	p.answers[id] = answer
	_, err := fmt.Fprintf(p.stdin, "%d %s\n", id, command)
	p.mu.Unlock()
	if err != nil {
		return Event{}, p.fail(fmt.Errorf("%s: %w", command, err))
	}
	select {
	case e := <-answer:
		return e, nil
	case <-p.ended:
		return Event{}, p.fail(fmt.Errorf("%s: the process has ended", command))
	case <-time.After(limit):
		return Event{}, p.fail(fmt.Errorf("%s: no answer within %s", command, limit))
	}
}

// fail adds to an error what the process said last.
func (p *Proc) fail(err error) error {
	log, _ := os.ReadFile(p.log)
	if len(log) > 4<<10 {
		log = log[len(log)-4<<10:]
	}
	events := p.Events()
	var said bytes.Buffer
	for _, e := range events[max(0, len(events)-10):] {
		fmt.Fprintln(&said, e)
	}
	return fmt.Errorf("%s: %w\n%s%s", p.name, err, said.Bytes(), log)
}

// Freeze stops the process, and returns once no thread of it runs any more; Thaw lets it go on. The kernel tells nobody that
// it is stopped but its parent, and os.Process is not made to ask: so this polls.
func (p *Proc) Freeze() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(closeLimit); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			return err
		}
		if _, rest, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(rest, "T") {
			return nil
		}
		if time.Now().After(deadline) {
			return p.fail(errors.New("SIGSTOP did not stop it"))
		}
	}
}

// Thaw undoes Freeze.
func (p *Proc) Thaw() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Kill ends the process as kill -9 does, and returns when it is gone.
func (p *Proc) Kill() error {
	err := p.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-p.ended
	return err
}

// Close has the process end, and returns when it is gone.
func (p *Proc) Close() error {
	_ = p.stdin.Close()
	_ = p.Thaw()
	select {
	case <-p.ended:
		return nil
	case <-time.After(closeLimit):
		err := p.fail(fmt.Errorf("did not end within %s after it was told to", closeLimit))
		return errors.Join(err, p.Kill())
	}
}
