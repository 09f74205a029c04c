package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/mooring-edge/mooring/internal/durable"
)

const (
	lockFile = "lock"
	// doneFile says that a first start came to its end once.
	doneFile = "initialised"
)

// prepare makes the directory, takes its lock, and looks for what the server
// would answer to by waiting for ever, by dying or by silent loss.
func prepare(dir string) (unlock func(), err error) {
	if dir == "" {
		return nil, errors.New("no directory is configured")
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err = lock(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, err
	}
	hasData, err := inspect(filepath.Join(dir, etcdDir, "member"))
	if err == nil && !hasData {
		err = dropUnfinished(dir)
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// dropUnfinished removes what a first start left that was killed before its
// end. etcd cannot go on from there: killed after it made its log and before it
// wrote itself into it as a member, it waits for a leader for ever. Nothing is
// lost: no Open has returned yet, so that nobody can have committed anything.
func dropUnfinished(dir string) error {
	_, err := os.Stat(filepath.Join(dir, doneFile))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Without a database there may still be a log to restore it from, and no
	// first start leaves such a pair.
	if _, err := os.Stat(filepath.Join(dir, etcdDir, "member", "snap", "db")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return os.RemoveAll(filepath.Join(dir, etcdDir))
}

// finish records that the first start came to its end.
func finish(dir string) error {
	path := filepath.Join(dir, doneFile)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.WriteFile(path, []byte("the store in this directory is in use; keep this file with it\n"), 0o600)
}

// lock takes the directory for this process; the kernel gives it back with the
// process's end, however that comes.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
			return nil, fmt.Errorf("%w: the directory must be writable for uid %d", err, os.Geteuid())
		}
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (pid %s): one broker serves a directory, stop the other", ErrLocked, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The pid is for the message above only; it may be stale or cut short.
	_ = f.Truncate(0)
	_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	return func() { f.Close() }, nil
}

// inspect looks at the files that a former run left in the member directory,
// and reports whether the database holds committed entries.
func inspect(member string) (hasData bool, err error) {
	db := filepath.Join(member, "snap", "db")
	info, err := os.Stat(db)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	wal, err := filepath.Glob(filepath.Join(member, "wal", "*.wal"))
	if err != nil {
		return false, err
	}
	hasData, err = inspectDB(db, info.Size())
	if err != nil {
		return false, err
	}
	if hasData && len(wal) == 0 {
		// etcd would begin a new, empty log over the old data.
		return false, fmt.Errorf("%w (restore the directory from a backup): the log in %s is missing", ErrCorrupt, filepath.Join(member, "wal"))
	}
	return hasData, nil
}

// inspectDB reports whether the database holds committed entries.
func inspectDB(path string, size int64) (hasData bool, err error) {
	defer func() {
		if p := recover(); p != nil { // bbolt's answer to pages that make no sense
			err = fmt.Errorf("%w (restore the directory from a backup): %s: %v", ErrCorrupt, path, p)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		switch {
		case errors.Is(err, bolterrors.ErrTimeout):
			return false, fmt.Errorf("%w: %s", ErrLocked, path)
		case size == 0:
			return false, nil // killed at its very first start; the server makes it anew
		}
		return false, damaged(fmt.Errorf("%s: %w", path, err))
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		if tx.Size() > size {
			// Reading beyond the file's end would be a SIGBUS, which nothing recovers from.
			return fmt.Errorf("%w (restore the directory from a backup): %s is cut short: %d bytes of %d", ErrCorrupt, path, size, tx.Size())
		}
		if keys := tx.Bucket([]byte("key")); keys != nil {
			k, _ := keys.Cursor().First()
			hasData = k != nil
		}
		return nil
	})
	return hasData, err
}
