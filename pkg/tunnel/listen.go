package tunnel

import (
	"context"
	"net"
)

// tcpSegment is the largest TCP segment, without its header: with it a packet is as large as one of QUIC's (UDP's header
// has 8 bytes, TCP's 20), over IPv4 and IPv6. TCP looks for the path's own limit by itself, but goes by ICMP messages, which
// many networks drop: then bulk stops for good while heartbeats, which are small, still pass.
const tcpSegment = quicPacketSize + 8 - 20

// ListenTCP opens the port on which TCP connections to an Acceptor come in: as net.Listen does, with segments bounded so
// that every path takes them that QUIC's packets pass. The bound has to be the listener's: a connection that was accepted
// has told the other side its own already.
func ListenTCP(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{Control: boundSegments}
	lc.SetMultipathTCP(false) // on which older kernels can't set the bound
	return lc.Listen(ctx, "tcp", addr)
}
