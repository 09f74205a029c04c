package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnmapsProgram: of all of the program, what it does not need now is out of memory, and it goes on.
func TestUnmapsProgram(t *testing.T) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	areas, err := cleanAreas(bytes.NewReader(smaps), exe)
	if err != nil || len(areas) == 0 {
		t.Fatalf("%v, %v", areas, err)
	}
	for _, a := range areas {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, a.start, a.end-a.start, unix.MADV_POPULATE_READ); errno != 0 {
			t.Skipf("this kernel reads no pages ahead: %v", errno)
		}
	}
	before := resident(t, exe)
	if err := unmapProgram(); err != nil {
		t.Fatal(err)
	}
	after := resident(t, exe)
	t.Logf("%d kB of the file, then %d", before, after)
	if after > before/2 {
		t.Errorf("%d kB of the file are mapped, %d before", after, before)
	}
}

// TestUnmapsNothingWritten: an area that can be written, and one that was, stay as they are; one that was only read goes.
func TestUnmapsNothingWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a file") // with a space
	size := 4 * os.Getpagesize()
	if err := os.WriteFile(path, bytes.Repeat([]byte{'f'}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	read, written, writable := mapped(t, path, size), mapped(t, path, size), mapped(t, path, size)
	written[0], writable[0] = 'w', 'w'
	if read[0] != 'f' { // which has it mapped
		t.Fatalf("the file has a %c", read[0])
	}
	for _, m := range [][]byte{read, written} {
		if err := unix.Mprotect(m, unix.PROT_READ); err != nil {
			t.Fatal(err)
		}
	}
	before := resident(t, path)
	if err := unmapFile(path); err != nil {
		t.Fatal(err)
	}
	if after := resident(t, path); after >= before {
		t.Errorf("%d kB of the file are mapped, %d before", after, before)
	}
	if written[0] != 'w' || writable[0] != 'w' || read[0] != 'f' {
		t.Errorf("have %c%c%c, want wwf", written[0], writable[0], read[0])
	}
}

// mapped is a private mapping of the file.
func mapped(t *testing.T, path string, size int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	return m
}

// resident is what of one file is mapped in this process, in kB.
func resident(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for rest := string(data); ; {
		_, after, ok := strings.Cut(rest, path+"\n")
		if !ok {
			return sum
		}
		sum += kB(t, after, "Rss:")
		rest = after
	}
}

// kB is the first value of that name.
func kB(t *testing.T, text, name string) int {
	t.Helper()
	_, after, _ := strings.Cut(text, name)
	fields := strings.Fields(after)
	if len(fields) == 0 {
		t.Fatalf("no %s", name)
	}
	n, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestCleanAreas: what is not understood is not touched.
func TestCleanAreas(t *testing.T) {
	const of = " 00000000 fe:00 7 /bin/p\nRss: 4 kB\n"
	const clean = "Anonymous: 0 kB\nSwap: 0 kB\n"
	for _, c := range []struct {
		smaps string
		want  int
	}{
		{"1000-2000 r-xp" + of + clean, 1},
		{"1000-2000 r-xp" + of + clean + "3000-4000 r--p" + of + clean, 2},
		{"1000-2000 r-xp" + of + "Anonymous: 4 kB\nSwap: 0 kB\n", 0},
		{"1000-2000 r-xp" + of + "Anonymous: 0 kB\nSwap: 4 kB\n", 0},
		{"1000-2000 r-xp" + of + "Anonymous: 0 kB\n", 0},
		{"1000-2000 r-xp" + of + "Anonymous: 0 kB\n3000-4000 r--p" + of + "Swap: 0 kB\n", 0},
		{"1000-2000 r-xp" + of, 0}, // an older kernel that does not say
		{"1000-2000 rw-p" + of + clean, 0},
		{"1000-2000 ---p" + of + clean, 0},
		{"2000-2000 r-xp" + of + clean, 0},
		{"1000-2000 r-xp 00000000 fe:00 7 /bin/other\n" + clean, 0},
		{"1000-2000 r-xp" + of + "3000-4000 rw-p 00000000 00:00 0\n" + clean, 0},
		{"\n\nAnonymous: 0 kB\nAnonymous:\n", 0},
	} {
		if got, err := cleanAreas(strings.NewReader(c.smaps), "/bin/p"); err != nil || len(got) != c.want {
			t.Errorf("%q: %v, %v; want %d", c.smaps, got, err, c.want)
		}
	}
	if got, err := cleanAreas(strings.NewReader("xyz-2000 r-xp"+of), "/bin/p"); err == nil {
		t.Errorf("an address that is none: %v", got)
	}
}
