package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"github.com/mooring-edge/mooring/internal/durable"
)

// UnderSystemd tells whether systemd runs this machine (sd_booted(3)).
func UnderSystemd() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// SystemdConfig configures a Systemd.
type SystemdConfig struct {
	Unit  string
	Hash  string // of all that the kubelet reads at its start
	Paths Paths
	// Permit says why the kubelet is not to be started for now, or nil, as in ChildConfig. A unit that
	// systemd starts over and over meanwhile is stopped. Default: always.
	Permit  func() error
	OnState func(State) // default: nobody is told
	// Interval between looks at the unit. Default 10s.
	Interval time.Duration
	Logger   *slog.Logger

	manager manager                                      // default: systemd's own, over D-Bus
	suits   func(ctx context.Context, unit string) error // whether the unit runs a kubelet with Paths; default: over D-Bus, with manager
	halt    func(ctx context.Context, unit string) error // stops the unit; default: over D-Bus
}

// manager is what is needed of systemd.
type manager interface {
	// Enable has the unit started at boot too.
	Enable(ctx context.Context, unit string) error
	// Apply starts the unit, or restarts it, and waits for the job's end.
	Apply(ctx context.Context, unit string, restart bool) error
	// State is systemd's ActiveState ("active", "inactive", "failed", ...) and the main process.
	State(ctx context.Context, unit string) (active string, pid int, err error)
}

// Systemd keeps a kubelet running as a unit. systemd watches over the process; this only sees to it that
// the unit runs with what was last rendered.
type Systemd struct{ cfg SystemdConfig }

// NewSystemd returns a Systemd with the defaults filled in; it connects to nothing.
func NewSystemd(cfg SystemdConfig) *Systemd {
	if cfg.Interval <= 0 {
		cfg.Interval = 10 * time.Second
	}
	if cfg.OnState == nil {
		cfg.OnState = func(State) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Permit == nil {
		cfg.Permit = func() error { return nil }
	}
	if cfg.suits == nil {
		cfg.suits = func(context.Context, string) error { return nil }
	}
	if cfg.manager == nil {
		cfg.manager = overDBus{}
		cfg.suits = func(ctx context.Context, unit string) error { return unitSuits(ctx, unit, cfg.Paths) }
	}
	if cfg.halt == nil {
		cfg.halt = haltUnit
	}
	return &Systemd{cfg}
}

// Run starts the unit, or restarts it where its configuration has changed, then reports its state and
// starts it again when it has failed. It returns when ctx ends; the kubelet runs on.
//
// A unit that would run another kubelet than the one that was rendered is left alone.
func (s *Systemd) Run(ctx context.Context) error {
	applied, suits := false, false
	for ctx.Err() == nil {
		if !suits {
			suits = s.check(ctx)
		}
		if suits && !applied {
			applied = s.apply(ctx)
		}
		if applied {
			applied = s.look(ctx)
		}
		pause(ctx, s.cfg.Interval)
	}
	return nil
}

// check tells whether the unit is one for this node's kubelet, and has it started at boot too if it is.
func (s *Systemd) check(ctx context.Context) bool {
	if err := s.cfg.suits(ctx, s.cfg.Unit); err != nil {
		s.down("UnitUnsuitable", err.Error())
		return false
	}
	if err := s.cfg.manager.Enable(ctx, s.cfg.Unit); err != nil {
		// A read-only /etc, say. The agent starts the unit at each boot anyway.
		s.cfg.Logger.Warn("can't enable the kubelet's unit: it starts only with the agent", "unit", s.cfg.Unit, "err", err)
	}
	return true
}

// apply brings the unit up with the current configuration; false means to try again.
func (s *Systemd) apply(ctx context.Context) bool {
	active, _, err := s.cfg.manager.State(ctx, s.cfg.Unit)
	if err != nil {
		s.down("SystemdUnreachable", fmt.Sprintf("can't ask systemd about %s: %v", s.cfg.Unit, err))
		return false
	}
	running := active == "active" || active == "activating" || active == "reloading"
	before, err := durable.ReadFile(s.cfg.Paths.Applied, 1<<10)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, durable.ErrTorn) {
		s.cfg.Logger.Warn("can't tell what the kubelet was last started with: restarting it", "err", err)
	}
	if running && active != "activating" && strings.TrimSpace(string(before)) == s.cfg.Hash {
		return true
	}
	if err := s.cfg.Permit(); err != nil {
		s.hold(ctx, active, err)
		return false
	}
	if running && strings.TrimSpace(string(before)) == s.cfg.Hash {
		return true
	}
	if running {
		s.cfg.Logger.Info("the kubelet's configuration has changed: restarting it (pods keep running)", "unit", s.cfg.Unit)
	}
	if err := s.cfg.manager.Apply(ctx, s.cfg.Unit, running); err != nil {
		s.down("StartFailed", fmt.Sprintf("%s can't be started: %v (see `journalctl -u %s`)", s.cfg.Unit, err, s.cfg.Unit))
		return false
	}
	if err := durable.WriteFile(s.cfg.Paths.Applied, []byte(s.cfg.Hash+"\n"), 0o600); err != nil {
		s.cfg.Logger.Warn("the kubelet will be restarted once more when the agent starts next", "err", err)
	}
	return true
}

