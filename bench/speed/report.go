package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// limitName is the chain that all are compared with.
const limitName = "limit"

// spread is what the rounds gave for one figure.
type spread struct{ median, least, most float64 }

func spreadOf[T int64 | float64](values []T) (least, median, most T) {
	s := slices.Sorted(slices.Values(values))
	if len(s) == 0 {
		return
	}
	return s[0], (s[(len(s)-1)/2] + s[len(s)/2]) / 2, s[len(s)-1]
}

func (w *row) figure(f int) (s spread) {
	var v []float64
	for _, r := range w.Rounds {
		v = append(v, r.Values[f])
	}
	s.least, s.median, s.most = spreadOf(v)
	return s
}

func (r *result) limit() *row {
	i := slices.IndexFunc(r.Rows, func(w *row) bool { return w.Name == limitName })
	if i < 0 {
		return r.Rows[0]
	}
	return r.Rows[i]
}

// ratio is a chain's median of a figure to that of another.
func ratio(a, b *row, f int) float64 { return a.figure(f).median / b.figure(f).median }

func (w *row) title() string { return fmt.Sprintf("%s, %s", w.Name, w.Transport) }

// writeText prints ratios to the limit, then what they are of.
func (r *result) writeText(out io.Writer) error {
	fmt.Fprintf(out, "%s, %s; medians of %d rounds\n", r.Date.Format("2006-01-02"), r.Machine, len(r.Rows[0].Rounds))
	fmt.Fprint(out, "\nRatios to the limit (for times, less is better)\n\n")
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	heads := []string{""}
	for _, f := range figureOf {
		heads = append(heads, f.name)
	}
	fmt.Fprintln(t, strings.Join(heads, "\t"))
	for _, w := range r.Rows {
		cells := []string{w.title()}
		for f := range figures {
			cells = append(cells, fmt.Sprintf("%.2f", ratio(w, r.limit(), f)))
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprint(out, "\nMedians (least to most)\n\n")
	for i, f := range figureOf {
		if heads[i+1] = f.name + ", " + f.unit; f.unit == "/s" {
			heads[i+1] = f.name + " a second"
		}
	}
	fmt.Fprintln(t, strings.Join(heads, "\t"))
	for _, w := range r.Rows {
		cells := []string{w.title()}
		for f := range figures {
			s, by := w.figure(f), figureOf[f].scaled
			cells = append(cells, fmt.Sprintf("%s (%s-%s)", short(s.median*by), short(s.least*by), short(s.most*by)))
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprint(out, "\nWhat each program uses: CPU seconds for a GB, CPU milliseconds for a dial, RSS in MB after all rounds\n\n")
	for _, w := range r.Rows {
		for i, name := range w.Programs {
			perGB, perDial, rss := w.usage(i)
			fmt.Fprintf(t, "%s\t%s\t%.2f\t%.2f\t%.0f\n", w.title(), name, perGB, perDial, rss)
		}
	}
	return t.Flush()
}

// usage is what a chain's i-th program used: seconds of CPU for a GB and milliseconds for a dial, medians, and the most RSS, in MB.
func (w *row) usage(i int) (perGB, perDial, rss float64) {
	_, perGB, _ = spreadOf(each(w, func(r round) float64 { return r.CPUPerGB[i] }))
	_, perDial, _ = spreadOf(each(w, func(r round) float64 { return r.CPUDial[i] }))
	_, _, most := spreadOf(each(w, func(r round) int64 { return r.RSS[i] }))
	return perGB, perDial * 1e3, float64(most) / 1e6
}

func each[T any](w *row, of func(round) T) (out []T) {
	for _, r := range w.Rounds {
		out = append(out, of(r))
	}
	return out
}

// short writes a figure with two to four digits.
func short(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// writeMarkdown prints the same as tables for a page.
func (r *result) writeMarkdown(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s. Medians of %d rounds.\n", r.Date.Format("2006-01-02"), r.Machine, len(r.Rows[0].Rounds))
	table := func(title string, last int, cell func(w *row, f int) string) {
		fmt.Fprintf(&b, "\n%s\n\n|", title)
		for _, f := range figureOf[:last] {
			fmt.Fprintf(&b, " | %s", f.name)
		}
		fmt.Fprintf(&b, " |\n|%s\n", strings.Repeat("---|", last+1))
		for _, w := range r.Rows {
			fmt.Fprintf(&b, "| %s", w.title())
			for f := range last {
				fmt.Fprintf(&b, " | %s", cell(w, f))
			}
			b.WriteString(" |\n")
		}
	}
	table("Ratios to the limit (for times, less is better):", figures, func(w *row, f int) string {
		return fmt.Sprintf("%.2f", ratio(w, r.limit(), f))
	})
	table("What they are of, with the least and the most of the rounds (MB/s; round trips in µs; dials a second; their times in ms):", figures, func(w *row, f int) string {
		s, by := w.figure(f), figureOf[f].scaled
		return fmt.Sprintf("%s (%s-%s)", short(s.median*by), short(s.least*by), short(s.most*by))
	})
	b.WriteString("\nWhat each program uses:\n\n| | program | CPU s / GB | CPU ms / dial | RSS, MB |\n|---|---|---|---|---|\n")
	for _, w := range r.Rows {
		for i, name := range w.Programs {
			perGB, perDial, rss := w.usage(i)
			fmt.Fprintf(&b, "| %s | %s | %.2f | %.2f | %.0f |\n", w.title(), name, perGB, perDial, rss)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}
