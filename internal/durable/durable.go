// Package durable writes files that survive a crash, and reads them with
// distrust.
//
// WriteFile leaves at its path either what was there before or all of the new
// content, whatever instant the process is killed or the power fails at. It is
// for small files of state (keys, certificates, configuration): contents are
// held in memory. It keeps no locks over time and starts no goroutines.
package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Errors of ReadFile, for errors.Is. An absent file is fs.ErrNotExist.
var (
	// ErrTorn says that the file exists but holds nothing: no bytes, or only
	// zero bytes, which is what file systems leave when power is lost between
	// the creation of a file and the writing of its content.
	ErrTorn = errors.New("file is empty or torn")
	// ErrTooLarge says that the file is larger than the caller's limit.
	ErrTooLarge = errors.New("file is too large")
	// ErrNotRegular says that the path is a directory, device, pipe or socket.
	ErrNotRegular = errors.New("not a regular file")
)

// step is told of each thing done to the disk, after it was done: what a test's disk makes of it shows what
// a power cut there would have left. to is the second path of a rename; data is what was written.
var step = func(op, path, to string, data []byte) {}

// tmpMark stands in the name of every file on its way: ".<base>.mooring-tmp-*".
const tmpMark = ".mooring-tmp-"

// WriteFile replaces the file at path with data, whole or not at all. When it
// returns nil, the content has reached the disk. The permissions are set to
// perm whatever the umask; the directory must exist. A symbolic link at path
// is replaced, not followed.
//
// Concurrent writers of one path are safe, in one process or in several: the
// last one wins. What a killed writer left behind is removed by the next write
// to the same path.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	if err := writeFile(path, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", path, explain(err))
	}
	return nil
}

func writeFile(path string, data []byte, perm fs.FileMode) error {
	dirName, base := filepath.Split(path)
	if dirName == "" {
		dirName = "."
	}
	if base == "" || base == "." || base == ".." {
		return errors.New("the path names no file")
	}
	dir, err := os.Open(dirName)
	if err != nil {
		return err
	}
	defer dir.Close() // also unlocks
	if alone(dir) {
		removeLeftovers(dirName, base)
		share(dir)
	}

	tmp, err := os.CreateTemp(dirName, "."+base+tmpMark+"*")
	if err != nil {
		return err
	}
	step("create", tmp.Name(), "", nil)
	if err := fill(tmp, data, perm); err != nil {
		os.Remove(tmp.Name())
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		os.Remove(tmp.Name())
		return err
	}
	step("rename", tmp.Name(), path, nil)
	// Until the directory is on disk too, a power loss may bring back the old
	// file: the caller must not act on the new one before.
	return syncDir(dir)
}

// Remove deletes a file so that it is gone after a power cut too. A file that is not there is an error (fs.ErrNotExist).
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return syncDir(dir)
}

// syncDir tolerates file systems that cannot sync a directory and say so.
func syncDir(dir *os.File) error {
	if err := dir.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	step("syncdir", dir.Name(), "", nil)
	return nil
}

// fill writes, syncs and closes the file.
func fill(f *os.File, data []byte, perm fs.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		step("write", f.Name(), "", data)
		err = f.Chmod(perm)
	}
	if err == nil {
		if err = f.Sync(); err == nil {
			step("sync", f.Name(), "", nil)
		}
	}
	return errors.Join(err, f.Close())
}

// Every writer holds a shared lock on the directory while its temporary file
// exists, and the kernel drops the lock with the process. Who can have the
// exclusive lock therefore knows that every temporary file is a dead writer's.

// alone takes the exclusive lock if no writer is at work, else the shared one;
// it reports which. File systems without locks count as "not alone": leftovers
// then stay, which is harmless.
func alone(dir *os.File) bool {
	if flock(dir, syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		return true
	}
	share(dir)
	return false
}

func share(dir *os.File) { _ = flock(dir, syscall.LOCK_SH) }

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func removeLeftovers(dir, base string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+base+tmpMark) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// MkdirAll is os.MkdirAll, with every directory that it makes synced into its
// parent: a file written durably into a directory that is lost is lost too.
func MkdirAll(path string, perm fs.FileMode) error {
	if err := mkdirAll(filepath.Clean(path), perm); err != nil {
		return fmt.Errorf("make directory %s: %w", path, explain(err))
	}
	return nil
}

func mkdirAll(path string, perm fs.FileMode) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is there and is no directory: %w", path, syscall.ENOTDIR)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := mkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	step("mkdir", path, "", nil)
	dir, err := os.Open(parent)
	if err != nil {
		return err
	}
	return errors.Join(syncDir(dir), dir.Close())
}

// ReadFile returns the content of the file at path, which must be of at least
// one and at most limit bytes. See the errors above; all name the path.
func ReadFile(path string, limit int64) ([]byte, error) {
	data, err := readFile(path, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, explain(err))
	}
	return data, nil
}

func readFile(path string, limit int64) ([]byte, error) {
	// Non-blocking, so that a pipe put in the file's place cannot hang us.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w (%s)", ErrNotRegular, info.Mode().Type())
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %d bytes or more, at most %d are allowed", ErrTooLarge, len(data), limit)
	}
	if len(bytes.Trim(data, "\x00")) == 0 {
		return nil, fmt.Errorf("%w (%d bytes, none of content): restore it, or remove it to begin anew", ErrTorn, len(data))
	}
	return data, nil
}

// explain adds what to do to the errors a person can do something about.
func explain(err error) error {
	// The path is in the message already; a *fs.PathError would say it twice.
	var path *fs.PathError
	if errors.As(err, &path) && !strings.Contains(path.Path, tmpMark) {
		err = fmt.Errorf("%s: %w", path.Op, path.Err)
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: uid %d may not; run as root, or give this user the file and its directory", err, os.Geteuid())
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: remount it writable, or configure another directory", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: free some space there", err)
	}
	return err
}
