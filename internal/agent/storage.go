package agent

import (
	"context"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mooring-edge/mooring/internal/rounds"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/join"
)

const (
	storageInterval = 30 * time.Second
	// leastFree is what the state directory's files need to be written anew, with room to spare.
	leastFree = 1 << 20
)

// writeFile writes a file of the state directory, and keeps the condition of the disk by how that went.
func (a *Agent) writeFile(path string, data []byte, perm fs.FileMode) error {
	err := a.write(path, data, perm)
	a.storageSays(err)
	return err
}

func (a *Agent) storageSays(err error) {
	if err == nil {
		a.health.Set(condStorage, health.True, "Writable", a.cfg.StateDir+" can be written")
		return
	}
	a.health.Set(condStorage, health.False, "WriteFailed", fmt.Sprintf("nothing new can be kept in %s: %v; the node goes on with what it has, "+
		"but what is renewed now is lost with the next restart", a.cfg.StateDir, err))
}

// watchStorage looks whether the state directory can be written to, until ctx ends. As long as all is well
// it only asks the file system, which wears no flash.
func (a *Agent) watchStorage(ctx context.Context) error {
	for ctx.Err() == nil {
		if a.health.Get(condStorage).Status != health.True || !a.hasRoom() || !a.joiner.Kept() {
			if err := join.ProbeStateDir(a.cfg.StateDir, a.writeFile); err == nil {
				a.flush()
			} else {
				a.storageSays(err)
			}
		}
		pause(ctx, rounds.Until(a.storageEvery))
	}
	return nil
}

// flush puts on disk what was in memory only, and tells the broker, which may wait for that.
func (a *Agent) flush() {
	if !a.joiner.Flush() {
		return
	}
	a.logger.Info("the disk takes files again: the node's identity is kept")
	if s, id := a.session.Load(), a.identity.Load(); s != nil && id != nil {
		a.sendStatus(s, id)
	}
}

// hasRoom tells whether the file system says that it can be written to. One that does not say is asked by
// writing.
func (a *Agent) hasRoom() bool {
	var st unix.Statfs_t
	if err := unix.Statfs(a.cfg.StateDir, &st); err != nil {
		return false
	}
	return st.Flags&unix.ST_RDONLY == 0 && st.Bavail*uint64(st.Bsize) >= leastFree
}
