package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// execResult is what e2e/cmd/execbench prints.
type execResult struct {
	Date  time.Time `json:"date"`
	Bytes int64     `json:"bytes"`
	Ways  []struct {
		Name      string    `json:"name"`
		Transport string    `json:"transport"`
		Down      []float64 `json:"downSeconds"`
		Up        []float64 `json:"upSeconds"`
	} `json:"ways"`
}

func (r *execResult) writeMarkdown(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, the same machine. %d bytes each way; medians of %d, and of %d of the direct way, with the least and the most, in seconds; ratios to the direct way.\n\n",
		r.Date.Format("2006-01-02"), r.Bytes, len(r.Ways[len(r.Ways)-1].Down), len(r.Ways[0].Down))
	b.WriteString("| | out of a pod | ratio | into a pod | ratio |\n|---|---|---|---|---|\n")
	base := r.Ways[0]
	_, downBase, _ := spreadOf(base.Down)
	_, upBase, _ := spreadOf(base.Up)
	for _, w := range r.Ways {
		dl, d, dm := spreadOf(w.Down)
		ul, u, um := spreadOf(w.Up)
		fmt.Fprintf(&b, "| %s, %s | %.2f (%.2f-%.2f) | %.2f | %.2f (%.2f-%.2f) | %.2f |\n", w.Name, w.Transport, d, dl, dm, d/downBase, u, ul, um, u/upBase)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func newPage() *cobra.Command {
	var page, dir string
	c := &cobra.Command{
		Use:   "page",
		Short: "Put figures that were measured into a page, and the plot beside it",
		Long: `page reads what speed (speed.json) and its quic (quic.json), e2e/cmd/execbench (exec.json) and footprint (footprint.json) have printed, as far as it is there, and
writes each as tables into the page: between the lines <!-- NAME: begin --> and <!-- NAME: end -->, where NAME is that of the file without
.json. The plot goes beside the page, with the ending .svg.`,
		Example: `  go run ./speed page --figures ../bin/bench --page ../docs/performance.md`,
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return writePage(page, dir) },
	}
	fl := c.Flags()
	fl.StringVar(&page, "page", "", "the page, a Markdown file (required)")
	fl.StringVar(&dir, "figures", "", "directory of the JSON files (required)")
	c.MarkFlagRequired("page")
	c.MarkFlagRequired("figures")
	return c
}

// markdown is a set of figures that can be shown on a page.
type markdown interface{ writeMarkdown(io.Writer) error }

func writePage(page, dir string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	speed := &result{}
	done := 0
	for _, part := range []struct {
		name string
		into markdown
	}{{"speed", speed}, {"quic", &result{}}, {"exec", &execResult{}}, {"footprint", &footprint{}}} {
		data, err := os.ReadFile(filepath.Join(dir, part.name+".json"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, part.into); err != nil {
			return fmt.Errorf("%s.json: %w", part.name, err)
		}
		var b strings.Builder
		if part.name == "speed" {
			fmt.Fprintf(&b, "![Ratios to the limit](%s)\n\n", filepath.Base(plotOf(page)))
		}
		if err := part.into.writeMarkdown(&b); err != nil {
			return err
		}
		if text, err = between(text, part.name, b.String()); err != nil {
			return fmt.Errorf("%s: %w", page, err)
		}
		done++
	}
	if done == 0 {
		return fmt.Errorf("%s has no figures: run `make bench`", dir)
	}
	if len(speed.Rows) > 0 {
		var b strings.Builder
		if err := speed.writeSVG(&b); err != nil {
			return err
		}
		if err := os.WriteFile(plotOf(page), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(page, text, 0o644)
}

// plotOf is where the plot of a page is.
func plotOf(page string) string { return strings.TrimSuffix(page, filepath.Ext(page)) + ".svg" }

// between replaces what is between a page's marks for a name.
func between(page []byte, name, with string) ([]byte, error) {
	begin, end := fmt.Sprintf("<!-- %s: begin -->\n", name), fmt.Sprintf("<!-- %s: end -->", name)
	i, j := strings.Index(string(page), begin), strings.Index(string(page), end)
	if i < 0 || j < i {
		return nil, fmt.Errorf("there are no lines %s and %s", strings.TrimSpace(begin), end)
	}
	return slices.Concat(page[:i+len(begin)], []byte("\n"+with+"\n"), page[j:]), nil
}
