// Command helm builds helm into the cache, unless it is there, and prints its path. It runs nothing of it: the Makefile
// and the tests do.
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
		fmt.Fprintln(os.Stderr, "helm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	root, err := tools.Root()
	if err != nil {
		return err
	}
	path, err := tools.Helm(ctx, root, func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	})
	if err != nil {
		return err
	}
	fmt.Println(path)
	return nil
}
