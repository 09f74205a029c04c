package tools

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// program is one that is built from a module of its own into the cache.
type program struct {
	name   string // for a person
	module string // directory
	pkg    string
	flags  string // of the linker
	cold   string // what it takes with cold caches, for a person
}

// once builds p at path, unless it is there. Several may want it at one time: one builds, the others wait.
func (p program) once(ctx context.Context, path string, logf Logf) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	lock, err := host.TryLock(path + ".lock")
	if errors.Is(err, host.ErrLocked) {
		logf("another build of %s is running; waiting for it", p.name)
		lock, err = host.WaitLock(path + ".lock")
	}
	if err != nil {
		return err
	}
	defer lock.Release()
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	logf("building %s into %s; once only, with cold caches %s on two cores", p.name, filepath.Dir(path), p.cold)
	start := time.Now()
	if err := build(ctx, p.module, p.pkg, path, p.flags); err != nil {
		return err
	}
	logf("%s built in %s", p.name, time.Since(start).Round(time.Second))
	return nil
}
