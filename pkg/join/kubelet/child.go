package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
)

// State is what a runner knows of its kubelet.
type State struct {
	Running bool
	Reason  string // one word
	Message string // a sentence
	PID     int
	Since   time.Time
}

// ChildConfig configures a Child.
type ChildConfig struct {
	Program string
	Args    []string
	Hash    string // of all that the kubelet reads at its start; a running one with another is restarted
	Paths   Paths
	// Permit says why the kubelet is not to be started for now, or nil. It is asked before each start, and
	// again and again until it permits; a kubelet that runs is not its matter. Default: always.
	Permit func() error
	// OnState is told of each change. Default: nobody.
	OnState func(State)
	// BackoffMin and BackoffMax bound the pause before a kubelet that ended is started again. Defaults 1s and 30s.
	BackoffMin, BackoffMax time.Duration
	// StableAfter is how long it must have run for the backoff to begin anew. Default 1m.
	StableAfter time.Duration
	// StopGrace is how long it may take to end when it is restarted. Default 30s.
	StopGrace time.Duration
	// LogLimit is the size at which its log is set aside. Default 10 MiB.
	LogLimit int64
	Logger   *slog.Logger
}

// Child keeps a kubelet running as a process of its own, where there is no systemd to do it.
type Child struct{ cfg ChildConfig }

