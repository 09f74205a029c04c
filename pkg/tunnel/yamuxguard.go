package tunnel

import (
	"encoding/binary"
	"errors"
)

// Of a yamux frame's header: see yamux's spec.md.
const (
	yamuxHeader = 12

	yamuxTypeData   = 0
	yamuxTypeWindow = 1
	yamuxTypePing   = 2 // of frames that no end of ours sends

	yamuxFlagSYN = 1
	yamuxFlagACK = 2
	yamuxFlagFIN = 4
	yamuxFlagRST = 8
)

// yamuxFrame is a frame's header.
type yamuxFrame []byte

func (f yamuxFrame) kind() byte         { return f[1] }
func (f yamuxFrame) has(flag byte) bool { return f[3]&flag != 0 }
func (f yamuxFrame) stream() uint32     { return binary.BigEndian.Uint32(f[4:8]) }
func (f yamuxFrame) length() uint32     { return binary.BigEndian.Uint32(f[8:12]) }
func (f yamuxFrame) setLength(n uint32) { binary.BigEndian.PutUint32(f[8:12], n) }

// appendGrant appends a frame that lets the other side send n more bytes on a stream.
func appendGrant(b []byte, stream, n uint32) []byte {
	b = append(b, 0, yamuxTypeWindow, 0, 0)
	b = binary.BigEndian.AppendUint32(b, stream)
	return binary.BigEndian.AppendUint32(b, n)
}

// errYamuxPing is what a session ends by whose other side sends yamux pings: yamux answers each from a goroutine of
// its own, which stays as long as the connection takes no bytes. Who sends pings and reads nothing would fill the memory.
var errYamuxPing = errors.New("the other side sends yamux pings, which this protocol does not use")

// yamuxGuard follows the frames in a stream of bytes, however that is cut, and sees that they keep to what the other
// side may do. Yamux itself is told that each stream's window is a large one.
type yamuxGuard struct {
	windows *yamuxWindows
	header  [yamuxHeader]byte
	have    int    // bytes of the header
	body    uint32 // bytes of a data frame's body that are to come
}

// check is shown all bytes in their order.
func (g *yamuxGuard) check(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			n := min(uint64(len(p)), uint64(g.body))
			g.body -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(g.header[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have < yamuxHeader {
			return nil
		}
		g.have = 0
		if err := g.frame(g.header[:]); err != nil {
			return err
		}
	}
	return nil
}

// frame is shown each header.
func (g *yamuxGuard) frame(f yamuxFrame) error {
	if f.kind() == yamuxTypePing {
		return errYamuxPing
	}
	if f.kind() > yamuxTypeWindow {
		return nil
	}
	if f.has(yamuxFlagSYN) {
		if err := g.windows.opened(f.stream()); err != nil {
			return err
		}
	}
	if f.kind() == yamuxTypeWindow {
		g.windows.granted(f.stream(), f.length())
	}
	if f.kind() == yamuxTypeData {
		g.body = f.length()
		if err := g.windows.arrived(f.stream(), f.length()); err != nil {
			return err
		}
	}
	if f.has(yamuxFlagFIN | yamuxFlagRST) {
		g.windows.ended(f.stream())
	}
	return nil
}
