package health

import (
	"context"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// sdNotify tells systemd, if it started us; elsewhere it does nothing.
func sdNotify(state string) error {
	_, err := daemon.SdNotify(false, state)
	return err
}

// sdWatchdog returns systemd's watchdog limit for this process; negative if it has none.
func sdWatchdog() time.Duration {
	if d, err := daemon.SdWatchdogEnabled(false); err == nil && d > 0 {
		return d
	}
	return -1
}

// Run tells the service manager READY, then each change of the status line, and feeds its watchdog
// for as long as the beat is fresh. It returns nil when ctx ends, after saying STOPPING.
//
// READY means that the program is at work, not that the tunnel is up: a unit that waited for the
// tunnel would be killed by its start timeout on a box that boots while it is cut off.
func (t *Tracker) Run(ctx context.Context) error {
	line := t.Line()
	t.notify("READY=1\nSTATUS=" + oneLine(line))

	var feed <-chan time.Time
	if t.cfg.WatchdogInterval > 0 {
		// A third: one late round must not cost the process its life.
		ticker := time.NewTicker(t.cfg.WatchdogInterval / 3)
		defer ticker.Stop()
		feed = ticker.C
	}
	stuck := false
	for {
		select {
		case <-ctx.Done():
			t.notify("STOPPING=1\nSTATUS=stopping")
			return nil
		case <-t.changed:
			if now := t.Line(); now != line {
				line = now
				t.notify("STATUS=" + oneLine(line))
			}
		case <-feed:
			alive, age := t.Alive()
			if alive {
				t.notify("WATCHDOG=1")
			} else if !stuck {
				t.cfg.Logger.Error("the main loop is stuck: no longer feeding the watchdog, so that the service manager restarts this process",
					"last_beat", age.Round(time.Second).String())
			}
			stuck = !alive
		}
	}
}

func (t *Tracker) notify(state string) {
	if err := t.cfg.Notify(state); err != nil {
		t.cfg.Logger.Warn("could not tell the service manager about the state", "err", err)
	}
}

// oneLine keeps a message from being read as further sd_notify assignments.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}
