//go:build unix

package bulk

import (
	"io"
	"net"
	"os"
	"syscall"
)

const readable = true

// fetch waits for the socket to have something, and reads it. in is nil, and stays so where there is an error.
func (c *Conn) fetch() error {
	var n int
	var errno error
	err := c.raw.Read(func(fd uintptr) bool {
		buf := buffers.Get().(*[size]byte)
		for {
			n, errno = syscall.Read(int(fd), buf[:])
			if errno != syscall.EINTR {
				break
			}
		}
		if errno == nil && n > 0 {
			c.in, c.r, c.w = buf, 0, n
			return true
		}
		buffers.Put(buf)
		return errno != syscall.EAGAIN
	})
	switch {
	case err != nil:
		return err
	case errno != nil:
		return &net.OpError{Op: "read", Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("read", errno)}
	case n == 0:
		return io.EOF
	}
	return nil
}
