package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.uber.org/zap"
)

// The test binary, run again with childEnv, opens the store in childDir:
// "commit" commits numbered keys until killed, "open" opens each of a list of them and says how that went.
const (
	childEnv = "STORE_TEST_CHILD"
	childDir = "STORE_TEST_DIR"
)

func child(mode string) {
	ctx := context.Background()
	if mode == "open" {
		for dir := range strings.SplitSeq(os.Getenv(childDir), ":") {
			_, err := Open(ctx, Config{Dir: dir})
			fmt.Printf("corrupt=%v locked=%v err=%v\n", errors.Is(err, ErrCorrupt), errors.Is(err, ErrLocked), err)
		}
		os.Exit(0)
	}
	fmt.Println("opening")
	s, err := Open(ctx, Config{Dir: os.Getenv(childDir)})
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	items, err := s.List(ctx, "/n/")
	if err != nil {
		panic(err)
	}
	for n := len(items); ; n++ {
		if err := s.Commit(ctx, Create(numbered(n), fmt.Append(nil, n)), Put("/last", fmt.Append(nil, n))); err != nil {
			panic(err)
		}
		fmt.Println(n) // acknowledged
	}
}

func numbered(n int) string { return fmt.Sprintf("/n/%08d", n) }

func childCommand(mode, dir string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+mode, childDir+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// commitAndKill runs a committing child, kills it after delay, counted from the
// beginning of its Open or from its first commit, and returns the last
// acknowledged number, -1 for none.
func commitAndKill(t *testing.T, dir string, delay time.Duration, fromFirst bool) (acked int) {
	t.Helper()
	cmd := childCommand("commit", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { time.AfterFunc(delay, func() { _ = cmd.Process.Kill() }) }
	acked = -1
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "opening" {
			if !fromFirst {
				kill()
			}
			continue
		}
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Errorf("the child says %q", lines.Text())
			_ = cmd.Process.Kill()
			break
		}
		if acked < 0 && fromFirst {
			kill()
		}
		acked = n
	}
	_ = cmd.Wait() // "signal: killed"
	if fromFirst && acked < 0 {
		t.Fatal("the child ended before its first commit")
	}
	return acked
}

