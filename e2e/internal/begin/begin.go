// Package begin begins and ends the runs that the suites of end-to-end tests take.
package begin

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
	"github.com/mooring-edge/mooring/e2e/internal/need"
	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

// cleanUp is how long before the test's deadline the context ends: go test ends an overdue test without cleaning up.
const cleanUp = time.Minute

// Suite takes a run, which ends with the test: with the programs' logs if it failed, then after. Missing is what the machine
// lacks (need.Set). The context ends with the test, at an interrupt, and a minute before the test's deadline.
func Suite(t *testing.T, missing error, logf tools.Logf, after func()) (context.Context, *harness.Env) {
	t.Helper()
	need.Set(t, missing)
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stop)
	if deadline, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-cleanUp))
		t.Cleanup(cancel)
	}
	env, err := harness.New(ctx, logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			env.DumpLogs(os.Stdout)
		}
		if err := env.Close(); err != nil {
			t.Error(err)
		}
		after()
	})
	logf("run directory %s", env.Dir())
	return ctx, env
}
