package edgeos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/vm"
)

// updateStatus is `edge-os-update status -o json`.
type updateStatus struct {
	Version string
	Entries []struct {
		Version, State string
		Running        bool
	}
}

// state is a version's: good, untried, trial, bad; empty if the box does not have it.
func (u updateStatus) state(version string) string {
	for _, e := range u.Entries {
		if e.Version == version {
			return e.State
		}
	}
	return ""
}

func (b *box) updates(ctx context.Context) (u updateStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := b.inside(ctx, "edge-os-update", "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &u)
	}
	return u, err
}

// runs fails unless the box runs that version, and the versions given have those states.
func (b *box) runs(t *testing.T, version string, states map[string]string) {
	t.Helper()
	u, err := b.updates(b.s.ctx)
	must(t, err)
	if u.Version != version {
		t.Errorf("%s runs version %s, want %s", b.node, u.Version, version)
	}
	for v, want := range states {
		if got := u.state(v); got != want {
			t.Errorf("version %s of %s is %q, want %q: %+v", v, b.node, got, want, u)
		}
	}
}

// updateLimit bounds the writing of a slot: a root of some 300 MB, checked, under emulation.
const updateLimit = 6 * time.Minute

// write has the box write a version beside the one that runs.
func (b *box) write(t *testing.T, r *row, version string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.s.ctx, updateLimit)
	defer cancel()
	start := time.Now()
	out, err := b.inside(ctx, "edge-os-update", url(version))
	must(t, err)
	b.s.note(r, "version %s written in %.0f s", version, time.Since(start).Seconds())
	if got := b.mustUpdates(t).state(version); got != "untried" {
		t.Fatalf("version %s was written and is %q:\n%s", version, got, out)
	}
}

func (b *box) mustUpdates(t *testing.T) updateStatus {
	t.Helper()
	u, err := b.updates(b.s.ctx)
	must(t, err)
	return u
}

// restart has the box start again. The answer may not come through any more.
func (b *box) restart() {
	ctx, cancel := context.WithTimeout(b.s.ctx, time.Minute)
	defer cancel()
	_, _ = b.inside(ctx, "systemctl", "reboot")
}

// kept are files that the owner has changed, and what is in them.
var kept = map[string]string{"/etc/owner.conf": "of the owner", "/var/lib/owner/data": "data of the owner", "/etc/mooring/owner.yaml": "a: 1"}

func (b *box) keep(t *testing.T) {
	t.Helper()
	for path, content := range kept {
		b.ask(t, "sh", "-c", fmt.Sprintf("mkdir -p $(dirname %[1]s) && echo '%[2]s' > %[1]s && sync -f %[1]s", path, content))
	}
}

func (b *box) stillHas(t *testing.T) {
	t.Helper()
	for path, content := range kept {
		if got := b.ask(t, "cat", path); got != content {
			t.Errorf("%s of %s holds %q, want %q", path, b.node, got, content)
		}
	}
}

// updated: version 2 is written while the tunnel is up, booted, and marked good once the tunnel is up again; what was changed in
// /etc and /var is there.
func (s *suite) updated(t *testing.T, r *row) {
	stop, err := s.images.serve(s.ctx, s.a.site)
	must(t, err)
	s.top.Cleanup(stop)
	s.top.Cleanup(s.images.start(s.ctx, "2", "3", "4"))
	s.a.keep(t)
	s.a.runs(t, "1", map[string]string{"1": "good"})
	must(t, s.images.await("2"))

	mark, start := s.a.Console.Mark(), time.Now()
	ctx, cancel := context.WithTimeout(s.ctx, updateLimit)
	defer cancel()
	out, err := s.a.inside(ctx, "edge-os-update", "--reboot", url("2"))
	s.logf("    edge-os-update says (%v): %s", err, strings.TrimSpace(out)) // the boot may have cut it short
	line, _ := s.a.console(t, mark, updateLimit, welcome("2"))
	s.note(r, "booted %.0f s after the command", line.At.Sub(start).Seconds())
	s.a.back(t, line.At, bootLimit)
	s.a.await(t, "the mark of a good version", 3*time.Minute, func(ctx context.Context) error {
		u, err := s.a.updates(ctx)
		if err == nil && (u.Version != "2" || u.state("2") != "good") {
			err = fmt.Errorf("its status is %+v", u)
		}
		return err
	})
	s.note(r, "good %.0f s after the command", time.Since(start).Seconds())
	s.a.runs(t, "2", map[string]string{"1": "good", "2": "good"})
	s.a.stillHas(t)
}

// tries is how often a version is tried that is not good: see hasty.
const tries = 1

