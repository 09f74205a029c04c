package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/bench/internal/proc"
)

// figure is one that is measured of each chain.
type figure struct {
	name   string
	unit   string
	lower  bool // less is better
	scaled float64
}

// The figures, in the order of the tables.
const (
	down1 = iota
	down8
	up1
	up8
	pingP50
	pingP99
	dialRate
	dialP50
	dialP99
	figures
)

var figureOf = [figures]figure{
	down1:    {name: "down, 1 stream", unit: "MB/s", scaled: 1e-6},
	down8:    {name: "down, 8 streams", unit: "MB/s", scaled: 1e-6},
	up1:      {name: "up, 1 stream", unit: "MB/s", scaled: 1e-6},
	up8:      {name: "up, 8 streams", unit: "MB/s", scaled: 1e-6},
	pingP50:  {name: "round trip p50", unit: "µs", lower: true, scaled: 1e6},
	pingP99:  {name: "round trip p99", unit: "µs", lower: true, scaled: 1e6},
	dialRate: {name: "dials", unit: "/s", scaled: 1},
	dialP50:  {name: "dial p50", unit: "ms", lower: true, scaled: 1e3},
	dialP99:  {name: "dial p99", unit: "ms", lower: true, scaled: 1e3},
}

// round is what one round measured of one chain: bytes a second, seconds, dials a second.
type round struct {
	Values   [figures]float64 `json:"values"`
	CPUPerGB []float64        `json:"cpuSecondsPerGB"` // of each program, and of load and target together, while bytes flowed
	CPUDial  []float64        `json:"cpuSecondsPerDial"`
	RSS      []int64          `json:"rss"` // of each, after all
}

// row is a chain's rounds.
type row struct {
	Name      string   `json:"name"`
	Transport string   `json:"transport"`
	Note      string   `json:"note,omitempty"`
	Programs  []string `json:"programs"` // on the way from load to target, and then these
	Rounds    []round  `json:"rounds"`
}

// result is a whole run.
type result struct {
	Date    time.Time `json:"date"`
	Machine string    `json:"machine"`
	Rows    []*row    `json:"chains"`
}

// loadAndTarget stands for the two that are alike in all chains but for what they speak.
const loadAndTarget = "load and target"

// measure takes the chains in turn, round by round: what disturbs the machine for a while disturbs all alike.
func measure(ctx context.Context, chains []*chain, target *proc.Process, o options, say func(string, ...any)) (*result, error) {
	r := &result{Date: time.Now().UTC(), Machine: machine()}
	for _, c := range chains {
		w := &row{Name: c.name, Transport: c.transport, Note: c.note, Programs: []string{}}
		c.target = target
		for _, p := range c.programs() {
			w.Programs = append(w.Programs, p.Name())
		}
		w.Programs = append(w.Programs, loadAndTarget)
		r.Rows = append(r.Rows, w)
	}
	for i := range o.rounds {
		for j, c := range chains {
			one, err := c.measure(ctx, o.durations)
			if err != nil {
				return nil, fmt.Errorf("%s over %s: %w", c.name, c.transport, err)
			}
			r.Rows[j].Rounds = append(r.Rows[j].Rounds, one)
			v := one.Values
			say("round %d of %d, %s over %s: %.0f and %.0f MB/s down, %.0f and %.0f up, %.0f µs, %.0f dials/s", i+1, o.rounds, c.name, c.transport,
				v[down1]/1e6, v[down8]/1e6, v[up1]/1e6, v[up8]/1e6, v[pingP50]*1e6, v[dialRate])
		}
	}
	return r, nil
}

func (c *chain) programs() []*proc.Process {
	return append(append([]*proc.Process{}, c.near...), c.far...)
}

func (c *chain) measure(ctx context.Context, d durations) (r round, err error) {
	l := load{dial: c.dial, durations: d}
	before, err := c.cpu()
	if err != nil {
		return r, err
	}
	var moved int64
	for _, f := range []struct {
		figure, streams int
		run             func(context.Context, int) (float64, int64, error)
	}{{down1, 1, l.down}, {up1, 1, l.up}, {down8, manyStreams, l.down}, {up8, manyStreams, l.up}} {
		rate, bytes, err := f.run(ctx, f.streams)
		if err != nil {
			return r, fmt.Errorf("%s: %w", figureOf[f.figure].name, err)
		}
		r.Values[f.figure] = rate
		moved += bytes
	}
	if r.CPUPerGB, err = c.cpuSince(before, float64(moved)/1e9); err != nil {
		return r, err
	}
	pings, err := l.pingPong(ctx)
	if err != nil {
		return r, fmt.Errorf("round trips: %w", err)
	}
	r.Values[pingP50], r.Values[pingP99] = quantile(pings, 0.5).Seconds(), quantile(pings, 0.99).Seconds()
	if before, err = c.cpu(); err != nil {
		return r, err
	}
	rate, dials, err := l.dialMany(ctx)
	if err != nil {
		return r, fmt.Errorf("dials: %w", err)
	}
	r.Values[dialRate], r.Values[dialP50], r.Values[dialP99] = rate, quantile(dials, 0.5).Seconds(), quantile(dials, 0.99).Seconds()
	if r.CPUDial, err = c.cpuSince(before, float64(len(dials))); err != nil {
		return r, err
	}
	r.RSS, err = ofEach(c, proc.RSS)
	return r, err
}

// cpu is what each program has used so far.
func (c *chain) cpu() ([]time.Duration, error) { return ofEach(c, proc.CPUTime) }

// ofEach asks for each program, and for load and target together.
func ofEach[T int64 | time.Duration](c *chain, of func(pid int) (T, error)) (out []T, err error) {
	for _, p := range c.programs() {
		v, err := of(p.PID())
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	load, err := of(os.Getpid())
	if err != nil {
		return nil, err
	}
	target, err := of(c.target.PID())
	return append(out, load+target), err
}

// cpuSince is what each has used since, in seconds for each of n.
func (c *chain) cpuSince(before []time.Duration, n float64) ([]float64, error) {
	now, err := c.cpu()
	out := []float64{}
	for i := range now {
		out = append(out, (now[i]-before[i]).Seconds()/n)
	}
	return out, err
}

// machine says what this runs on.
func machine() string {
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d cores (%s), Linux %s, %s %s/%s", runtime.NumCPU(), model, strings.TrimSpace(string(kernel)), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
