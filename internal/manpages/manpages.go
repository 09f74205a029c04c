// Package manpages writes the manual pages of a program from its commands. Only builds with the tag man import it: what is
// shipped carries none of it.
package manpages

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/mooring-edge/mooring/internal/version"
)

// Main writes the pages of root and all below it to a directory, if the program was called as `PROGRAM man DIR`, and ends
// it; else it does nothing. Their date is SOURCE_DATE_EPOCH, or else now.
func Main(root *cobra.Command) {
	if len(os.Args) != 3 || os.Args[1] != "man" {
		return
	}
	root.DisableAutoGenTag = true
	root.InitDefaultCompletionCmd()
	header := &doc.GenManHeader{Section: "1", Source: "Mooring " + version.Version, Manual: "Mooring"}
	if err := doc.GenManTree(root, header, os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