// hold waits for the permission to start. A kubelet that runs goes on; one that systemd starts again and
// again (it is enabled, so after a boot systemd does before anybody has looked) is stopped.
func (s *Systemd) hold(ctx context.Context, active string, why error) {
	if active == "active" || active == "reloading" {
		s.cfg.OnState(State{Running: true, Reason: "Running", Message: fmt.Sprintf("kubelet running (%s), but %v", s.cfg.Unit, why)})
		return
	}
	if active == "activating" {
		if err := s.cfg.halt(ctx, s.cfg.Unit); err != nil {
			s.cfg.Logger.Warn("can't stop the kubelet, which can't work for now", "unit", s.cfg.Unit, "err", err)
		}
	}
	s.cfg.OnState(waiting(why))
}

// look reports the unit's state; false means that it has to be started again.
func (s *Systemd) look(ctx context.Context) bool {
	active, pid, err := s.cfg.manager.State(ctx, s.cfg.Unit)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.down("SystemdUnreachable", fmt.Sprintf("can't ask systemd about %s: %v", s.cfg.Unit, err))
	case active == "active":
		s.cfg.OnState(State{Running: true, Reason: "Running", Message: fmt.Sprintf("kubelet running (%s)", s.cfg.Unit), PID: pid})
	case active == "failed":
		s.down("Failed", fmt.Sprintf("%s has failed; starting it again (see `journalctl -u %s`)", s.cfg.Unit, s.cfg.Unit))
		return false
	case active == "inactive" && s.cfg.Permit() != nil:
		return false // stopped by hold of an agent before this one
	case active == "inactive":
		// systemd's Restart= would have brought it back after a crash: somebody stopped it and means it.
		s.down("Stopped", fmt.Sprintf("%s was stopped; `systemctl start %s` brings it back", s.cfg.Unit, s.cfg.Unit))
	default:
		if s.cfg.Permit() != nil {
			return false // "activating" is also what a unit is between two starts that fail
		}
		s.down("Starting", fmt.Sprintf("%s is %s", s.cfg.Unit, active))
	}
	return true
}

func (s *Systemd) down(reason, message string) {
	s.cfg.OnState(State{Reason: reason, Message: message})
}

// Stop stops and disables the unit; it tells whether it was running.
func (s *Systemd) Stop(ctx context.Context) (bool, error) {
	active, _, err := s.cfg.manager.State(ctx, s.cfg.Unit)
	if err != nil || active == "inactive" || active == "failed" {
		return false, err
	}
	return true, stopUnit(ctx, s.cfg.Unit)
}

// overDBus asks systemd, with a connection for each question: they are seldom, and a kept one would have
// to be watched.
type overDBus struct{}

func withSystemd(ctx context.Context, f func(*dbus.Conn) error) error {
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	return f(conn)
}

func (overDBus) Enable(ctx context.Context, unit string) error {
	return withSystemd(ctx, func(c *dbus.Conn) error {
		_, changes, err := c.EnableUnitFilesContext(ctx, []string{unit}, false, false)
		if err != nil || len(changes) == 0 {
			return err
		}
		return c.ReloadContext(ctx)
	})
}

func (overDBus) Apply(ctx context.Context, unit string, restart bool) error {
	return withSystemd(ctx, func(c *dbus.Conn) error {
		// Else a unit at its start limit would refuse; an error means that it is not loaded, which is fine.
		_ = c.ResetFailedUnitContext(ctx, unit)
		job := c.StartUnitContext
		if restart {
			job = c.RestartUnitContext
		}
		return await(ctx, unit, job)
	})
}

func haltUnit(ctx context.Context, unit string) error {
	return withSystemd(ctx, func(c *dbus.Conn) error { return await(ctx, unit, c.StopUnitContext) })
}

func stopUnit(ctx context.Context, unit string) error {
	return withSystemd(ctx, func(c *dbus.Conn) error {
		if _, err := c.DisableUnitFilesContext(ctx, []string{unit}, false); err != nil {
			return fmt.Errorf("disable %s: %w", unit, err)
		}
		return await(ctx, unit, c.StopUnitContext)
	})
}

// await runs a job and waits for its result.
func await(ctx context.Context, unit string, job func(context.Context, string, string, chan<- string) (int, error)) error {
	result := make(chan string, 1)
	if _, err := job(ctx, unit, "replace", result); err != nil {
		return err
	}
	select {
	case r := <-result:
		if r != "done" {
			return fmt.Errorf("systemd says %q", r)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (overDBus) State(ctx context.Context, unit string) (active string, pid int, err error) {
	err = withSystemd(ctx, func(c *dbus.Conn) error {
		state, err := c.GetUnitPropertyContext(ctx, unit, "ActiveState")
		if err != nil {
			return err
		}
		active, _ = state.Value.Value().(string)
		main, err := c.GetServicePropertyContext(ctx, unit, "MainPID")
		if err != nil {
			return nil // nothing to name then, but the state is known
		}
		n, _ := main.Value.Value().(uint32)
		pid = int(n)
		return nil
	})
	return active, pid, err
}
