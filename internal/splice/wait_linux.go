package splice

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// grabber returns what waits until a stream socket has something to read, and reads it, into a buffer that is only taken then; nil: c
// is no socket. There is a buffer with an error, too.
func grabber(c net.Conn) func() (*[bufferSize]byte, int, error) {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil
	}
	rc, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil
	}
	return func() (buf *[bufferSize]byte, n int, err error) {
		var rerr error
		err = rc.Read(func(fd uintptr) bool {
			buf = buffers.Get().(*[bufferSize]byte)
			for {
				if n, rerr = unix.Read(int(fd), buf[:]); rerr != unix.EINTR {
					break
				}
			}
			if rerr == unix.EAGAIN {
				buffers.Put(buf)
				return false
			}
			return true
		})
		switch {
		case err != nil: // nothing was read
			return buffers.Get().(*[bufferSize]byte), 0, err
		case rerr != nil:
			return buf, 0, &net.OpError{Op: "read", Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("read", rerr)}
		case n == 0:
			return buf, 0, io.EOF
		}
		return buf, n, nil
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
