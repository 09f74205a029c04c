//go:build !linux

package tunnel

import "net"

// tuneTCP sets the socket up for a session: nothing that this system must have.
func tuneTCP(net.Conn) {}
