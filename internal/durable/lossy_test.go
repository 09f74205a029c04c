package durable

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lossyDisk is a disk as bad as POSIX lets it be: what a file holds reaches it when that file is synced, names
// when their directory is, and until then any part of it may be there or not, in any order.
type lossyDisk struct {
	// content of each file, by a number of its own: what a program would read now, and what is safe.
	now, safe map[int]string
	synced    map[int]bool
	// names that lead to files; done are the changes that no directory's sync has made safe yet.
	names, safeNames map[string]int
	done             []change
	next             int
}

// change is one change of names: from is gone, to leads to file.
type change struct {
	from, to string
	file     int
}

func newLossyDisk() *lossyDisk {
	return &lossyDisk{now: map[int]string{}, safe: map[int]string{}, synced: map[int]bool{}, names: map[string]int{}, safeNames: map[string]int{}}
}

// do is durable's step.
func (d *lossyDisk) do(op, path, to string, data []byte) {
	switch op {
	case "create", "mkdir":
		d.next++
		d.names[path] = d.next
		d.done = append(d.done, change{to: path, file: d.next})
		d.synced[d.next] = op == "mkdir"
	case "write":
		d.now[d.names[path]] += string(data)
	case "sync":
		d.safe[d.names[path]], d.synced[d.names[path]] = d.now[d.names[path]], true
	case "rename":
		d.names[to] = d.names[path]
		delete(d.names, path)
		d.done = append(d.done, change{path, to, d.names[to]})
	case "syncdir":
		d.done = slices.DeleteFunc(d.done, func(c change) bool {
			if filepath.Dir(c.to) != filepath.Clean(path) {
				return false
			}
			c.apply(d.safeNames)
			return true
		})
	}
}

func (c change) apply(names map[string]int) {
	delete(names, c.from)
	names[c.to] = c.file
}

// after are all the contents in which a power cut may leave the file at path; "absent" if it may not be there.
func (d *lossyDisk) after(path string) map[string]bool {
	out := map[string]bool{}
	for subset := range 1 << len(d.done) {
		names := maps.Clone(d.safeNames)
		for i, c := range d.done {
			if subset>>i&1 == 1 {
				c.apply(names)
			}
		}
		file, there := names[path]
		// A file whose directory is lost is lost too.
		for dir := filepath.Dir(path); there && d.names[dir] != 0; dir = filepath.Dir(dir) {
			there = names[dir] != 0
		}
		switch {
		case !there:
			out["absent"] = true
		case d.synced[file]:
			out[d.safe[file]] = true
		default:
			whole := d.now[file]
			for _, torn := range []string{"", whole[:len(whole)/2], strings.Repeat("\x00", len(whole)), whole} {
				out[torn] = true
			}
		}
	}
	return out
}

// watched runs f with a look at the disk after each step.
func watched(t *testing.T, d *lossyDisk, f func(), look func(op string)) {
	t.Helper()
	old := step
	defer func() { step = old }()
	step = func(op, path, to string, data []byte) {
		d.do(op, path, to, data)
		look(op)
	}
	f()
}

// TestFault42PowerLossDropsWhatWasNotSynced: at whatever step the power fails, and whatever of the unsynced the
// disk has dropped, the file is the old one or the new one; once WriteFile has returned, the new one.
func TestFault42PowerLossDropsWhatWasNotSynced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	path := filepath.Join(dir, "node.key")
	d := newLossyDisk()
	watched(t, d, func() {
		if err := MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}, func(string) {})

	old, steps := "absent", 0
	for n := range 3 {
		content := fmt.Sprintf("content %d", n)
		watched(t, d, func() {
			if err := WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}, func(op string) {
			steps++
			for got := range d.after(path) {
				if got != old && got != content {
					t.Errorf("a power cut after %q leaves %q, want %q or %q", op, got, old, content)
				}
			}
		})
		if got := d.after(path); len(got) != 1 || !got[content] {
			t.Errorf("WriteFile has returned, and a power cut leaves one of %q", slices.Collect(maps.Keys(got)))
		}
		old = content
	}
	if steps < 15 {
		t.Errorf("%d steps were seen: the test proves nothing", steps)
	}
}

// TestLossyDisk: the disk of the tests is as bad as it should be.
func TestLossyDisk(t *testing.T) {
	for name, c := range map[string]struct {
		ops  []string
		want string
	}{
		"not synced, renamed":    {[]string{"create t", "write t", "rename t f"}, "torn"},
		"synced, renamed":        {[]string{"create t", "write t", "sync t", "rename t f"}, "absent or new"},
		"synced late":            {[]string{"create t", "write t", "rename t f", "syncdir ."}, "torn"},
		"synced, renamed, fixed": {[]string{"create t", "write t", "sync t", "rename t f", "syncdir ."}, "new"},
	} {
		d := newLossyDisk()
		for _, op := range c.ops {
			f := append(strings.Fields(op), "")
			d.do(f[0], f[1], f[2], []byte("new"))
		}
		got := d.after("f")
		is := "torn"
		switch {
		case len(got) == 1 && got["new"]:
			is = "new"
		case len(got) == 2 && got["new"] && got["absent"]:
			is = "absent or new"
		}
		if is != c.want {
			t.Errorf("%s: %q, want %s", name, slices.Collect(maps.Keys(got)), c.want)
		}
	}
}
