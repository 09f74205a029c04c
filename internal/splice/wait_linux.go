package splice

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketWait waits until a stream socket has something to read, be it an error.
func socketWait(c syscall.Conn) func() error {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return func() error {
		var (
			b    [1]byte
			perr error
		)
		err := rc.Read(func(fd uintptr) bool {
			for {
				_, _, perr = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
				if perr != unix.EINTR {
					return perr != unix.EAGAIN
				}
			}
		})
		if err != nil {
			return err
		}
		return perr // a reset is told once: who drops it here makes the next Read a clean end
	}
}

// tcpClosed says whether c is a TCP connection that is closed in both
// directions, be it by a reset or in the ordinary way.
func tcpClosed(c net.Conn) bool {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return false
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	_ = rc.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == unix.BPF_TCP_CLOSE
	})
	return closed
}
