package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func lines(t *testing.T, path string) (out []Event) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		var e Event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatalf("line %q: %v", s.Text(), err)
		}
		out = append(out, e)
	}
	return out
}

func TestLinesSurviveRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := Open(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.Record(Event{Event: "enrol", Outcome: OK, Actor: "key sha256:00", Tenant: "acme", Node: "edge-1", Source: "192.0.2.1:4711", Detail: map[string]string{"token": "k3v8q2m9xw", "empty": ""}})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.Record(Event{Event: "revoke", Outcome: OK, Actor: "operator uid=0"})
	old, now := lines(t, path+".1"), lines(t, path)
	if len(old) != 1 || len(now) != 1 || old[0].Event != "enrol" || now[0].Event != "revoke" {
		t.Fatalf("rotated file holds %+v, the new one %+v", old, now)
	}
	if e := old[0]; e.Tenant != "acme" || e.Node != "edge-1" || e.Source != "192.0.2.1:4711" || len(e.Detail) != 1 || time.Since(e.Time) > time.Minute {
		t.Errorf("event came out as %+v", e)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	again, err := Open(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	again.Record(Event{Event: "ca", Outcome: OK, Actor: "broker"})
	if n := len(lines(t, path)); n != 2 {
		t.Errorf("%d lines after the log was opened again, want 2", n)
	}
}

func TestStrangersCannotForgeLines(t *testing.T) {
	var out bytes.Buffer
	l := New(&out, nil, nil)
	l.Record(Event{Event: "enrol", Outcome: Refused, Actor: "x", Reason: "a\n{\"event\":\"enrol\",\"outcome\":\"ok\"}\x00\xff", Detail: map[string]string{"hostname": strings.Repeat("h", 1<<20)}})
	if n := strings.Count(out.String(), "\n"); n != 1 || out.Len() > 2000 {
		t.Errorf("%d lines, %d bytes: %.300s", n, out.Len(), out.String())
	}
	var e Event
	if err := json.Unmarshal(out.Bytes(), &e); err != nil || e.Outcome != Refused {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestConcurrentLinesStayWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := Open(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 20 {
				l.Record(Event{Event: "dial", Outcome: Refused, Actor: "broker", Reason: strings.Repeat("r", 300)})
			}
		})
	}
	wg.Wait()
	if n := len(lines(t, path)); n != 400 {
		t.Errorf("%d lines, want 400", n)
	}
}

// A stranger who is refused a million times fills no disk, and hides nothing that was let in.
func TestRefusalsAreBounded(t *testing.T) {
	var out bytes.Buffer
	l := New(&out, nil, nil)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for range 5000 {
		l.Record(Event{Time: at, Event: "enrol", Outcome: Refused, Actor: "x"})
	}
	l.Record(Event{Time: at, Event: "enrol", Outcome: OK, Actor: "x"})
	l.Record(Event{Time: at, Event: "renew", Outcome: Refused, Actor: "x"})
	l.Record(Event{Time: at.Add(time.Minute), Event: "enrol", Outcome: Refused, Actor: "x", Detail: map[string]string{"token": "k3v8q2m9xw"}})
	l.Record(Event{Time: at, Event: "enrol", Outcome: Refused, Actor: "x", Bounded: true})
	if n := strings.Count(out.String(), "\n"); n != refusalBurst+4 {
		t.Errorf("%d lines, want %d", n, refusalBurst+4)
	}
	var waiting bytes.Buffer // whoever holds a shared token makes as many keys as he likes
	w := New(&waiting, nil, nil)
	for range refusalBurst {
		w.Record(Event{Time: at, Event: "enrol", Outcome: Refused, Actor: "x"})
	}
	for range 5000 {
		w.Record(Event{Time: at, Event: "enrol", Outcome: Pending, Actor: "x"})
	}
	if n := strings.Count(waiting.String(), "\n"); n != 2*refusalBurst {
		t.Errorf("%d lines, want %d refusals and as many that wait", n, 2*refusalBurst)
	}
	all := strings.Split(strings.TrimSpace(out.String()), "\n")
	if last := all[len(all)-2]; !strings.Contains(last, `"skipped":"4000"`) || !strings.Contains(last, "k3v8q2m9xw") {
		t.Errorf("the last line does not count what was left out: %s", last)
	}
	if n := testutil.ToFloat64(l.events.WithLabelValues("enrol", Refused)); n != 5002 {
		t.Errorf("the metric counts %v refusals, want 5002", n)
	}
}

type fullDisk struct{ full bool }

func (f *fullDisk) Write(p []byte) (int, error) {
	if f.full {
		return 0, errors.New("no space left on device")
	}
	return len(p), nil
}

func TestFullDiskHidesNothing(t *testing.T) {
	var said bytes.Buffer
	disk := &fullDisk{full: true}
	l := New(disk, slog.New(slog.NewTextHandler(&said, nil)), nil)
	l.Record(Event{Event: "revoke", Outcome: OK, Actor: "operator uid=0", Node: "edge-1"})
	l.Record(Event{Event: "revoke", Outcome: OK, Actor: "operator uid=0", Node: "edge-2"})
	for _, want := range []string{"no space left", "edge-1", "edge-2"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("the program's log lacks %q:\n%s", want, said.String())
		}
	}
	if n := strings.Count(said.String(), "level=ERROR"); n != 1 {
		t.Errorf("the failure is said %d times, want once", n)
	}
	if n := testutil.ToFloat64(l.lost); n != 2 {
		t.Errorf("lost is %v, want 2", n)
	}
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	if _, err := Open(t.TempDir(), nil, nil); err == nil {
		t.Error("a directory was taken for an audit log")
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none", "audit.log"), nil, nil); err == nil || !strings.Contains(err.Error(), "audit.path") {
		t.Errorf("missing directory: %v", err)
	}
}

func TestNilLogDrops(t *testing.T) {
	var l *Log
	l.Record(Event{Event: "enrol"})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
