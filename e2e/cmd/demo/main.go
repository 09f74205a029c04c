// Command demo raises one tenant's control plane and one edge site behind NAT on this machine, joins the
// site's node through the broker, and shows kubectl at work through the tunnel. It stays up until
// Ctrl-C, then removes everything; with DEMO_ONCE=1 it ends after the last check.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends at once; what is left is removed all the same
	err := run(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		fmt.Println("interrupted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "\ndemo failed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	out := &printer{start: time.Now()}
	out.title("Mooring demo: a hosted control plane, and an edge node behind NAT that it has no route to")
	out.step("Real Kubernetes, and the product from this tree")
	env, err := harness.New(ctx, out.info)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Println()
			env.DumpLogs(os.Stdout)
		}
		fmt.Println()
		out.info("cleaning up")
		err = errors.Join(err, env.Close())
		if err == nil {
			out.info("all gone")
		}
	}()
	d := &demo{ctx: ctx, out: out, env: env}
	if err := d.play(); err != nil {
		return err
	}
	if os.Getenv("DEMO_ONCE") == "1" {
		return nil
	}
	d.tryByHand()
	<-ctx.Done()
	return nil
}
