//go:build !linux

package splice

import "net"

// tcpWait is not to be had here: connections keep their buffer while they wait.
func tcpWait(*net.TCPConn) func() error { return nil }

// tcpClosed is not known here: a reset that a write was told of may look like a clean end to a read.
func tcpClosed(net.Conn) bool { return false }
