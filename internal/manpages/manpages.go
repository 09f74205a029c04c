// Package manpages writes the manual pages and the shells' completions of a program from its commands. Only builds with
// the tag man import it: what is shipped carries none of it.
package manpages

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Main writes them to a directory, if the program was called as `PROGRAM man DIR VERSION`, and ends it; else it does nothing.
// Pages are dated by SOURCE_DATE_EPOCH, or else today.
func Main(root *cobra.Command) {
	if len(os.Args) != 4 || os.Args[1] != "man" {
		return
	}
	if err := write(root, os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// write makes DIR/man/*.1 and DIR/PROGRAM.{bash,zsh,fish}.
func write(root *cobra.Command, dir, version string) error {
	man := filepath.Join(dir, "man")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	root.InitDefaultCompletionCmd()
	header := &doc.GenManHeader{Section: "1", Source: "Mooring " + version, Manual: "Mooring"}
	if err := doc.GenManTree(root, header, man); err != nil {
		return err
	}
	for shell, generate := range map[string]func(io.Writer) error{
		"bash": func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"zsh":  root.GenZshCompletion,
		"fish": func(w io.Writer) error { return root.GenFishCompletion(w, true) },
	} {
		f, err := os.Create(filepath.Join(dir, root.Name()+"."+shell))
		if err != nil {
			return err
		}
		if err := generate(f); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
