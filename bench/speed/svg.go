package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
)

// panels are the figures that the plot shows, two in a row.
var panels = []int{down1, up1, down8, up8, pingP50, dialRate}

const (
	barHeight  = 15
	barGap     = 4
	labelWidth = 250
	plotWidth  = 250
	panelGap   = 40
	headHeight = 34
	pageMargin = 16
)

// writeSVG plots ratios to the limit.
func (r *result) writeSVG(out io.Writer) error {
	var b strings.Builder
	rows := r.compared()
	panelHeight := headHeight + len(rows)*(barHeight+barGap) + 12
	width := 2*pageMargin + 2*(labelWidth+plotWidth) + panelGap
	height := 2*pageMargin + 40 + (len(panels)+1)/2*panelHeight
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	text := func(x, y float64, anchor, style, s string) {
		var escaped strings.Builder
		_ = xml.EscapeText(&escaped, []byte(s))
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s" %s>%s</text>`+"\n", x, y, anchor, style, escaped.String())
	}
	text(pageMargin, pageMargin+14, "start", `font-size="14" font-weight="bold"`, "Ratios to the practical limit (two TLS connections for each request, no mux)")
	text(pageMargin, pageMargin+30, "start", `fill="#555555"`, fmt.Sprintf("%s, %s; medians of %d rounds", r.Date.Format("2006-01-02"), r.Machine, len(r.Rows[0].Rounds)))
	for i, f := range panels {
		x := float64(pageMargin + i%2*(labelWidth+plotWidth+panelGap))
		y := float64(pageMargin + 44 + i/2*panelHeight)
		most := 1.0
		for _, w := range rows {
			most = max(most, ratio(w, r.limit(), f))
		}
		most = math.Min(most, 5) // what is longer is cut off, and says so by its number
		scale := (plotWidth - 50) / most
		better := "more is better"
		if figureOf[f].lower {
			better = "less is better"
		}
		text(x+labelWidth, y+14, "start", `font-weight="bold"`, figureOf[f].name+" ("+better+")")
		for j, w := range rows {
			top := y + headHeight - 10 + float64(j*(barHeight+barGap))
			v := ratio(w, r.limit(), f)
			text(x+labelWidth-6, top+barHeight-4, "end", `fill="#222222"`, w.title())
			fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%d" fill="%s"/>`+"\n", x+labelWidth, top, math.Min(v, most)*scale, barHeight, colour(w.Name))
			text(x+labelWidth+math.Min(v, most)*scale+4, top+barHeight-4, "start", `fill="#222222"`, fmt.Sprintf("%.2f", v))
		}
		one := x + labelWidth + scale
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#444444" stroke-dasharray="3,3"/>`+"\n", one, y+headHeight-14, one, y+float64(panelHeight)-14)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// compared are the rows of the plot: direct TCP is so far off that the others would not be seen beside it.
func (r *result) compared() (out []*row) {
	for _, w := range r.Rows {
		if w.Name != "direct" {
			out = append(out, w)
		}
	}
	return out
}

func colour(name string) string {
	switch {
	case strings.HasPrefix(name, "Mooring"):
		return "#1f6fb2"
	case name == limitName || strings.HasPrefix(name, "bare"):
		return "#8a8a8a"
	}
	return "#d9a441"
}
