package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// raiseFileLimit sees to it that this process and its children may have so many files open.
func raiseFileLimit(want uint64) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	if l.Cur >= want {
		// Go lowers the limit of its children to what it was at the start, unless it is set.
		want = l.Cur
	}
	l.Cur, l.Max = want, max(l.Max, want)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("so many nodes need %d open files: %w; raise `ulimit -Hn` (now %d), or take fewer", want, err, l.Max)
	}
	return nil
}
