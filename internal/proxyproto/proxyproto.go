// Package proxyproto reads and writes the header by which a load balancer says whose connection it passes on: HAProxy's
// PROXY protocol, versions 1 and 2 to read, 2 to write.
//
// Read takes the header's bytes from the connection and not one more, so what follows is read from the socket itself: there
// is no buffer in between that would hide it. Whom to believe, and for how long to wait, is the caller's: set a deadline.
//
// Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
package proxyproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n" // how a header of version 2 begins
	maxV1     = 107                      // bytes of a header of version 1, its end included
	// MaxLength is how much may follow the 16 bytes that a header of version 2 begins with: 36 of addresses and the rest TLVs,
	// of which clouds send some hundred bytes.
	MaxLength = 4096
)

// What the second and third of a header's bytes may say.
const (
	cmdLocal, cmdProxy  = 0x20, 0x21
	tcp4, tcp6          = 0x11, 0x21
	lenAddr4, lenAddr6  = 12, 36
	famUnspec, famUnix  = 0x0, 0x3
	protoUnspec, stream = 0x0, 0x1
)

// Read reads one header. The address is that of the client; it is not valid where the header names none, as a balancer's
// own connections (LOCAL, for checks) do: then it is the connection's own that counts. An error says what came instead.
func Read(r io.Reader) (netip.AddrPort, error) {
	var b [maxV1]byte
	head := b[:len(signature)]
	if _, err := io.ReadFull(r, head); err != nil {
		return netip.AddrPort{}, fmt.Errorf("PROXY header: %w", err)
	}
	switch {
	case string(head) == signature:
		return readV2(r)
	case strings.HasPrefix(string(head), "PROXY "):
		return readV1(r, b[:], len(head))
	}
	return netip.AddrPort{}, fmt.Errorf("want a PROXY header, got %q", head)
}

func readV2(r io.Reader) (netip.AddrPort, error) {
	var none netip.AddrPort
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return none, fmt.Errorf("PROXY header: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	if n > MaxLength {
		return none, fmt.Errorf("PROXY header of %d bytes, want at most %d", n, MaxLength)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return none, fmt.Errorf("PROXY header: %w", err)
	}
	switch head[0] {
	case cmdLocal:
		return none, nil
	case cmdProxy:
	default:
		return none, fmt.Errorf("PROXY header: want version 2 and command LOCAL or PROXY, got %#x", head[0])
	}
	switch family := head[1]; {
	case family == tcp4 && n >= lenAddr4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(body)), binary.BigEndian.Uint16(body[8:])), nil
	case family == tcp6 && n >= lenAddr6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(body)).Unmap(), binary.BigEndian.Uint16(body[32:])), nil
	case family == tcp4 || family == tcp6:
		return none, fmt.Errorf("PROXY header: %d bytes are too few for its addresses", n)
	case family == famUnspec<<4|protoUnspec || family == famUnix<<4|stream:
		return none, nil
	default:
		return none, fmt.Errorf("PROXY header: want TCP, got family and protocol %#x", family)
	}
}

// readV1 reads on byte by byte, as only the end says how long the header is. b begins with the n bytes that were read.
func readV1(r io.Reader, b []byte, n int) (netip.AddrPort, error) {
	var none netip.AddrPort
	for b[n-2] != '\r' || b[n-1] != '\n' {
		if n == len(b) {
			return none, fmt.Errorf("PROXY header without an end: %q", b)
		}
		if _, err := io.ReadFull(r, b[n:n+1]); err != nil {
			return none, fmt.Errorf("PROXY header: %w", err)
		}
		n++
	}
	line := string(b[:n-2])
	part := strings.Split(line, " ") // PROXY TCP4 SOURCE DESTINATION SPORT DPORT
	if len(part) >= 2 && part[1] == "UNKNOWN" {
		return none, nil
	}
	if len(part) != 6 || part[1] != "TCP4" && part[1] != "TCP6" {
		return none, fmt.Errorf("PROXY header: want PROXY TCP4 or TCP6 with two addresses and two ports, got %q", line)
	}
	addr, aerr := netip.ParseAddr(part[2])
	port, perr := strconv.ParseUint(part[4], 10, 16)
	if err := errors.Join(aerr, perr); err != nil || addr.Zone() != "" || addr.Is4() != (part[1] == "TCP4") {
		return none, fmt.Errorf("PROXY header: no source in %q", line)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}

// Append appends a header of version 2: PROXY from client to server, or LOCAL if client is none of TCP or UDP over IP.
func Append(b []byte, client, server net.Addr) []byte {
	b = append(b, signature...)
	src, dst := AddrPort(client), AddrPort(server)
	switch {
	case !src.IsValid():
		return append(b, cmdLocal, 0, 0, 0)
	case src.Addr().Is4() && (dst.Addr().Is4() || !dst.IsValid()):
		if !dst.IsValid() {
			dst = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		}
		b = append(b, cmdProxy, tcp4, 0, lenAddr4)
		b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	default: // of both families: an IPv4 address has a form in IPv6
		from, to := src.Addr().As16(), netip.IPv6Unspecified().As16()
		if dst.IsValid() {
			to = dst.Addr().As16()
		}
		b = append(b, cmdProxy, tcp6, 0, lenAddr6)
		b = append(append(b, from[:]...), to[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}

// AddrPort is the address of a TCP or UDP connection over IP; not valid for another.
func AddrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