// fallsBack: the agent of version 3 never connects. The box tries it as often as it may, and goes back to version 2, which is
// Ready; nobody has touched it.
func (s *suite) fallsBack(t *testing.T, r *row) {
	must(t, s.images.await("3"))
	s.a.write(t, r, "3")
	mark, start := s.a.Console.Mark(), time.Now()
	s.a.restart()
	for n := range tries {
		_, mark = s.a.console(t, mark, bootLimit, welcome("[23]"))
		if last := s.a.Console.From(mark - 1)[0].Text; !strings.Contains(last, " 3 ") {
			t.Fatalf("it is back after %d tries, want %d: %s", n, tries, last)
		}
	}
	line, _ := s.a.console(t, mark, bootLimit, welcome("[23]"))
	if !strings.Contains(line.Text, " 2 ") {
		t.Fatalf("it goes on after %d tries: %s", tries, line.Text)
	}
	s.note(r, "back in version 2 %.0f s after the restart", line.At.Sub(start).Seconds())
	s.a.back(t, line.At, bootLimit)
	s.a.runs(t, "2", map[string]string{"2": "good", "3": "bad"})
	if log := s.a.ask(t, "journalctl", "-q", "-b", "-1", "-o", "cat", "-u", "edge-agent.service", "--no-pager"); !strings.Contains(log, "127.0.0.1:9") {
		t.Errorf("version 3 was left for another reason than an agent that does not connect; its log:\n%s", log)
	}
}

// refused: a root that is not what was signed is not booted: neither one that its checksum does not fit, nor one whose
// checksum was made to fit.
func (s *suite) refused(t *testing.T, r *row) {
	must(t, s.images.await("4"))
	for _, as := range []string{"4-flipped", "4-resummed"} {
		must(t, s.images.flipped("4", as, as == "4-resummed"))
		ctx, cancel := context.WithTimeout(s.ctx, updateLimit)
		out, err := s.a.inside(ctx, "edge-os-update", url(as))
		cancel()
		if err == nil {
			t.Errorf("%s was taken:\n%s", as, out)
			continue
		}
		s.logf("    %s: %s%v", as, out, err)
		if !strings.Contains(err.Error(), "exit code 1") {
			t.Errorf("%s: want exit code 1, got %v", as, err)
		}
		must(t, os.RemoveAll(s.images.of(as)))
	}
	s.a.runs(t, "2", map[string]string{"2": "good", "4": ""})
	s.note(r, "unsigned content and an unsigned list of checksums")
}

// verity: version 4 is written as it was signed, and then a bit of its root changes on the disk. It lies in the first 1024 bytes,
// which the file system itself never looks at: nothing but verity can notice. The box goes back to version 2.
func (s *suite) verity(t *testing.T, r *row) {
	s.a.write(t, r, "4")
	root, err := s.images.root("4")
	must(t, err)
	offset, err := findRoot(s.a.Disk(), root)
	must(t, err)
	must(t, flip(s.a.Disk(), offset+100))
	mark, start := s.a.Console.Mark(), time.Now()
	s.a.restart()
	_, mark = s.a.console(t, mark, bootLimit, `verity.*corrupt`)
	line, _ := s.a.console(t, mark, bootLimit, welcome("[24]"))
	if !strings.Contains(line.Text, " 2 ") {
		t.Fatalf("a root with a flipped bit was booted: %s", line.Text)
	}
	s.note(r, "back in version 2 %.0f s after the restart", line.At.Sub(start).Seconds())
	s.a.back(t, line.At, bootLimit)
	s.a.runs(t, "2", map[string]string{"2": "good", "4": "bad"})
	s.a.stillHas(t)
}

// findRoot returns where on the disk the partition begins that holds the root file.
func findRoot(disk, root string) (int64, error) {
	want, err := head(root, 0)
	if err != nil {
		return 0, err
	}
	parts, err := vm.Partitions(disk)
	if err != nil {
		return 0, err
	}
	found := int64(0)
	for _, p := range parts {
		have, err := head(disk, p.Offset)
		if err != nil {
			return 0, err
		}
		if bytes.Equal(have, want) {
			if found != 0 {
				return 0, errors.New("two partitions hold it")
			}
			found = p.Offset
		}
	}
	if found == 0 {
		return 0, fmt.Errorf("no partition holds it: %+v", parts)
	}
	return found, nil
}

// head reads the first MiB from an offset on.
func head(path string, offset int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, 1<<20)
	if n, err := f.ReadAt(data, offset); err != nil && (err != io.EOF || n == 0) {
		return nil, err
	}
	return data, nil
}

// flip changes a bit of a file.
func flip(path string, offset int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		return errors.Join(err, f.Close())
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, offset)
	return errors.Join(err, f.Close())
}
