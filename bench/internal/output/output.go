// Package output is how a benchmark tells a person of its progress, and a program of its figures.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Progress writes lines with the time since the start.
func Progress(w io.Writer) func(string, ...any) {
	begin := time.Now()
	return func(format string, args ...any) {
		fmt.Fprintf(w, "%7.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
}

// JSON writes figures for programs.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
