package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
	"github.com/mooring-edge/mooring/e2e/internal/need"
	"github.com/mooring-edge/mooring/e2e/internal/wan"
	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// TestMain lets this binary be the processes of the tests' networks.
func TestMain(m *testing.M) {
	wan.Main()
	code := m.Run()
	if run != nil {
		if err := run.Close(code != 0 && os.Getenv("MOORING_E2E_KEEP") == "1"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// run is what all that the tests make belongs to; nil until one makes something.
var run *host.Run

var makeRun = sync.OnceValues(func() (*host.Run, error) {
	_, err := host.Sweep()
	if err == nil {
		run, err = host.NewRun()
	}
	return run, err
})

// missing says what the tests need and there is not.
func missing() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: network namespaces, TUN devices, nftables")
	}
	for _, tool := range []string{"ip", "nft", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	return nil
}

// network makes a World that ends with the test.
func network(t *testing.T, s relay.Settings) *wan.World {
	t.Helper()
	need.Set(t, missing())
	r, err := makeRun()
	must(t, err)
	name := strings.ToLower(strings.TrimPrefix(t.Name(), "TestFault"))
	name = strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' || r == '_' {
			return '-'
		}
		return r
	}, name)
	w, err := wan.New(r, name, s)
	must(t, err)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// both makes settings that are the same each way.
func both(p relay.Path) (s relay.Settings) {
	s.Both(p)
	return s
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair starts a broker and an agent, and returns once their session is up.
func pair(t *testing.T, w *wan.World, b wan.BrokerConfig, a wan.AgentConfig) (brk, agent *wan.Proc) {
	t.Helper()
	brk, err := w.Broker(b)
	must(t, err)
	agent, err = w.Agent(w.Site, a)
	must(t, err)
	await(t, agent, 20*time.Second, "up")
	await(t, brk, 5*time.Second, "session")
	return brk, agent
}

// await returns the next event of a name. limit is for failures.
func await(t *testing.T, p *wan.Proc, limit time.Duration, name string) wan.Event {
	t.Helper()
	e, err := p.Await(limit, name, func(e wan.Event) bool { return e.Name == name })
	must(t, err)
	return e
}

// do has a command carried out that must not fail.
func do(t *testing.T, p *wan.Proc, limit time.Duration, format string, args ...any) wan.Event {
	t.Helper()
	command := fmt.Sprintf(format, args...)
	e, err := p.Do(limit, command)
	must(t, err)
	if e.Err != "" {
		t.Fatalf("%s: %s", command, e.Err)
	}
	return e
}

// eachTransport runs a test over both, beside each other.
func eachTransport(t *testing.T, f func(t *testing.T, tr tunnel.Transport)) {
	t.Parallel()
	for _, tr := range []tunnel.Transport{tunnel.TransportQUIC, tunnel.TransportTCP} {
		t.Run(string(tr), func(t *testing.T) {
			t.Parallel()
			f(t, tr)
		})
	}
}
