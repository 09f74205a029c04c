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
	yamuxTypeGoAway = 3

	yamuxFlagSYN = 1
	yamuxFlagACK = 2
	yamuxFlagFIN = 4
	yamuxFlagRST = 8
)

// yamuxFrame is a frame's header.
type yamuxFrame []byte

func (f yamuxFrame) version() byte      { return f[0] }
func (f yamuxFrame) kind() byte         { return f[1] }
func (f yamuxFrame) has(flag byte) bool { return f[3]&flag != 0 }
func (f yamuxFrame) stream() uint32     { return binary.BigEndian.Uint32(f[4:8]) }
func (f yamuxFrame) length() uint32     { return binary.BigEndian.Uint32(f[8:12]) }
func (f yamuxFrame) setLength(n uint32) { binary.BigEndian.PutUint32(f[8:12], n) }

// appendFrame appends a frame without a body, that has a flag and lets the other side send n more bytes on a stream.
func appendFrame(b []byte, flag byte, stream, n uint32) []byte {
	b = append(b, 0, yamuxTypeWindow, 0, flag)
	b = binary.BigEndian.AppendUint32(b, stream)
	return binary.BigEndian.AppendUint32(b, n)
}

// errYamuxPing is what a session ends by whose other side sends yamux pings: yamux answers each from a goroutine of
// its own, which stays as long as the connection takes no bytes. Who sends pings and reads nothing would fill the memory.
var errYamuxPing = errors.New("the other side sends yamux pings, which this protocol does not use")

// checkFrame is shown the header of each frame of a stream as it arrives, and says what the other side must not do.
func checkFrame(windows *yamuxWindows, f yamuxFrame) error {
	if f.has(yamuxFlagSYN) {
		if err := windows.opened(f.stream()); err != nil {
			return err
		}
	}
	if f.kind() == yamuxTypeWindow {
		windows.granted(f.stream(), f.length())
		return nil
	}
	return windows.arrived(f.stream(), f.length())
}
