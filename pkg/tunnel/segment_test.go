//go:build linux

package tunnel

import (
	"errors"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSegmentBound: either side's bound holds both ways, which the loopback interface shows, whose own is 64 KiB. Fails
// without boundSegments at the side in question, and with it set on the connection that was accepted in place of the listener.
func TestSegmentBound(t *testing.T) {
	bounded := func(t *testing.T, agent, broker net.Conn) {
		t.Helper()
		for end, c := range map[string]net.Conn{"agent": agent, "broker": broker} {
			if mss := sendsAtMost(t, c); mss > tcpSegment || mss < 1000 {
				t.Errorf("the %s sends segments of %d bytes, want %d at most", end, mss, tcpSegment)
			}
		}
	}
	t.Run("agent's", func(t *testing.T) {
		agent, brk := dialPair(t, TransportTCP, Config{}, Config{}) // whose listener has no bound
		bounded(t, agent.l.mux.(*yamuxMux).raw, brk.l.mux.(*yamuxMux).raw)
	})
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run("broker's "+addr, func(t *testing.T) {
			ln, err := ListenTCP(t.Context(), addr)
			if err != nil {
				if strings.HasPrefix(addr, "[") {
					t.Skip(err) // a machine without IPv6
				}
				t.Fatal(err)
			}
			defer ln.Close()
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			a, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			tuneTCP(a)
			bounded(t, c, a)
		})
	}
}

// sendsAtMost is the size of the segments that a connection sends.
func sendsAtMost(t *testing.T, c net.Conn) int {
	t.Helper()
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	cerr := rc.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err = errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	return int(info.Snd_mss)
}
