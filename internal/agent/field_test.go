package agent

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/join"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// TestIdentityIsKeptThoughOtherFilesWere: a disk that refused one file and took the next has not failed for good, nor is
// what it refused kept. The broker is told when it is: a rotation of its CA may wait for that.
func TestIdentityIsKeptThoughOtherFilesWere(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	var full atomic.Bool
	a, _ := runWith(t, cfg, Options{storageEvery: time.Hour, write: func(path string, data []byte, perm fs.FileMode) error {
		if full.Load() && filepath.Base(path) == "identity.json" {
			return fmt.Errorf("write %s: %w", path, syscall.ENOSPC)
		}
		return durable.WriteFile(path, data, perm)
	}})
	until(t, cfg.Socket, "ready", isReady)
	s.session()
	full.Store(true)
	a.nudge(join.NudgeRefused)
	if st := s.status(); len(st.Trusts) != 0 {
		t.Fatalf("with an identity in memory only: %+v", st)
	}
	full.Store(false)
	if err := a.writeFile(filepath.Join(cfg.StateDir, "other"), []byte("x"), 0o600); err != nil || a.health.Get(condStorage).Status != health.True {
		t.Fatalf("%v, %+v", err, a.health.Get(condStorage))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var looking sync.WaitGroup
	looking.Go(func() { _ = a.watchStorage(ctx) })
	if st := s.status(); len(st.Trusts) != 1 || !a.joiner.Kept() {
		t.Errorf("status %+v, kept %t", st, a.joiner.Kept())
	}
	cancel()
	looking.Wait()
}

// TestRenewedComesBackAtOnce: a box that the broker turned away, and then renewed, does not sit out the wait that it
// was turned away with, which is longer than this test waits.
func TestRenewedComesBackAtOnce(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	run(t, cfg)
	until(t, cfg.Socket, "ready", isReady)
	_ = s.session().Close(wire.Revoked, "removed")
	select {
	case <-s.up:
	case <-time.After(slowPace * 2 / 3):
		t.Fatal("it waits on")
	}
	if s.broker.Renews() != 1 {
		t.Errorf("%d renewals", s.broker.Renews())
	}
}

// TestClockAheadInTheStatus: a person reads what makes certificates expire before their time.
func TestClockAheadInTheStatus(t *testing.T) {
	s := newShore(t)
	s.broker.Serve(t, time.Now(), 30*24*time.Hour)
	cfg := s.node()
	runWith(t, cfg, Options{now: func() time.Time { return time.Now().Add(48 * time.Hour) }})
	st := until(t, cfg.Socket, "ahead", func(s *Status) bool { return condition(s, condClock).Reason == "Ahead" })
	if c := condition(st, condClock); c.Status != health.False || !strings.Contains(c.Message, "48h0m0s later than the broker says") {
		t.Errorf("condition %+v", c)
	}
}
