package edgeos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/e2e/harness"
	"github.com/mooring-edge/mooring/e2e/internal/begin"
	"github.com/mooring-edge/mooring/e2e/internal/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestEdgeOS is all that the image promises. The first box has the machine for itself, so that its figures mean something; then
// there are two lanes, since a machine under emulation waits as much as it works. `-run 'TestEdgeOS/^(Start|Then)$/Boxes/PowerCuts'`
// picks one case.
func TestEdgeOS(t *testing.T) {
	s := newSuite(t)
	s.vital(t, "Start", s.begin)
	s.vital(t, "FirstBootToReady", s.firstBoot)
	s.run(t, "NoSecretLeft", s.noSecretLeft)
	s.run(t, "ImmutableRoot", s.immutable)
	t.Run("Then", func(t *testing.T) {
		t.Run("Updates", func(t *testing.T) {
			t.Parallel()
			s.vital(t, "UpdateWithTunnelUp", s.updated)
			s.run(t, "AgentThatCannotConnectFallsBack", s.fallsBack)
			s.run(t, "FlippedByteRefusedBySignature", s.refused)
			s.run(t, "FlippedByteOnDiskFallsBackByVerity", s.verity)
		})
		t.Run("Boxes", func(t *testing.T) {
			t.Parallel()
			s.vital(t, "TwoBoxesOfOneImage", s.twoBoxes)
			s.vital(t, "RebootedWithNoToken", s.rebooted)
			s.run(t, "Fault20ClonedDisk", s.clonedDisk)
			s.run(t, "PowerCuts", s.powerCuts)
		})
	})
}

// The sites, and the boxes that are plugged in there. All boxes have the same user-data: their serial numbers tell them
// apart.
const (
	serialA, serialB = "A-0001", "B-0002"
	nodePattern      = "shop-{serial}"
)

type suite struct {
	ctx      context.Context
	env      *harness.Env
	platform *harness.Platform
	acme     *harness.Tenant
	sites    map[string]*harness.Site
	images   *images
	top      *testing.T // machines end with it

	a, b    *box
	first   facts  // a's
	bundle  string // the user-data of both
	toReady time.Duration

	start time.Time
	mu    sync.Mutex // guards the following
	rows  []*row
}

// row is a line of the table at the end.
type row struct {
	name, result string
	begin, end   time.Time
	notes        []string
}

func missing() error {
	if err := harness.Missing(); err != nil {
		return err
	}
	if err := vm.Missing(); err != nil {
		return err
	}
	return missingTools()
}

func newSuite(t *testing.T) *suite {
	s := &suite{top: t, start: time.Now(), sites: map[string]*harness.Site{}}
	s.ctx, s.env = begin.Suite(t, missing(), s.logf, s.printTable)
	return s
}

// run runs a case and keeps its line of the table.
func (s *suite) run(t *testing.T, name string, f func(*testing.T, *row)) bool {
	return t.Run(name, func(t *testing.T) {
		r := &row{name: name, begin: time.Now(), result: "FAILED"}
		s.mu.Lock()
		s.rows = append(s.rows, r)
		s.mu.Unlock()
		s.logf("=== %s", name)
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			r.end = time.Now()
			if !t.Failed() {
				r.result = "ok"
			}
		}()
		f(t, r)
	})
}

// vital is run for a case that the rest builds on.
func (s *suite) vital(t *testing.T, name string, f func(*testing.T, *row)) {
	t.Helper()
	if !s.run(t, name, f) {
		t.Fatalf("%s failed: the rest would have no meaning", name)
	}
	if s.ctx.Err() != nil {
		t.Fatal(context.Cause(s.ctx))
	}
}

// note adds a measured figure to a line of the table.
func (s *suite) note(r *row, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.mu.Lock()
	r.notes = append(r.notes, text)
	s.mu.Unlock()
	s.logf("    %s: %s", r.name, text)
}

func (s *suite) logf(format string, args ...any) {
	fmt.Printf("[edge-os %6.1f] %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}

func (s *suite) printTable() {
	fmt.Printf("\nedge-os in QEMU, under emulation\n")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, r := range s.rows {
		from := r.begin.Sub(s.start).Seconds()
		fmt.Fprintf(w, "  %s\t%s\t%6.0f to %4.0f s\t%s\n", r.name, r.result, from, r.end.Sub(s.start).Seconds(), strings.Join(r.notes, "; "))
	}
	_ = w.Flush()
	fmt.Printf("  in all %s\n\n", time.Since(s.start).Round(time.Second))
}

// begin raises the platform and, beside that, builds the image.
func (s *suite) begin(t *testing.T, r *row) {
	s.images = newImages(s)
	built := make(chan error, 1)
	go func() { built <- s.images.build(s.ctx, "1") }()
	err := s.raise()
	must(t, errors.Join(err, <-built)) // the build has ended, whatever became of the platform
	s.note(r, "%s", s.images.sizes("1"))
}

// raise starts the control plane and makes the sites, without a box. Nodes get the broker's address and no name: they have no
// resolver that knows it.
func (s *suite) raise() (err error) {
	if s.platform, err = s.env.StartPlatform(s.ctx); err != nil {
		return err
	}
	s.platform.PublicEndpoint = net.JoinHostPort(harness.BrokerAddress, harness.BrokerPort)
	if err := s.platform.StartBroker(s.ctx); err != nil {
		return err
	}
	if s.acme, err = s.platform.NewTenant(s.ctx, "acme"); err != nil {
		return err
	}
	// The configuration says cgroupfs, which is wrong for a box: what the image lays over it has to hold.
	for _, step := range []func(context.Context) error{s.acme.Admit, s.acme.Start, s.acme.SetKubeletConfig} {
		if err := step(s.ctx); err != nil {
			return err
		}
	}
	for _, name := range append([]string{siteA, siteB, siteClone}, cutSites...) {
		if s.sites[name], err = s.platform.AddSite(name); err != nil {
			return err
		}
	}
	return nil
}

const siteA, siteB, siteClone = "shop-a", "shop-b", "shop-clone"

// cutSites are those of the boxes whose power is cut: one box at a time at each.
var cutSites = []string{"cut-1", "cut-2"}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
