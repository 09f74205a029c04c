package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/bench/internal/metrics"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/bench/internal/output"
	"github.com/mooring-edge/mooring/bench/internal/proc"
	"github.com/mooring-edge/mooring/bench/internal/shore"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// footprint is what an agent takes that has nothing to do.
type footprint struct {
	Date    time.Time    `json:"date"`
	Machine string       `json:"machine"`
	Builds  []buildSize  `json:"builds"`
	Idle    []idleFigure `json:"idle"`
}

// buildSize is a stripped binary.
type buildSize struct {
	Program string `json:"program"`
	Arch    string `json:"arch"`
	Bytes   int64  `json:"bytes"`
	Version string `json:"version"` // what it prints, run by qemu-user if it is for another processor
}

// idleFigure is of an agent that has joined and waits, over one transport.
type idleFigure struct {
	Transport  string  `json:"transport"`
	RSS        int64   `json:"rss"`
	Anonymous  int64   `json:"anonymous"` // of RSS: what is no file's
	CPU        float64 `json:"cpu"`       // of a core
	Goroutines int     `json:"goroutines"`
	FirstByte  float64 `json:"firstByteSeconds"` // from the start of an enrolled agent's process to the first byte through the tunnel
}

func newFootprint() *cobra.Command {
	var format string
	var idle time.Duration
	c := &cobra.Command{
		Use:     "footprint",
		Short:   "Measure the agent's size, and what it takes when it is idle",
		Example: `  go run ./speed footprint -o json`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if format != "text" && format != "json" {
				return fmt.Errorf("--output %q: want text or json", format)
			}
			dir, err := os.MkdirTemp("", "mooring-footprint-")
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
			f, err := measureFootprint(c.Context(), dir, idle, output.Progress(c.ErrOrStderr()))
			if err != nil {
				return err
			}
			if format == "json" {
				return output.JSON(c.OutOrStdout(), f)
			}
			return f.writeMarkdown(c.OutOrStdout())
		},
	}
	c.Flags().StringVarP(&format, "output", "o", "text", "text or json")
	c.Flags().DurationVar(&idle, "idle", 2*time.Minute, "for how long an agent is watched")
	return c
}

// architectures that are built, and what runs them elsewhere.
var architectures = []struct{ name, goarch, goarm, emulator string }{
	{"amd64", "amd64", "", "qemu-x86_64-static"},
	{"arm64", "arm64", "", "qemu-aarch64-static"},
	{"armv7", "arm", "7", "qemu-arm-static"},
}

func measureFootprint(ctx context.Context, dir string, idle time.Duration, say func(string, ...any)) (f *footprint, err error) {
	f = &footprint{Date: time.Now().UTC(), Machine: machine()}
	for _, a := range architectures {
		for _, program := range []string{"edge-agent", "broker"} {
			if program == "broker" && a.name == "armv7" {
				continue
			}
			say("building %s for %s", program, a.name)
			path := filepath.Join(dir, program+"-"+a.name)
			if err := shore.Build(ctx, path, program, "GOARCH="+a.goarch, "GOARM="+a.goarm); err != nil {
				return nil, err
			}
			info, err := os.Stat(path)
			if err != nil {
				return nil, err
			}
			version, err := versionOf(ctx, path, a.emulator)
			if err != nil {
				return nil, err
			}
			f.Builds = append(f.Builds, buildSize{program, a.name, info.Size(), version})
		}
	}
	b, err := newBed(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return nil, err
	}
	if err := build(ctx, bin); err != nil {
		return nil, err
	}
	m, err := startMooring(b, bin)
	if err != nil {
		return nil, err
	}
	for _, t := range []tunnel.Transport{tunnel.TransportTCP, tunnel.TransportQUIC} {
		say("an agent over %s, idle for %s", transportNames[t], idle)
		one, err := m.idle(t, bin, idle)
		if err != nil {
			return nil, err
		}
		f.Idle = append(f.Idle, *one)
	}
	return f, nil
}

// versionOf runs a program, by an emulator if it is for another processor.
func versionOf(ctx context.Context, path, emulator string) (string, error) {
	file, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	file.Close()
	argv := []string{path, "version"}
	if file.Machine != hostMachine {
		argv = append([]string{emulator}, argv...)
	}
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// hostMachine is this one's processor.
var hostMachine = func() elf.Machine {
	self, err := elf.Open("/proc/self/exe")
	if err != nil {
		return elf.EM_NONE
	}
	defer self.Close()
	return self.Machine
}()

// idle watches an agent that has joined, then starts it again and dials through it.
func (m *mooring) idle(t tunnel.Transport, bin string, watch time.Duration) (*idleFigure, error) {
	c, err := m.direct(t, bin)
	if err != nil {
		return nil, err
	}
	ctx := m.bed.ctx
	agent := m.agents[t]
	// What the join took is given back first.
	if err := sleep(ctx, watch/2); err != nil {
		return nil, err
	}
	before, err := proc.CPUTime(agent.PID())
	if err != nil {
		return nil, err
	}
	start := time.Now()
	var samples []int64
	for range 10 {
		if err := sleep(ctx, watch/10); err != nil {
			return nil, err
		}
		rss, err := proc.RSS(agent.PID())
		if err != nil {
			return nil, err
		}
		samples = append(samples, rss)
	}
	after, err := proc.CPUTime(agent.PID())
	if err != nil {
		return nil, err
	}
	anonymous, err := proc.StatusBytes(agent.PID(), "RssAnon")
	if err != nil {
		return nil, err
	}
	f := &idleFigure{Transport: transportNames[t], RSS: slices.Max(samples), Anonymous: anonymous, CPU: (after - before).Seconds() / time.Since(start).Seconds()}
	said, err := metrics.Read(ctx, m.health[t])
	if err != nil {
		return nil, err
	}
	f.Goroutines = int(said["go_goroutines"])
	agent.Kill()
	start = time.Now()
	if err := m.launch(t, bin); err != nil {
		return nil, err
	}
	if err := firstByte(ctx, c.dial); err != nil {
		return nil, err
	}
	f.FirstByte = time.Since(start).Seconds()
	return f, nil
}

// firstByte dials until a byte has come back.
func firstByte(ctx context.Context, dial dialFunc) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		_, err := load{dial: dial}.dialOnce(ctx)
		if err == nil {
			return nil
		}
		if serr := sleep(ctx, 10*time.Millisecond); serr != nil {
			return errors.Join(serr, err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *footprint) writeMarkdown(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s.\n\n| stripped, `CGO_ENABLED=0` | MB |\n|---|---|\n", f.Date.Format("2006-01-02"), f.Machine)
	for _, s := range f.Builds {
		fmt.Fprintf(&b, "| %s, %s | %.2f |\n", s.Program, s.Arch, float64(s.Bytes)/1e6)
	}
	b.WriteString("\n| the agent, joined and idle | RSS, MB | of it no file's, MB | CPU, % of a core | goroutines | start to first byte, s |\n|---|---|---|---|---|---|\n")
	for _, i := range f.Idle {
		fmt.Fprintf(&b, "| over %s | %.1f | %.1f | %.3f | %d | %.2f |\n", i.Transport, float64(i.RSS)/1e6, float64(i.Anonymous)/1e6, i.CPU*100, i.Goroutines, i.FirstByte)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
