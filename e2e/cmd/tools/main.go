// Command tools builds the real Kubernetes and etcd of the end-to-end tests into the cache, unless they
// are there, and Kamaji's controller, and prints where they are.
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
	kamaji, _, err := tools.Kamaji(ctx, root, logf)
	if err != nil {
		return err
	}
	fmt.Println(kamaji)
	return nil
}
