package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/agent"
)

// waitInterval is the pause between two looks at the agent: short beside all that is waited for.
const waitInterval = 500 * time.Millisecond

func newWait() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until this node is enrolled, connected or ready",
		Long: `Wait for the agent to come as far as --for says: enrolled (it has its identity), tunnel (it is connected to the
broker), ready (all that 'edge-agent status' looks at is well). An agent that does not run yet is waited for too.
Exits with 1 if that has not come about when --timeout is over, and says how far it came.`,
		Example: `  edge-agent wait --for tunnel --timeout 5m && echo moored
  edge-agent wait --for enrolled --timeout 0`,
		Args: cobra.NoArgs,
	}
	socket := socketFlag(cmd)
	goal := cmd.Flags().String("for", "ready", "enrolled, tunnel or ready")
	timeout := cmd.Flags().Duration("timeout", 5*time.Minute, "how long to wait; 0 = without end")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		reached, ok := waitGoals[*goal]
		if !ok {
			return usageError{fmt.Errorf("--for: want enrolled, tunnel or ready, got %q", *goal)}
		}
		if *timeout < 0 {
			return usageError{fmt.Errorf("--timeout: want a time of at least 0, got %s", *timeout)}
		}
		ctx := cmd.Context()
		if *timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, *timeout)
			defer cancel()
		}
		return wait(ctx, func(ctx context.Context) (string, bool) {
			s, err := agent.FetchStatus(ctx, *socket)
			if err != nil {
				return err.Error(), false
			}
			return s.Summary, reached(s)
		})
	}
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions([]string{"enrolled", "tunnel", "ready"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

var waitGoals = map[string]func(*agent.Status) bool{
	"enrolled": func(s *agent.Status) bool { return s.Identity != nil },
	"tunnel":   func(s *agent.Status) bool { return s.Tunnel.Connected },
	"ready":    func(s *agent.Status) bool { return s.Ready },
}

// wait looks until it is done; the error says what the last look saw.
func wait(ctx context.Context, look func(context.Context) (state string, done bool)) error {
	ticker := time.NewTicker(waitInterval)
	defer ticker.Stop()
	last := "nothing was seen"
	for {
		state, done := look(ctx)
		if done {
			return nil
		}
		if ctx.Err() == nil {
			last = state // a look that was cut short says only that
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain: %s (edge-agent doctor looks for the cause)", last)
		case <-ticker.C:
		}
	}
}
