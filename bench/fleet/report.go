package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what one run has measured over one transport. Times are in seconds or, where the name says so, in
// milliseconds; memory is in bytes.
type report struct {
	Transport string  `json:"transport"`
	Agents    int     `json:"agents"`
	Limits    string  `json:"limits"`
	Connected float64 `json:"connectedSeconds"` // from the first node's start to the last one's session

	Memory    memoryFigures `json:"memory"`
	CPU       cpuFigures    `json:"cpu"`
	IdleDials *dialFigures  `json:"idleDials,omitempty"`
	Kill      *killFigures  `json:"kill,omitempty"`
	Profiles  string        `json:"profiles,omitempty"`
}

// memoryFigures are the broker's before the first session, and with all of them idle.
type memoryFigures struct {
	Before brokerSize `json:"before"`
	Idle   brokerSize `json:"idle"`
	// RSSPerSession is what all of them have added, each.
	RSSPerSession int64 `json:"rssPerSession"`
	// Peak is the most that RSS was, VmHWM.
	Peak int64 `json:"peakRSS"`
}

// brokerSize is what a broker takes at one moment.
type brokerSize struct {
	RSS        int64 `json:"rss"`
	Mapped     int64 `json:"mapped"` // of RSS, the pages of files: the program and the store
	HeapInUse  int64 `json:"heapInUse"`
	HeapAlloc  int64 `json:"heapAlloc"`
	HeapKept   int64 `json:"heapKept"` // not in use and not given back to the kernel
	Stacks     int64 `json:"stacks"`
	Runtime    int64 `json:"runtime"` // the runtime's own, such as its tables of spans
	Goroutines int64 `json:"goroutines"`
	Files      int   `json:"files"`
}

// cpuFigures are in percent of one core.
type cpuFigures struct {
	Window float64 `json:"windowSeconds"`
	Broker float64 `json:"brokerPercent"`
	Agents float64 `json:"agentsPercent"`
}

type dialFigures struct {
	Dials    int            `json:"dials"`
	Failed   int            `json:"failed"`
	P50      float64        `json:"p50Millis"`
	P99      float64        `json:"p99Millis"`
	Max      float64        `json:"maxMillis"`
	Failures map[string]int `json:"failures,omitempty"`
}