// survived opens a killed child's store, and demands all that was acknowledged.
func survived(t *testing.T, dir string, acked int) (total int) {
	t.Helper()
	s := open(t, dir)
	items, err := s.List(t.Context(), "/n/")
	if err != nil {
		t.Fatal(err)
	}
	if total = len(items); total < acked+1 {
		t.Fatalf("%d commits, but %d were acknowledged", total, acked+1)
	}
	for n, it := range items {
		if it.Key != numbered(n) || string(it.Value) != strconv.Itoa(n) {
			t.Fatalf("item %d is %s=%s", n, it.Key, it.Value)
		}
	}
	if last, err := s.Get(t.Context(), "/last"); total > 0 && (err != nil || string(last.Value) != strconv.Itoa(total-1)) {
		t.Fatalf("/last = %s, %v, want %d: a commit was applied in part", last.Value, err, total-1)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return total
}

func TestKilledStoreKeepsAcknowledgedCommits(t *testing.T) {
	dir, total := t.TempDir(), 0
	for i := range 9 {
		// The moments of the kills are random on purpose: a third within the
		// start, the others within commits.
		acked := commitAndKill(t, dir, time.Duration(rand.IntN(60))*time.Millisecond, i%3 != 2)
		now := survived(t, dir, max(acked, total-1))
		total = now
	}
	t.Logf("%d commits survived", total)
}

func TestKilledFirstStart(t *testing.T) {
	unfinished := 0
	for range 8 {
		dir := t.TempDir()
		acked := commitAndKill(t, dir, time.Duration(rand.IntN(120))*time.Millisecond, false)
		if _, err := os.Stat(filepath.Join(dir, doneFile)); err != nil {
			unfinished++
		}
		survived(t, dir, acked)
	}
	t.Logf("%d of 8 first starts were killed before their end", unfinished)
}

// The moment that TestKilledFirstStart meets by chance: there is a log, and the
// server is not yet a member in it. etcd alone would wait for ever.
func TestFirstStartKilledBeforeMembership(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	logs := filepath.Dir(walPath(t, dir))
	r, err := wal.OpenForRead(zap.NewNop(), logs, &walpb.Snapshot{})
	if err != nil {
		t.Fatal(err)
	}
	metadata, _, _, err := r.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close() // a log opened for reading has nothing to flush, and says so
	if err := errors.Join(os.RemoveAll(logs), os.Remove(filepath.Join(dir, doneFile))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dbPath(dir)); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(dbPath(dir), 0o600, nil) // without a word of any member
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	w, err := wal.Create(zap.NewNop(), logs, metadata)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	put(t, open(t, dir), "/k", "v")
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if _, err := Open(t.Context(), Config{Dir: dir}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint("pid ", os.Getpid())) {
		t.Errorf("second Open: %v, want ErrLocked and our pid", err)
	}
	if got := openInChild(t, dir); !strings.Contains(got, "locked=true") || !strings.Contains(got, dir) {
		t.Errorf("another process: %s, want locked", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := openInChild(t, dir); !strings.Contains(got, "err=<nil>") {
		t.Errorf("after Close: %s", got)
	}
}

// Something else than a broker, an etcd say, may have the files open.
func TestLockedByForeignServer(t *testing.T) {
	dir := filled(t)
	db, err := bolt.Open(dbPath(dir), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := Open(t.Context(), Config{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("Open: %v, want ErrLocked", err)
	}
}

func openInChild(t *testing.T, dir string) string {
	t.Helper()
	out, err := childCommand("open", dir).Output()
	if err != nil {
		t.Fatalf("child: %v, %s", err, out)
	}
	return string(out)
}

func dbPath(dir string) string { return filepath.Join(dir, etcdDir, "member", "snap", "db") }

func walPath(t *testing.T, dir string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, etcdDir, "member", "wal", "*.wal"))
	if err != nil || len(found) != 1 {
		t.Fatalf("log files %v, %v", found, err)
	}
	return found[0]
}

// filled returns the directory of a closed store with some items.
func filled(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 50 {
		put(t, s, numbered(i), strings.Repeat("x", 1000))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// overwrite spoils the file's bytes from offset on (negative: from the end).
func overwrite(t *testing.T, path string, offset int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("\xa5", n)), offset); err != nil {
		t.Fatal(err)
	}
}

// tearLog adds the first bytes of a record, and ends the file there.
func tearLog(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	end := (len(bytes.TrimRight(data, "\x00")) + 7) &^ 7 // records are padded to 8 bytes
	return os.WriteFile(path, append(data[:end], 200, 0, 0, 0, 0, 0, 0, 0, 8, 2, 16), 0o600)
}

// They are opened in another process: what a failed start opened stays open.
func TestDamagedFiles(t *testing.T) {
	cases := []struct {
		name    string
		spoil   func(t *testing.T, dir string) error
		corrupt bool
	}{
		{"untouched", func(*testing.T, string) error { return nil }, false},
		{"database cut short", func(_ *testing.T, dir string) error { return os.Truncate(dbPath(dir), 20000) }, true},
		{"database of one page", func(_ *testing.T, dir string) error { return os.Truncate(dbPath(dir), 4096) }, true},
		{"database of zeroes", func(_ *testing.T, dir string) error {
			return os.WriteFile(dbPath(dir), make([]byte, 32768), 0o600)
		}, true},
		{"database of garbage", func(_ *testing.T, dir string) error {
			return os.WriteFile(dbPath(dir), []byte(strings.Repeat("garbage!", 5000)), 0o600)
		}, true},
		// The log still has everything, and it is read again from the beginning.
		{"database gone", func(_ *testing.T, dir string) error { return os.Remove(dbPath(dir)) }, false},
		{"database empty", func(_ *testing.T, dir string) error { return os.Truncate(dbPath(dir), 0) }, false},
		{"log gone", func(t *testing.T, dir string) error { return os.Remove(walPath(t, dir)) }, true},
		{"log of garbage", func(t *testing.T, dir string) error {
			overwrite(t, walPath(t, dir), 0, 4096)
			return nil
		}, true},
		// What a power loss leaves of a record that nobody was told of.
		{"log torn at its end", func(t *testing.T, dir string) error { return tearLog(walPath(t, dir)) }, false},
		{"log spoilt in the middle", func(t *testing.T, dir string) error {
			overwrite(t, walPath(t, dir), 20000, 64)
			return nil
		}, true},
	}
	base := filled(t)
	var dirs []string
	for _, tc := range cases {
		dir := filepath.Join(t.TempDir(), "store")
		if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
			t.Fatal(err)
		}
		if err := tc.spoil(t, dir); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	answers := strings.Split(openInChild(t, strings.Join(dirs, ":")), "\n")
	for i, tc := range cases {
		got := answers[i]
		if tc.corrupt != strings.Contains(got, "corrupt=true") || tc.corrupt == strings.Contains(got, "err=<nil>") {
			t.Errorf("%s: %s, want corrupt=%v", tc.name, got, tc.corrupt)
		}
		if tc.corrupt && (!strings.Contains(got, dirs[i]) || !strings.Contains(got, "restore")) {
			t.Errorf("%s: %s: want the directory named, and what to do", tc.name, got)
		}
		if tc.corrupt {
			continue
		}
		s := open(t, dirs[i])
		if items, err := s.List(t.Context(), "/n/"); err != nil || len(items) != 50 {
			t.Errorf("%s: %d items, %v, want 50", tc.name, len(items), err)
		}
	}
}

func TestUnusableDirectories(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{"none": "", "a file": file, "below a file": filepath.Join(file, "x")}
	if os.Geteuid() != 0 { // root may write everywhere
		ro := filepath.Join(t.TempDir(), "ro")
		if err := os.Mkdir(ro, 0o500); err != nil {
			t.Fatal(err)
		}
		dirs["not ours to write"] = ro
		dirs["below it"] = filepath.Join(ro, "x")
	}
	for name, dir := range dirs {
		_, err := Open(t.Context(), Config{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), dir) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want an error that names the directory", name, err)
		}
		if errors.Is(err, fs.ErrPermission) && !strings.Contains(err.Error(), "uid") {
			t.Errorf("%s: %v, want it to say who may not", name, err)
		}
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if s, err := Open(ctx, Config{Dir: dir}); err == nil {
		_ = s.Close()
		t.Error("want an error")
	} else if !errors.Is(err, enough) {
		t.Errorf("%v, want the context's cause", err)
	}
	open(t, dir) // the directory is free again
}
