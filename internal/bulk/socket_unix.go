//go:build unix

package bulk

import "syscall"

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
