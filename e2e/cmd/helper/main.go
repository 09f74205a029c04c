// Command helper is what the end-to-end harness runs beside itself.
//
//	helper init   first process of a box: turns fresh namespaces into a machine, then reaps its orphans
//	helper reap   waits for its standard input to end with the harness, then removes what the run left
//
// It is of no use by hand.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/mooring-edge/mooring/e2e/internal/box"
	"github.com/mooring-edge/mooring/e2e/internal/host"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: helper init SPEC | helper reap RUN")
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "init":
		err = box.Init(os.Args[2])
	case "reap":
		_, _ = io.Copy(io.Discard, os.Stdin)
		err = host.Reap(os.Args[2], os.Getenv("MOORING_E2E_KEEP") == "1")
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		os.Exit(1)
	}
}
