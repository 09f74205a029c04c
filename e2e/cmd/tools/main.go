// Command tools builds the real Kubernetes and etcd of the end-to-end tests into the cache, unless they
// are there, Kamaji's controller and konnectivity's agent, and prints where they are. With the argument kubernetes it sees to
// that alone.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "tools:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	root, err := tools.Root()
	if err != nil {
		return err
	}
	logf := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	dir, err := tools.Kubernetes(ctx, root, logf)
	if err != nil {
		return err
	}
	fmt.Println(dir)
	if len(os.Args) > 1 && os.Args[1] == "kubernetes" { // which is all that the demo runs
		return nil
	}
	kamaji, _, err := tools.Kamaji(ctx, root, logf)
	if err != nil {
		return err
	}
	fmt.Println(kamaji)
	agent, err := tools.Konnectivity(ctx, root, logf)
	if err != nil {
		return err
	}
	fmt.Println(agent)
	return nil
}
