package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
)

// TestConsole: lines come without the terminal's language, in pieces where they don't end, and Wait sees each once.
func TestConsole(t *testing.T) {
	c := newConsole()
	c.read(strings.NewReader("\x1b[!p\x1b]104\a\x1b[2J\x1b[01;01Hone\r\n\r\n[\x1b[0;32m  OK  \x1b[0m] two\r\n" +
		"\r\r\x1b[K[   \x1b[0;31m*\x1b[0;1;31m*\x1b[0m\x1b[0;31m*\x1b[0m] Job dev/start running (13s / 1min 30s)\r\r\nthree " + strings.Repeat("x", 2*maxLine) + "\nlast"))
	var got []string
	for _, l := range c.From(0) {
		got = append(got, l.Text[:min(len(l.Text), 10)])
	}
	if want := "one,[  OK  ] t,three xxxx,xxxxxxxxxx,xxxxxx,last"; strings.Join(got, ",") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ","), want)
	}
	line, mark, err := c.Wait(t.Context(), 0, regexp.MustCompile(`two$`))
	if err != nil || line.Text != "[  OK  ] two" || mark != 2 {
		t.Errorf("got %q, %d, %v", line.Text, mark, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.Wait(ctx, mark, regexp.MustCompile(`two`)); err == nil || !strings.Contains(err.Error(), `"last"`) {
		t.Errorf("want an error that names the last line, got %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		c := newConsole()
		found := make(chan error, 1)
		go func() {
			_, _, err := c.Wait(t.Context(), 0, regexp.MustCompile(`^later$`))
			found <- err
		}()
		synctest.Wait() // it has seen that there is nothing
		c.add("sooner\n")
		synctest.Wait()
		c.add("later\n")
		must(t, <-found)
	})
}

// TestDisk: a disk is as large as asked, takes no more space than what is in it, and is never smaller than its image.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	must(t, os.WriteFile(image, bytes.Repeat([]byte("x"), 1<<16), 0o600))
	must(t, os.Truncate(image, 1<<24))
	must(t, newDisk(image, disk, 1<<30))
	st, err := os.Stat(disk)
	must(t, err)
	if st.Size() != 1<<30 || st.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 {
		t.Errorf("a disk of %d bytes takes %d", st.Size(), st.Sys().(*syscall.Stat_t).Blocks*512)
	}
	if err := newDisk(image, disk, 1<<20); err == nil {
		t.Error("an image went on a disk that is too small for it")
	}
}

// gpt makes a disk with a partition table: entries are unused, root, data.
func gpt() []byte {
	disk := make([]byte, 64*sector)
	header := disk[sector:]
	copy(header, "EFI PART")
	binary.LittleEndian.PutUint64(header[72:], 2)
	binary.LittleEndian.PutUint32(header[80:], 4)
	binary.LittleEndian.PutUint32(header[84:], 128)
	for i, name := range []string{"", "root-a", "var"} {
		if name == "" {
			continue
		}
		e := disk[2*sector+128*i:]
		copy(e, "a type's GUID...")
		for n := range 16 {
			e[16+n] = byte(16*i + n)
		}
		binary.LittleEndian.PutUint64(e[32:], uint64(10*i))
		binary.LittleEndian.PutUint64(e[40:], uint64(10*i+9))
		for n, r := range name {
			binary.LittleEndian.PutUint16(e[56+2*n:], uint16(r))
		}
	}
	return disk
}

func TestPartitions(t *testing.T) {
	disk := gpt()
	got, err := readGPT(bytes.NewReader(disk))
	must(t, err)
	want := []Partition{
		{"13121110-1514-1716-1819-1a1b1c1d1e1f", "root-a", 10 * sector, 10 * sector},
		{"23222120-2524-2726-2829-2a2b2c2d2e2f", "var", 20 * sector, 10 * sector},
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for size := range 2*sector + 4*128 {
		if _, err := readGPT(bytes.NewReader(disk[:size])); err == nil {
			t.Fatalf("a disk of %d bytes has a table", size)
		}
	}
	binary.LittleEndian.PutUint32(disk[sector+80:], 1<<31)
	if _, err := readGPT(bytes.NewReader(disk)); err == nil {
		t.Error("a table of 2^31 entries was taken")
	}
	if _, err := readGPT(bytes.NewReader(make([]byte, len(disk)))); err == nil {
		t.Error("zeros were taken for a table")
	}
}