// killFigures count from the kill -9.
type killFigures struct {
	Serving float64 `json:"servingSeconds"` // the broker serves again
	Back    int     `json:"back"`           // nodes that have a session again; the others count as back at the timeout
	P50     float64 `json:"p50Seconds"`     // a node has a session again
	P99     float64 `json:"p99Seconds"`
	Max     float64 `json:"maxSeconds"`
	// Dials are those from Serving to Max.
	Dials dialFigures `json:"dials"`
	// Ends are why sessions ended, or were not made, meanwhile.
	Ends map[string]int `json:"ends"`
	// Refused counts what the broker's port turned away, by its bound.
	Refused map[string]int `json:"refused,omitempty"`
	// BrokerCPU is what the new broker has used by then, in seconds.
	BrokerCPU float64 `json:"brokerCPUSeconds"`
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// kb is a number of bytes in KB of 1000, as the targets have them.
func kb(n int64) string { return fmt.Sprintf("%.1f KB", float64(n)/1000) }

func mb(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func seconds(s float64) string { return fmt.Sprintf("%.1f s", s) }

// writeText writes reports for a person, a column for each.
func writeText(w io.Writer, all []*report) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(what string, cell func(*report) string) {
		fmt.Fprint(tw, what)
		for _, r := range all {
			fmt.Fprint(tw, "\t", cell(r))
		}
		fmt.Fprintln(tw)
	}
	row("", func(r *report) string { return fmt.Sprintf("%d over %s", r.Agents, r.Transport) })
	row("all connected after", func(r *report) string { return seconds(r.Connected) })
	row("RSS per idle session", func(r *report) string { return kb(r.Memory.RSSPerSession) })
	row("  RSS before, idle, peak", func(r *report) string {
		return mb(r.Memory.Before.RSS) + ", " + mb(r.Memory.Idle.RSS) + ", " + mb(r.Memory.Peak)
	})
	each := func(r *report, f func(brokerSize) int64) int64 {
		return (f(r.Memory.Idle) - f(r.Memory.Before)) / int64(r.Agents)
	}
	row("  heap in use, per session", func(r *report) string {
		return mb(r.Memory.Idle.HeapInUse) + ", " + kb(each(r, func(b brokerSize) int64 { return b.HeapInUse }))
	})
	row("  goroutine stacks, per session", func(r *report) string {
		return mb(r.Memory.Idle.Stacks) + ", " + kb(each(r, func(b brokerSize) int64 { return b.Stacks }))
	})
	row("  files' pages, heap kept, runtime", func(r *report) string {
		return mb(r.Memory.Idle.Mapped) + ", " + mb(r.Memory.Idle.HeapKept) + ", " + mb(r.Memory.Idle.Runtime)
	})
	row("  goroutines, per session", func(r *report) string {
		more := r.Memory.Idle.Goroutines - r.Memory.Before.Goroutines
		return fmt.Sprintf("%d, %.1f", r.Memory.Idle.Goroutines, float64(more)/float64(r.Agents))
	})
	row("CPU while idle, broker", func(r *report) string { return fmt.Sprintf("%.1f%% of a core", r.CPU.Broker) })
	row("CPU while idle, all agents", func(r *report) string { return fmt.Sprintf("%.1f%% of a core", r.CPU.Agents) })
	writeDials(row, "dials while idle", func(r *report) *dialFigures { return r.IdleDials })
	writeKill(row, all)
	return tw.Flush()
}

type rowFunc = func(what string, cell func(*report) string)

func writeDials(row rowFunc, what string, of func(*report) *dialFigures) {
	orNone := func(f func(*dialFigures) string) func(*report) string {
		return func(r *report) string {
			if d := of(r); d != nil {
				return f(d)
			}
			return "-"
		}
	}
	row(what+", p50, p99, max", orNone(func(d *dialFigures) string { return fmt.Sprintf("%.1f, %.1f, %.1f ms", d.P50, d.P99, d.Max) }))
	row("  dials, of them failed", orNone(func(d *dialFigures) string {
		return fmt.Sprintf("%d, %d%s", d.Dials, d.Failed, counts(d.Failures))
	}))
}

func writeKill(row rowFunc, all []*report) {
	if !slices.ContainsFunc(all, func(r *report) bool { return r.Kill != nil }) {
		return
	}
	orNone := func(f func(*killFigures) string) func(*report) string {
		return func(r *report) string {
			if r.Kill == nil {
				return "-"
			}
			return f(r.Kill)
		}
	}
	row("after kill -9: broker serves", orNone(func(k *killFigures) string { return seconds(k.Serving) }))
	row("  nodes back", orNone(func(k *killFigures) string { return fmt.Sprint(k.Back) }))
	row("  after, p50, p99, max", orNone(func(k *killFigures) string {
		return seconds(k.P50) + ", " + seconds(k.P99) + ", " + seconds(k.Max)
	}))
	row("  broker's CPU by then", orNone(func(k *killFigures) string { return seconds(k.BrokerCPU) }))
	row("  turned away at the port", orNone(func(k *killFigures) string {
		total := 0
		for _, n := range k.Refused {
			total += n
		}
		return fmt.Sprint(total) + counts(k.Refused)
	}))
	row("  sessions ended, not made", orNone(func(k *killFigures) string { return strings.TrimPrefix(counts(k.Ends), " ") }))
	writeDials(row, "  dials meanwhile", func(r *report) *dialFigures {
		if r.Kill == nil {
			return nil
		}
		return &r.Kill.Dials
	})
}

// counts puts a count of things by name in parentheses, with a space before; nothing if there are none.
func counts(m map[string]int) string {
	if len(m) == 0 {
		return ""
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s: %d", k, m[k]))
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
