package tunnel

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tcpNotSent bounds what waits in the kernel: what is written last, a heartbeat
	// say, does not queue behind megabytes of it.
	tcpNotSent = 128 << 10
	// tcpUserTimeout is how long sent bytes may go unacknowledged by the other kernel.
	tcpUserTimeout = 15 * time.Second
	// tcpSendBuffer is how many bytes (the kernel doubles it, and counts its own structures) may be on their way without
	// acknowledgement: 100 Mbit/s for 300 ms need more than the 4 MB at which systems commonly stop. It is a bound and takes
	// no memory by itself; what is not yet sent is bounded by tcpNotSent. It takes CAP_NET_ADMIN; without, tcp_wmem counts.
	tcpSendBuffer = 16 << 20
	// tcpCongestion is the congestion control that is asked for: on a path that loses a packet in fifty by itself, as
	// radio does, those that take each loss for congestion fall to a thousandth of what it carries. Where the kernel has it not,
	// the system's stays.
	tcpCongestion = "bbr"
)

// tuneTCP sets the socket up for a session. All of it is optional.
func tuneTCP(c net.Conn) {
	t := tcpConn(c)
	if t == nil {
		return
	}
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: false}) // the heartbeat does it, at its own interval
	rc, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, tcpNotSent)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(tcpUserTimeout.Milliseconds()))
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, tcpSendBuffer)
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, tcpCongestion)
	})
}

// boundSegments is the Control of a net.Dialer or net.ListenConfig: before a connection there is, as the bound is also what
// the other side is told in the handshake, and on an established one the kernel takes no notice of it. Either side's
// bounds both ways. Where it can't be set, all is as without it.
func boundSegments(_, _ string, rc syscall.RawConn) error {
	return rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, tcpSegment)
	})
}

// tcpConn finds the TCP connection in c, which may be wrapped.
func tcpConn(c net.Conn) *net.TCPConn {
	for {
		switch v := c.(type) {
		case *net.TCPConn:
			return v
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil
		}
	}
}
