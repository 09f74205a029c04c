package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		child(mode)
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	return openConfig(t, Config{Dir: dir})
}

func openConfig(t testing.TB, cfg Config) *Store {
	t.Helper()
	cfg.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // a start that hangs fails soon
	defer cancel()
	s, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// rev returns the key's revision, 0 if absent.
func rev(t testing.TB, s *Store, key string) int64 {
	t.Helper()
	it, err := s.Get(t.Context(), key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	return it.Rev
}

func put(t testing.TB, s *Store, key, val string) {
	t.Helper()
	if err := s.Commit(t.Context(), Put(key, []byte(val))); err != nil {
		t.Fatal(err)
	}
}

func dump(t testing.TB, s *Store, prefix string) string {
	t.Helper()
	items, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, it := range items {
		out = append(out, it.Key+"="+string(it.Value))
	}
	return strings.Join(out, " ")
}

func TestGetAndList(t *testing.T) {
	s := open(t, t.TempDir())
	if _, err := s.Get(t.Context(), "/a/x"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "/a/x") {
		t.Errorf("absent: %v, want ErrNotFound and the key", err)
	}
	if got := dump(t, s, "/a/"); got != "" {
		t.Errorf("empty prefix lists %q", got)
	}
	if _, err := s.List(t.Context(), ""); err == nil {
		t.Error("List of everything: want an error")
	}
	put(t, s, "/a/2", "two")
	put(t, s, "/a/1", "one")
	put(t, s, "/b/1", "other")
	put(t, s, "/a/1", "uno")
	if got, want := dump(t, s, "/a/"), "/a/1=uno /a/2=two"; got != want {
		t.Errorf("List = %q, want %q", got, want)
	}
	one, err := s.Get(t.Context(), "/a/1")
	if err != nil || string(one.Value) != "uno" || one.Key != "/a/1" || one.Rev <= rev(t, s, "/a/2") {
		t.Errorf("Get = %+v, %v", one, err)
	}
}

func TestCommitConditions(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "/old", "0")
	put(t, s, "/k", "1")
	k, old := rev(t, s, "/k"), rev(t, s, "/old")
	put(t, s, "/gone", "x")
	gone := rev(t, s, "/gone")
	if err := s.Commit(t.Context(), Delete("/gone", gone)); err != nil {
		t.Fatal(err)
	}
	before := dump(t, s, "/")
	// Each comes with a change that must not happen either.
	for name, tc := range map[string]struct {
		op   Op
		says string
	}{
		"create of a present key":  {Create("/k", nil), "/k exists"},
		"replace of another rev":   {Replace("/k", nil, old), "/k changed"},
		"replace of an absent key": {Replace("/gone", nil, gone), "/gone is gone"},
		"replace as create":        {Replace("/k", nil, 0), "/k exists"},
		"delete of another rev":    {Delete("/k", old), "/k changed"},
		"delete of an absent key":  {Delete("/gone", gone), "/gone is gone"},
		"check of another rev":     {Check("/k", old), "/k changed"},
		"check of absence":         {Check("/k", 0), "/k exists"},
		"check of presence":        {Check("/gone", gone), "/gone is gone"},
	} {
		err := s.Commit(t.Context(), Check("/old", old), tc.op, Put("/side", nil))
		if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want ErrConflict that says %q", name, err, tc.says)
		}
	}
	if got := dump(t, s, "/"); got != before {
		t.Errorf("refused commits changed %q to %q", before, got)
	}
	err := s.Commit(t.Context(), Check("/none", 0), Check("/old", old), Replace("/k", []byte("2"), k), Create("/new", []byte("n")),
		Put("/side", []byte("s")), Replace("/new2", []byte("n"), 0))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := dump(t, s, "/"), "/k=2 /new=n /new2=n /old=0 /side=s"; got != want {
		t.Errorf("the store holds %q, want %q", got, want)
	}
	if rev(t, s, "/k") != rev(t, s, "/new") {
		t.Error("one commit has two revisions")
	}
	if err := s.Commit(t.Context(), Check("/old", old)); err != nil {
		t.Errorf("a check alone: %v", err)
	}
}

func TestCommitRefuses(t *testing.T) {
	s := open(t, t.TempDir())
	many := make([]Op, maxTxnOps+1)
	for i := range many {
		many[i] = Put(fmt.Sprintf("/m/%d", i), nil)
	}
	for name, ops := range map[string][]Op{
		"nothing":              nil,
		"no key":               {Put("", nil)},
		"negative revision":    {Check("/k", -1)},
		"delete of revision 0": {Delete("/k", 0)},
		"one key twice":        {Put("/k", nil), Put("/k", nil)},
		"too many":             many,
		"too large":            {Put("/k", make([]byte, 2<<20))},
	} {
		if err := s.Commit(t.Context(), ops...); err == nil || errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v, want an error that is no conflict", name, err)
		}
	}
	if got := dump(t, s, "/"); got != "" {
		t.Errorf("refused commits wrote %q", got)
	}
	if err := s.Commit(t.Context(), many[:maxTxnOps]...); err != nil {
		t.Errorf("%d operations: %v", maxTxnOps, err)
	}
}