// NewChild returns a Child with the defaults filled in; it starts nothing.
func NewChild(cfg ChildConfig) *Child {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.BackoffMin, time.Second)
	def(&cfg.BackoffMax, 30*time.Second)
	def(&cfg.StableAfter, time.Minute)
	def(&cfg.StopGrace, 30*time.Second)
	if cfg.LogLimit <= 0 {
		cfg.LogLimit = 10 << 20
	}
	if cfg.OnState == nil {
		cfg.OnState = func(State) {}
	}
	if cfg.Permit == nil {
		cfg.Permit = func() error { return nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Child{cfg}
}

// record is what the process file holds.
type record struct {
	identity
	Hash  string    `json:"hash"`
	Since time.Time `json:"since"`
}

// Run takes over a kubelet that an earlier agent left running, or starts one, and starts it again
// whenever it ends. It returns when ctx ends; the kubelet runs on.
func (c *Child) Run(ctx context.Context) error {
	backoff := c.cfg.BackoffMin
	p, rec, err := c.takeOver(ctx)
	for ; err != nil && ctx.Err() == nil; p, rec, err = c.takeOver(ctx) {
		c.down("StopFailed", fmt.Sprintf("the old kubelet can't be ended: %v", err))
		pause(ctx, c.cfg.BackoffMax)
	}
	for ctx.Err() == nil {
		var cmd *exec.Cmd // nil for a kubelet that was taken over
		if p == nil {
			if err := c.cfg.Permit(); err != nil {
				c.cfg.OnState(waiting(err))
				pause(ctx, permitInterval)
				continue
			}
			if cmd, p, rec, err = c.start(); err != nil {
				c.down("StartFailed", fmt.Sprintf("the kubelet can't be started: %v; next try in %s", err, backoff))
				pause(ctx, backoff)
				backoff = min(2*backoff, c.cfg.BackoffMax)
				continue
			}
		}
		c.cfg.OnState(State{Running: true, Reason: "Running", Message: fmt.Sprintf("kubelet running (pid %d)", p.pid), PID: p.pid, Since: rec.Since})
		err := c.watch(ctx, p)
		p.release()
		p = nil
		if err != nil {
			if cmd != nil {
				_ = cmd.Process.Release() // it is not ours to wait for any more
			}
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if time.Since(rec.Since) >= c.cfg.StableAfter {
			backoff = c.cfg.BackoffMin
		}
		c.down("Exited", fmt.Sprintf("the kubelet ended (%s); its last words are in %s; starting it again in %s", fate(cmd), c.cfg.Paths.Log, backoff))
		pause(ctx, backoff)
		backoff = min(2*backoff, c.cfg.BackoffMax)
	}
	return nil
}

// permitInterval is how often a kubelet that may not start asks again.
const permitInterval = time.Second

func waiting(why error) State {
	return State{Reason: "Waiting", Message: fmt.Sprintf("the kubelet is not started: %v", why)}
}

func (c *Child) down(reason, message string) {
	c.cfg.OnState(State{Reason: reason, Message: message, Since: time.Now()})
	c.cfg.Logger.Warn(message)
}

// fate reaps a child that has ended and says how.
func fate(cmd *exec.Cmd) string {
	if cmd == nil {
		return "how is not known: it was started by an earlier agent"
	}
	if err := cmd.Wait(); err != nil {
		return err.Error()
	}
	return "exit status 0"
}

// takeOver returns the living kubelet of an earlier agent, if its configuration is still right; with
// another configuration it is ended, so that a new one is started.
func (c *Child) takeOver(ctx context.Context) (*process, record, error) {
	rec, p := c.find()
	if p == nil || rec.Hash == c.cfg.Hash {
		return p, rec, nil
	}
	if err := c.cfg.Permit(); err != nil {
		c.cfg.Logger.Info("the kubelet's configuration has changed, but it could not be started again: the old one goes on", "pid", p.pid, "err", err)
		return p, rec, nil
	}
	c.cfg.Logger.Info("the kubelet's configuration has changed: restarting it (pods keep running)", "pid", p.pid)
	c.cfg.OnState(State{Reason: "Restarting", Message: "restarting the kubelet with its new configuration", Since: time.Now()})
	defer p.release()
	return nil, record{}, p.stop(ctx, c.cfg.StopGrace)
}

// find returns the kubelet of the process file, if it is alive; failing that, one that an agent was
// killed in the middle of noting.
func (c *Child) find() (record, *process) {
	var rec record
	data, err := durable.ReadFile(c.cfg.Paths.Process, 64<<10)
	if err == nil {
		err = json.Unmarshal(data, &rec)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.cfg.Logger.Warn("the note of which process the kubelet is can't be read: looking for it", "err", err)
	}
	if err == nil {
		if p, err := adopt(rec.identity); err == nil {
			return rec, p
		}
	}
	// Its hash is not known, so it counts as changed.
	return record{}, stray("--config=" + c.cfg.Paths.Configuration)
}

// Stop ends the kubelet that runs, if any; it tells whether there was one.
func (c *Child) Stop(ctx context.Context) (bool, error) {
	_, p := c.find()
	if p == nil {
		return false, nil
	}
	defer p.release()
	return true, p.stop(ctx, c.cfg.StopGrace)
}

// start starts a kubelet that outlives this process: in a session of its own, with nothing of ours but
// its log.
func (c *Child) start() (*exec.Cmd, *process, record, error) {
	c.limitLog()
	log, err := os.OpenFile(c.cfg.Paths.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, record{}, err
	}
	defer log.Close()
	cmd := exec.Command(c.cfg.Program, c.cfg.Args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.Env = environ(os.Environ())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, record{}, err
	}
	p, rec, err := c.note(cmd.Process.Pid)
	if err != nil {
		// A kubelet that no later agent would find: rather none than two.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, nil, record{}, err
	}
	return cmd, p, rec, nil
}

// note writes down who the kubelet is.
func (c *Child) note(pid int) (*process, record, error) {
	id, err := identify(pid)
	if err != nil {
		return nil, record{}, err
	}
	rec := record{id, c.cfg.Hash, time.Now()}
	data, err := json.Marshal(rec)
	if err != nil {
		return nil, record{}, err
	}
	if err := durable.WriteFile(c.cfg.Paths.Process, append(data, '\n'), 0o600); err != nil {
		return nil, record{}, err
	}
	p, err := open(pid)
	return p, rec, err
}

// environ takes out what the service manager meant for the agent alone.
func environ(in []string) []string {
	var out []string
	for _, kv := range in {
		key, _, _ := strings.Cut(kv, "=")
		switch key {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "CREDENTIALS_DIRECTORY":
		default:
			out = append(out, kv)
		}
	}
	return out
}

// watch waits for the process to end (nil) or for ctx, and keeps the log small meanwhile.
func (c *Child) watch(ctx context.Context, p *process) error {
	for {
		hour, cancel := context.WithTimeout(ctx, time.Hour)
		err := p.wait(hour)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		c.limitLog()
	}
}

// limitLog sets a log that has grown too large aside, as one older file. It is copied and cut, not
// renamed: a running kubelet holds it open (for appending, so that it goes on at the new end).
func (c *Child) limitLog() {
	path := c.cfg.Paths.Log
	info, err := os.Stat(path)
	if err != nil || info.Size() <= c.cfg.LogLimit {
		return
	}
	if err := copyAndCut(path, path+".1"); err != nil {
		c.cfg.Logger.Warn("can't set the kubelet's log aside", "err", err)
	}
}

func copyAndCut(from, to string) error {
	src, err := os.OpenFile(from, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	return src.Truncate(0)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
