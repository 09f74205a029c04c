// Command timeshift runs a program whose wall clock is off by a fixed amount:
//
//	timeshift 9600h edge-agent run
//
// It works on static programs too; see package timeshift for how, and for what it does not shift.
package main

import (
	"fmt"
	"os"

	"github.com/mooring-edge/mooring/e2e/internal/timeshift"
)

func main() {
	if err := timeshift.Main(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "timeshift:", err)
		os.Exit(1)
	}
}
