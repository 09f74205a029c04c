package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mooring-edge/mooring/internal/agent"
)

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		looks := 0
		err := wait(t.Context(), func(context.Context) (string, bool) { looks++; return "not yet", looks == 5 })
		if took := time.Since(start); err != nil || took != 4*waitInterval {
			t.Errorf("after %s: %v", took, err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start = time.Now()
		err = wait(ctx, func(ctx context.Context) (string, bool) {
			if ctx.Err() != nil {
				return ctx.Err().Error(), false
			}
			return "the tunnel is down", false
		})
		if took := time.Since(start); took != 10*time.Second || err == nil || !strings.Contains(err.Error(), "the tunnel is down") {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

func TestWaitGoals(t *testing.T) {
	enrolled := &agent.Status{Identity: &agent.IdentityStatus{}}
	moored := &agent.Status{Identity: &agent.IdentityStatus{}, Tunnel: agent.TunnelStatus{Connected: true}}
	ready := &agent.Status{Identity: &agent.IdentityStatus{}, Tunnel: agent.TunnelStatus{Connected: true}, Ready: true}
	for goal, want := range map[string][4]bool{
		"enrolled": {false, true, true, true},
		"tunnel":   {false, false, true, true},
		"ready":    {false, false, false, true},
	} {
		for i, s := range []*agent.Status{{}, enrolled, moored, ready} {
			if got := waitGoals[goal](s); got != want[i] {
				t.Errorf("%s: %t in state %d", goal, got, i)
			}
		}
	}
}
