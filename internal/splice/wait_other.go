//go:build !linux

package splice

import "net"

// tcpWait is not to be had here: connections keep their buffer while they wait.
func tcpWait(*net.TCPConn) func() error { return nil }