func TestConcurrentCommitsOneWins(t *testing.T) {
	s := open(t, t.TempDir())
	race := func(name string, op func(i int) Op) {
		var wins, conflicts atomic.Int32
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				switch err := s.Commit(t.Context(), op(i)); {
				case err == nil:
					wins.Add(1)
				case errors.Is(err, ErrConflict):
					conflicts.Add(1)
				default:
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 || conflicts.Load() != 15 {
			t.Errorf("%s: %d won and %d conflicted, want 1 and 15", name, wins.Load(), conflicts.Load())
		}
	}
	value := func(i int) []byte { return fmt.Append(nil, i) }
	for range 10 {
		race("create", func(i int) Op { return Create("/k", value(i)) })
		at := rev(t, s, "/k")
		race("replace", func(i int) Op { return Replace("/k", value(i), at) })
		at = rev(t, s, "/k")
		race("delete", func(int) Op { return Delete("/k", at) })
	}
}

func TestListIsOfOneMoment(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			v := fmt.Append(nil, i)
			if err := s.Commit(context.Background(), Put("/p/a", v), Put("/p/b", v), Put("/p/c", v)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 200 {
		items, err := s.List(t.Context(), "/p/")
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			if string(it.Value) != string(items[0].Value) || it.Rev != items[0].Rev || len(items) != 3 {
				t.Fatalf("torn list: %v", items)
			}
		}
	}
	stop()
	wg.Wait()
	if dump(t, s, "/p/") == "" {
		t.Error("the writer wrote nothing")
	}
}

func TestClosed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "/k", "v")
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-s.Done():
	default:
		t.Error("Done is open after Close")
	}
	_, getErr := s.Get(t.Context(), "/k")
	_, listErr := s.List(t.Context(), "/")
	for name, err := range map[string]error{
		"get": getErr, "list": listErr,
		"commit": s.Commit(t.Context(), Put("/k", nil)),
		"watch":  s.Watch(t.Context(), "/", func(Event) {}),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
	if got := dump(t, open(t, dir), "/"); got != "/k=v" {
		t.Errorf("after reopening: %q", got)
	}
}

func TestCloseWhileInUse(t *testing.T) {
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	var begun sync.WaitGroup
	for i := range 4 {
		begun.Add(1)
		wg.Go(func() {
			for n := 0; ; n++ {
				err := s.Commit(context.Background(), Put(fmt.Sprintf("/%d", i), nil))
				if n == 0 {
					begun.Done()
				}
				if err == nil {
					continue
				}
				if !errors.Is(err, ErrClosed) {
					t.Errorf("%v, want ErrClosed", err)
				}
				return
			}
		})
	}
	begun.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestCommitEndsWithItsContext(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Commit(ctx, Put("/k", nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("commit: %v", err)
	}
}

func TestNoListeners(t *testing.T) {
	before := sockets(t)
	open(t, t.TempDir())
	if after := sockets(t); after != before {
		t.Errorf("%d sockets before Open, %d after: want none of the store's", before, after)
	}
}

func sockets(t *testing.T) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc: the sockets cannot be counted")
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// A unix socket in such a directory could not exist: its path would be too long.
func TestLongDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	s := open(t, dir)
	put(t, s, "/k", "v")
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v, want mode 0700", info.Mode(), err)
	}
}

func TestFullStoreRecovers(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), quota: 8 << 20}
	s := openConfig(t, cfg)
	var err error
	for i := range 32 {
		if err = s.Commit(t.Context(), Put(fmt.Sprintf("/fill/%d", i%4), make([]byte, 1<<20))); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("filled up: %v, want ErrFull", err)
	}
	if err := s.Commit(t.Context(), Delete("/fill/0", rev(t, s, "/fill/0"))); err != nil {
		t.Errorf("delete from a full store: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openConfig(t, cfg)
	put(t, s, "/k", "v")
	if items, err := s.List(t.Context(), "/fill/"); err != nil || len(items) != 3 {
		t.Errorf("%d items, %v, want 3", len(items), err)
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		s, err := Open(b.Context(), Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommit(b *testing.B) {
	s := open(b, b.TempDir())
	for b.Loop() {
		if err := s.Commit(b.Context(), Put("/k", make([]byte, 1024))); err != nil {
			b.Fatal(err)
		}
	}
}
