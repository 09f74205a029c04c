package bulk

import "golang.org/x/sys/unix"

// canWrite says whether a socket takes bytes now. A TCP socket of Linux that does has a third of its buffer free.
func canWrite(fd uintptr) bool {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n == 1 && p[0].Revents == unix.POLLOUT
}
