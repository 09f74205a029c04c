package tunnel

import (
	"encoding/binary"
	"errors"
)

// yamuxTypePing is of frames that no end of ours sends.
const yamuxTypePing = 2

// errYamuxPing is what a session ends by whose other side sends yamux pings: yamux answers each from a goroutine of
// its own, which stays as long as the connection takes no bytes. Who sends pings and reads nothing would fill the memory.
var errYamuxPing = errors.New("the other side sends yamux pings, which this protocol does not use")

// yamuxGuard follows the frames in a stream of bytes, however that is cut.
type yamuxGuard struct {
	header [yamuxHeader]byte
	have   int    // bytes of the header
	body   uint32 // bytes of a data frame's body that are to come
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
		switch g.header[1] {
		case yamuxTypePing:
			return errYamuxPing
		case yamuxTypeData:
			g.body = binary.BigEndian.Uint32(g.header[8:])
		}
	}
	return nil
}
