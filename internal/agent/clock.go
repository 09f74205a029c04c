package agent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mooring-edge/mooring/internal/rounds"
	"github.com/mooring-edge/mooring/pkg/health"
)

const (
	clockInterval = 10 * time.Second
	// clockTolerance is how far the clock may be behind before that is said, and matters.
	clockTolerance = time.Hour
	// setTolerance is how far it must be behind to be set by the agent.
	setTolerance = time.Minute
	clockForm    = "2006-01-02 15:04"
)

// watchClock keeps the condition of this machine's clock, and sets that if the operator wants it, until ctx
// ends.
func (a *Agent) watchClock(ctx context.Context) error {
	for ctx.Err() == nil {
		a.lookAtClock()
		a.joiner.Clock().Tick()
		pause(ctx, rounds.Until(clockInterval))
	}
	return nil
}

func (a *Agent) lookAtClock() {
	c := a.joiner.Clock()
	if behind := c.Behind(); a.cfg.Node.SetClock && behind > setTolerance && !a.setFailed {
		to := c.Floor()
		if err := a.setTime(to); err != nil {
			a.setFailed = true // it would fail each time: once in the log is enough
			a.logger.Error("this machine's clock can't be set", "err", err, "hint", "node.setClock needs CAP_SYS_TIME")
		} else {
			a.logger.Warn("this machine's clock was behind what the broker vouches for and has been set", "behind", behind.Round(time.Second).String(), "to", to.UTC())
		}
	}
	if err := a.clockBehind(); err != nil {
		a.health.Set(condClock, health.False, "Behind", err.Error())
		return
	}
	if ahead := c.Ahead(); ahead > clockTolerance {
		a.health.Set(condClock, health.False, "Ahead", fmt.Sprintf("this machine's clock says %s, %s later than the broker says: certificates seem "+
			"to expire before their time, and are renewed too often; set it back (NTP, `timedatectl set-time`)", c.System().UTC().Format(clockForm), ahead.Round(time.Minute)))
		return
	}
	a.health.Set(condClock, health.True, "NotBehind", "not behind what the broker vouched for")
}

// clockBehind says that this machine's clock is known to be wrong, or nil.
func (a *Agent) clockBehind() error {
	c := a.joiner.Clock()
	if c.Behind() <= clockTolerance {
		return nil
	}
	return fmt.Errorf("this machine's clock says %s, the broker says %s: waiting for it to be set (NTP, `timedatectl set-time`, or node.setClock); "+
		"the broker is verified by the later time meanwhile", c.System().UTC().Format(clockForm), c.Floor().UTC().Format(clockForm))
}

// setSystemClock steps the system's clock.
func setSystemClock(to time.Time) error {
	ts := unix.NsecToTimespec(to.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock to %s: %w", to.UTC().Format(time.RFC3339), err)
	}
	return nil
}
