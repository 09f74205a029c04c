// Package host makes and removes what a run needs of the Linux kernel: network namespaces, cgroups,
// processes; and finds what a run that was killed has left.
//
// Everything is named moor-<run>-…. A run holds the lock on its record for as long as it lives; a
// record that can be locked belongs to a run that is gone, and all under its name may be removed.
// It is not a container runtime: what runs in the namespaces is the harness's affair.
package host

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// recordDir holds one locked file for each run; its content is the run's directory.
const recordDir = "/run/mooring-e2e"

const recordSuffix = ".run"

// Run is the ownership of a run's name and directory.
type Run struct {
	ID   string
	Dir  string
	lock *Lock
}

// NewRun takes a fresh name and makes its directory.
func NewRun() (*Run, error) {
	if err := os.MkdirAll(recordDir, 0o755); err != nil {
		return nil, err
	}
	id := strings.ToLower(rand.Text()[:5])
	dir := filepath.Join(os.TempDir(), "mooring-e2e-"+id)
	record := recordPath(id)
	lock, err := TryLock(record)
	if err != nil {
		return nil, fmt.Errorf("take %s: %w", record, err)
	}
	if err := os.WriteFile(record, []byte(dir), 0o644); err != nil {
		lock.Release()
		return nil, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		lock.Release()
		return nil, err
	}
	return &Run{ID: id, Dir: dir, lock: lock}, nil
}

// Name is the run's name for a thing in the kernel.
func (r *Run) Name(what string) string { return Prefix + r.ID + "-" + what }

// Close removes all that the run made. keep leaves its directory.
func (r *Run) Close(keep bool) error {
	dir := r.Dir
	if keep {
		dir = ""
	}
	err := remove(r.ID, dir)
	if err == nil {
		_ = os.Remove(recordPath(r.ID))
	}
	r.lock.Release()
	return err
}

// Sweep removes what runs that are gone have left, and says what it removed.
func Sweep() (removed []string, err error) {
	var errs []error
	for _, id := range knownRuns() {
		stale, err := reapStale(id, false)
		switch {
		case err != nil:
			errs = append(errs, err)
		case stale:
			removed = append(removed, Prefix+id)
		}
	}
	return removed, errors.Join(errs...)
}

// Reap is Sweep for the one run, if its owner is gone.
func Reap(id string, keep bool) error {
	_, err := reapStale(id, keep)
	return err
}

// knownRuns lists all runs of which there is a trace, alive or not.
func knownRuns() []string {
	ids := map[string]bool{}
	records, _ := filepath.Glob(filepath.Join(recordDir, "*"+recordSuffix))
	for _, r := range records {
		ids[strings.TrimSuffix(filepath.Base(r), recordSuffix)] = true
	}
	for _, n := range listNetns(Prefix) {
		if id, _, ok := strings.Cut(strings.TrimPrefix(string(n), Prefix), "-"); ok {
			ids[id] = true // also without a record: /run may have been cleaned
		}
	}
	var out []string
	for id := range ids {
		out = append(out, id)
	}
	return out
}

// reapStale removes a run, unless it is alive: then it returns false.
func reapStale(id string, keep bool) (bool, error) {
	if err := os.MkdirAll(recordDir, 0o755); err != nil {
		return false, err
	}
	record := recordPath(id)
	lock, err := TryLock(record)
	if errors.Is(err, ErrLocked) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Release()
	data, _ := os.ReadFile(record)
	dir := string(data)
	if keep || !strings.HasPrefix(filepath.Base(dir), "mooring-e2e-") {
		dir = ""
	}
	if err := remove(id, dir); err != nil {
		return false, err
	}
	return true, os.Remove(record)
}

func recordPath(id string) string { return filepath.Join(recordDir, id+recordSuffix) }

// remove ends the run's processes, which all live in its network namespaces (pods die with the first
// process of their box), then removes what they held.
func remove(id, dir string) error {
	prefix := Prefix + id + "-"
	spaces := listNetns(prefix)
	errs := []error{killAll(func() []int {
		var pids []int
		for _, n := range spaces {
			pids = append(pids, n.Processes()...)
		}
		return pids
	}, 20*time.Second)}
	errs = append(errs, removeCgroups(prefix, 10*time.Second))
	for _, n := range spaces {
		errs = append(errs, n.Delete())
	}
	if dir != "" {
		errs = append(errs, os.RemoveAll(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up run %s: %w", id, err)
	}
	return nil
}
