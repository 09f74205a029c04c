//go:build unix

package bulk

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// ReadSocket reads what a socket has, and does not wait.
var ReadSocket = func(fd uintptr, p []byte) (n int, err error) {
	for {
		if n, err = syscall.Read(int(fd), p); err != syscall.EINTR {
			return n, err
		}
	}
}

// WriteSocket writes what a socket takes, and does not wait.
var WriteSocket = func(fd uintptr, p []byte) (n int, err error) {
	for {
		if n, err = syscall.Write(int(fd), p); err != syscall.EINTR {
			return n, err
		}
	}
}

// canWrite says whether a socket takes bytes now. A TCP socket of Linux that does has a third of its buffer free.
func canWrite(fd uintptr) bool {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n == 1 && p[0].Revents == unix.POLLOUT
}
