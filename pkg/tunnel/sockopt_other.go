//go:build !linux

package tunnel

import (
	"net"
	"syscall"
)

// tuneTCP sets the socket up for a session: nothing that this system must have.
func tuneTCP(net.Conn) {}

// boundSegments bounds TCP's segments, where that is known how to do.
func boundSegments(_, _ string, _ syscall.RawConn) error { return nil }
