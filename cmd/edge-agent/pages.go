package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// unmapProgram takes the pages of the program's own file out of this process's memory: most were of use for the start alone, or came along with one
// that was. Those that are needed come back one fault at a time, from the system's cache of files (docs/decisions/0029). Nothing is lost: what is
// let go can't be written, and no page of it was.
func unmapProgram() error {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	return unmapFile(path)
}

// unmapFile takes the pages of a file that is mapped out of memory, wherever they are as they are in the file.
func unmapFile(path string) error {
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer maps.Close()
	areas, err := cleanAreas(maps, path)
	if err != nil {
		return fmt.Errorf("read %s: %w", maps.Name(), err)
	}
	var errs []error
	for _, a := range areas {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, a.start, a.end-a.start, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, fmt.Errorf("madvise %x-%x: %w", a.start, a.end, errno))
		}
	}
	return errors.Join(errs...)
}

// area is of this process's addresses.
type area struct{ start, end uintptr }

// cleanAreas are those of smaps (proc_pid_smaps(5)) in which the file is mapped, can't be written, and has no page of which there is a copy: one
// that was written before the area was made read-only, such as by a dynamic linker or a debugger, would be gone with it.
func cleanAreas(smaps io.Reader, path string) ([]area, error) {
	var found []area
	var at *area // the one that lines are of; nil = not to be touched
	clean := 0   // how many of the two lines say so
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if strings.HasSuffix(fields[0], ":") {
			// Of pages of which there is a copy, those in memory and those that were swapped out.
			if (fields[0] == "Anonymous:" || fields[0] == "Swap:") && len(fields) > 1 && fields[1] == "0" {
				if clean++; clean == 2 && at != nil {
					found = append(found, *at)
				}
			}
			continue
		}
		// start-end perms offset device inode path
		at, clean = nil, 0
		if len(fields) < 6 || strings.Join(fields[5:], " ") != path || !strings.HasPrefix(fields[1], "r-") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err := strconv.ParseUint(from, 16, strconv.IntSize)
		if err != nil {
			return nil, err
		}
		end, err := strconv.ParseUint(to, 16, strconv.IntSize)
		if err != nil {
			return nil, err
		}
		if start < end {
			at = &area{uintptr(start), uintptr(end)}
		}
	}
	return found, lines.Err()
}
