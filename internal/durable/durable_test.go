package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestWriteThenRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	for _, content := range []string{"first", "second, longer", "3"} {
		if err := WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFile(path, 64)
		if err != nil || string(got) != content {
			t.Fatalf("ReadFile = %q, %v, want %q", got, err, content)
		}
	}
}

func TestWriteSetsPermissions(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "f")
	for _, perm := range []fs.FileMode{0o600, 0o644, 0o640} {
		if err := WriteFile(path, []byte("x"), perm); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != perm {
			t.Errorf("mode = %v, %v, want %v", info.Mode(), err, perm)
		}
	}
}

func TestWriteRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := WriteFile("f", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := names(t, "."); got != "f" {
		t.Errorf("directory holds %q, want only f", got)
	}
}

func TestWriteReplacesSymlink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(target, []byte("old"), 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(link, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(target); string(got) != "old" {
		t.Errorf("the link's target holds %q, want it untouched", got)
	}
}

func TestWriteRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path string
		want error
	}{
		"no directory":   {filepath.Join(dir, "absent", "f"), fs.ErrNotExist},
		"file as parent": {filepath.Join(file, "f"), syscall.ENOTDIR},
		"directory":      {dir, nil},
		"no name":        {dir + "/", nil},
		"dot":            {dir + "/..", nil},
	} {
		err := WriteFile(tc.path, []byte("x"), 0o600)
		if err == nil || (tc.want != nil && !errors.Is(err, tc.want)) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		} else if !strings.Contains(err.Error(), tc.path) {
			t.Errorf("%s: %v does not name the path", name, err)
		}
	}
	if got := names(t, dir); got != "file" {
		t.Errorf("refused writes left %q behind", got)
	}
	if got := names(t, filepath.Dir(dir)); strings.Contains(got, tmpMark) {
		t.Errorf("refused writes left %q behind", got)
	}
}

func TestPermissionErrorSaysWhatToDo(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Log("root may write everywhere: testing the wording alone")
		err := explain(&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES})
		wantAdvice(t, err)
		return
	}
	dir := filepath.Join(t.TempDir(), "ro")
	if err := os.Mkdir(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "f")
	err := WriteFile(path, []byte("x"), 0o600)
	wantAdvice(t, err)
	if !strings.Contains(err.Error(), path) {
		t.Errorf("%v does not name %s", err, path)
	}
}

func wantAdvice(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "run as root") {
		t.Errorf("%v: want fs.ErrPermission and advice", err)
	}
}

func TestExplain(t *testing.T) {
	for err, want := range map[error]string{
		syscall.EROFS:  "remount",
		syscall.ENOSPC: "free some space",
		syscall.EDQUOT: "free some space",
		syscall.EIO:    "input/output error",
	} {
		got := explain(&fs.PathError{Op: "write", Path: "/x/y", Err: err})
		if !errors.Is(got, err) || !strings.Contains(got.Error(), want) {
			t.Errorf("explain(%v) = %v, want it to say %q", err, got, want)
		}
	}
}

func TestReadFileErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path string
		want error
	}{
		"absent":      {filepath.Join(dir, "absent"), fs.ErrNotExist},
		"empty":       {write("empty", ""), ErrTorn},
		"zeroes":      {write("zeroes", strings.Repeat("\x00", 8)), ErrTorn},
		"at limit":    {write("exact", "12345678"), nil},
		"over limit":  {write("large", "123456789"), ErrTooLarge},
		"directory":   {dir, ErrNotRegular},
		"pipe":        {fifo, ErrNotRegular},
		"zero inside": {write("mixed", "a\x00b"), nil},
	} {
		_, err := ReadFile(tc.path, 8)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if err != nil && strings.Count(err.Error(), tc.path) != 1 {
			t.Errorf("%s: %v: want the path named once", name, err)
		}
	}
}

func TestLeftoversAreRemoved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	left, other := filepath.Join(dir, ".f"+tmpMark+"123"), filepath.Join(dir, ".g"+tmpMark+"123")
	for _, p := range []string{left, other} {
		if err := os.WriteFile(p, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// While another writer is at work the file may be its own, and stays.
	writer, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	share(writer)
	if err := WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); err != nil {
		t.Errorf("a live writer's file was removed: %v", err)
	}

	writer.Close()
	if err := WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, dir), filepath.Base(other)+" f"; got != want {
		t.Errorf("directory holds %q, want %q", got, want)
	}
}

func TestConcurrentWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			content := bytes.Repeat([]byte{byte('a' + i)}, 4096)
			for range 20 {
				if err := WriteFile(path, content, 0o600); err != nil {
					t.Error(err)
					return
				}
				got, err := ReadFile(path, 8192)
				if err != nil || len(got) != 4096 || bytes.Count(got, got[:1]) != 4096 {
					t.Errorf("read %d bytes, %v: not one writer's whole content", len(got), err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := names(t, filepath.Dir(path)); got != "f" {
		t.Errorf("directory holds %q, want only f", got)
	}
}

func TestMkdirAll(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "a", "b", "c")
	for range 2 {
		if err := MkdirAll(path+"/", 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || !info.IsDir() || info.Mode().Perm() != 0o700 {
		t.Errorf("stat = %v, %v", info, err)
	}
	file := filepath.Join(root, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{file, filepath.Join(file, "x")} {
		if err := MkdirAll(p, 0o700); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("MkdirAll(%s) = %v, want ENOTDIR", p, err)
		}
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func TestRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := Remove(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a file that is not there: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}
