package edgeos

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// entry is a line of the box's journal.
type entry struct {
	At      time.Duration // since the kernel's start
	ID      string        // of the message, where it is one of systemd's catalogue
	Unit    string        // that the message is about
	Message string
}

// IDs of messages in systemd's catalogue (systemd/sd-messages.h).
const (
	unitStarting = "7d4958e842da4a758f6c1cdc7b36dcc5"
	unitStarted  = "39f53479d3a045ac8e11786248231fbf"
)

// journalEnd is printed after the journal: kubectl exec may lose the tail of a long answer.
const journalEnd = "THE END"

// journal reads what systemd and the agent have said since the box's start.
func (b *box) journal(t *testing.T) []entry {
	t.Helper()
	line := "journalctl -b -q -o json --output-fields=MESSAGE,MESSAGE_ID,UNIT,_SYSTEMD_UNIT _PID=1 + _SYSTEMD_UNIT=edge-agent.service && echo " + journalEnd
	var out string
	for try := 1; !strings.HasSuffix(out, journalEnd); try++ {
		if try > 3 {
			t.Fatalf("the journal of %s never came whole", b.node)
		}
		out = b.ask(t, "sh", "-c", line)
	}
	var entries []entry
	for text := range strings.Lines(strings.TrimSuffix(out, journalEnd)) {
		e, err := parseEntry(text)
		must(t, err)
		entries = append(entries, e)
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return int(a.At - b.At) })
	return entries
}

func parseEntry(text string) (entry, error) {
	var raw struct {
		Monotonic string          `json:"__MONOTONIC_TIMESTAMP"`
		ID        string          `json:"MESSAGE_ID"`
		Unit      string          `json:"UNIT"`
		Own       string          `json:"_SYSTEMD_UNIT"`
		Message   json.RawMessage `json:"MESSAGE"`
	}
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		return entry{}, fmt.Errorf("journal line %q: %w", text, err)
	}
	us, err := strconv.ParseInt(raw.Monotonic, 10, 64)
	if err != nil {
		return entry{}, fmt.Errorf("journal line %q: %w", text, err)
	}
	e := entry{At: time.Duration(us) * time.Microsecond, ID: raw.ID, Unit: raw.Unit}
	if e.Unit == "" {
		e.Unit = raw.Own
	}
	_ = json.Unmarshal(raw.Message, &e.Message) // not text where it has bytes that are none
	return e, nil
}

// step is a moment of a boot, in time since power-on.
type step struct {
	name string
	at   time.Duration
}

// cloudStage matches the units in which cloud-init works.
var cloudStage = regexp.MustCompile(`^cloud-(init-local|init-network|init|config|final)\.service$`)

// steps are the moments of a boot in their order. kernel is when its clock began.
func steps(entries []entry, kernel time.Duration) []step {
	out := []step{{"kernel", kernel}}
	seen := map[string]bool{}
	add := func(name string, e entry) {
		if !seen[name] {
			seen[name] = true
			out = append(out, step{name, kernel + e.At})
		}
	}
	for _, e := range entries {
		switch unit := strings.TrimSuffix(e.Unit, ".service"); {
		case strings.Contains(e.Message, "running in system mode"):
			if seen["initrd"] {
				add("root", e)
			}
			add("initrd", e)
		case cloudStage.MatchString(e.Unit) && e.ID == unitStarting:
			add(unit+" starts", e)
		case cloudStage.MatchString(e.Unit) && e.ID == unitStarted:
			add(unit+" done", e)
		case unit == "containerd" && e.ID == unitStarted:
			add("containerd", e)
		case unit == "edge-agent" && e.ID == unitStarting:
			add(agentStarts, e)
		case unit == "edge-agent" && strings.Contains(e.Message, "enrolled;"):
			add("enrolled", e)
		case unit == "edge-agent" && strings.Contains(e.Message, "the kubelet has its client certificate"):
			add("kubelet's certificate", e)
		case unit == "kubelet" && e.ID == unitStarting:
			add(kubeletStarts, e)
		case unit == "kubelet" && e.ID == unitStarted && strings.HasPrefix(e.Message, "Started"): // not "... was skipped"
			add(kubeletStarts, e) // a unit that is started at once says no more
		}
	}
	return out
}

const (
	agentStarts   = "agent starts"
	kubeletStarts = "kubelet starts"
)

// find returns the moment of a name.
func find(t *testing.T, steps []step, name string) time.Duration {
	t.Helper()
	for _, s := range steps {
		if s.name == name {
			return s.at
		}
	}
	t.Fatalf("no step %q in %v", name, steps)
	return 0
}

// kernelStart is how long after power-on the kernel's clock began.
func (b *box) kernelStart(t *testing.T) time.Duration {
	t.Helper()
	before := b.since()
	uptime, _, _ := strings.Cut(b.ask(t, "cat", "/proc/uptime"), " ")
	after := b.since()
	seconds, err := strconv.ParseFloat(uptime, 64)
	must(t, err)
	return (before+after)/2 - time.Duration(seconds*float64(time.Second))
}

// printSteps prints a boot, a line each.
func (b *box) printSteps(steps []step) {
	last := time.Duration(0)
	for _, st := range steps {
		b.s.logf("    %-14s %6.1f s  +%5.1f  %s", b.node, st.at.Seconds(), (st.at - last).Seconds(), st.name)
		last = st.at
	}
}

// alone has a look at the box with nobody else asking it.
func (b *box) alone(ctx context.Context, argv ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	out, err := b.inside(ctx, argv...)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(out)
}
