package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// FrameType tells the control frames apart. A type that is not known is skipped.
type FrameType byte

// The frame types; what each carries stands at its Go type.
const (
	FrameHello   FrameType = 1
	FramePing    FrameType = 2
	FramePong    FrameType = 3
	FrameReset   FrameType = 4
	FrameDrain   FrameType = 5
	FrameGoodbye FrameType = 6
	FrameBundle  FrameType = 7
	FrameStatus  FrameType = 8
	FrameQuiet   FrameType = 9 // no payload
	FrameNetwork FrameType = 10
)

// Frame is one control frame: type (1 byte), payload length (uvarint), payload.
type Frame struct {
	Type    FrameType
	Payload []byte
}

// AppendQuiet appends the frame by which a side says that it opens no more streams, and has none open.
func AppendQuiet(b []byte) []byte { return append(b, byte(FrameQuiet), 0) }

// AppendFrame appends the encoding of f to b.
func AppendFrame(b []byte, f Frame) ([]byte, error) {
	if len(f.Payload) > MaxFrame {
		return b, fmt.Errorf("control frame %d: payload of %d bytes, at most %d", f.Type, len(f.Payload), MaxFrame)
	}
	b = append(b, byte(f.Type))
	b = binary.AppendUvarint(b, uint64(len(f.Payload)))
	return append(b, f.Payload...), nil
}

// ReadFrame reads one frame. The payload is in buf where that is large enough,
// so it is good only until buf is used again. An io.EOF in front of a frame is
// returned as such.
func ReadFrame(r *bufio.Reader, buf []byte) (Frame, error) {
	t, err := r.ReadByte()
	if err != nil {
		return Frame{}, err
	}
	n, err := readLength(r)
	if err != nil {
		return Frame{}, fmt.Errorf("control frame %d: %w", t, err)
	}
	if n > MaxFrame {
		return Frame{}, fmt.Errorf("control frame %d: %w: payload of %d bytes, at most %d", t, ErrMalformed, n, MaxFrame)
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if err := readRest(r, buf); err != nil {
		return Frame{}, fmt.Errorf("control frame %d: %w", t, err)
	}
	return Frame{Type: FrameType(t), Payload: buf}, nil
}

// readLength reads a uvarint of at most 3 bytes, which holds MaxFrame.
func readLength(r io.ByteReader) (uint64, error) {
	var n uint64
	for i := range 3 {
		b, err := r.ReadByte()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		n |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: length takes more than 3 bytes", ErrMalformed)
}

const pingSize = 16

// Ping is the payload of FramePing and of FramePong, which returns it as it
// came: 8 opaque bytes, then the sender's last measured round trip in
// nanoseconds (8 bytes, big endian; 0 = none yet).
type Ping struct {
	ID  uint64
	RTT time.Duration
}

// AppendPing appends a whole frame of type t, which is FramePing or FramePong.
func AppendPing(b []byte, t FrameType, p Ping) []byte {
	b = append(b, byte(t), pingSize)
	b = binary.BigEndian.AppendUint64(b, p.ID)
	return binary.BigEndian.AppendUint64(b, uint64(max(p.RTT, 0)))
}

// ParsePing parses the payload of a ping or pong. Bytes after it are left to newer versions.
func ParsePing(p []byte) (Ping, error) {
	if len(p) < pingSize {
		return Ping{}, fmt.Errorf("ping: %w: %d bytes, want %d", ErrMalformed, len(p), pingSize)
	}
	rtt := binary.BigEndian.Uint64(p[8:])
	if rtt > math.MaxInt64 {
		return Ping{}, fmt.Errorf("ping: %w: round trip of %d ns", ErrMalformed, rtt)
	}
	return Ping{ID: binary.BigEndian.Uint64(p), RTT: time.Duration(rtt)}, nil
}

// The bits of Reset.What.
const (
	ResetSend byte = 1 << 0 // the sender's data ended abnormally: the FIN that follows is no end of file
	ResetStop byte = 1 << 1 // the sender reads no more: the receiver is to stop writing and send a FIN
)

const resetSize = 6

// Reset is the payload of FrameReset, which stands in for what yamux lacks:
// stream (4 bytes, big endian), code (1), what (1). It is written before the
// stream's FIN, and a receiver obeys it before it reports that FIN.
type Reset struct {
	Stream uint32
	Code   Code
	What   byte
}

// AppendReset appends a whole frame.
func AppendReset(b []byte, r Reset) []byte {
	b = append(b, byte(FrameReset), resetSize)
	b = binary.BigEndian.AppendUint32(b, r.Stream)
	return append(b, byte(r.Code), r.What)
}

// ParseReset parses the payload of a reset.
func ParseReset(p []byte) (Reset, error) {
	if len(p) < resetSize {
		return Reset{}, fmt.Errorf("reset: %w: %d bytes, want %d", ErrMalformed, len(p), resetSize)
	}
	return Reset{Stream: binary.BigEndian.Uint32(p), Code: Code(p[4]), What: p[5]}, nil
}

// MaxDrainDelay is the longest delay that a drain can name.
const MaxDrainDelay = time.Hour

// Drain is the payload of FrameDrain: the sender is about to stop and opens no
// more streams; come back after at most this delay (milliseconds, 4 bytes, big
// endian), spread at random over it.
type Drain struct {
	Delay time.Duration
}

// AppendDrain appends a whole frame. A delay out of range is brought into it.
func AppendDrain(b []byte, d Drain) []byte {
	ms := min(max(d.Delay, 0), MaxDrainDelay).Milliseconds()
	b = append(b, byte(FrameDrain), 4)
	return binary.BigEndian.AppendUint32(b, uint32(ms))
}

// ParseDrain parses the payload of a drain.
func ParseDrain(p []byte) (Drain, error) {
	if len(p) < 4 {
		return Drain{}, fmt.Errorf("drain: %w: %d bytes, want 4", ErrMalformed, len(p))
	}
	d := time.Duration(binary.BigEndian.Uint32(p)) * time.Millisecond
	return Drain{Delay: min(d, MaxDrainDelay)}, nil
}

// Goodbye is the payload of FrameGoodbye, the last frame: code (1 byte), then a
// message for a person.
type Goodbye struct {
	Code    Code
	Message string
}

// AppendGoodbye appends a whole frame. A message that is too long is cut.
func AppendGoodbye(b []byte, g Goodbye) []byte {
	msg := cut(g.Message)
	b = append(b, byte(FrameGoodbye))
	b = binary.AppendUvarint(b, uint64(1+len(msg)))
	b = append(b, byte(g.Code))
	return append(b, msg...)
}

// ParseGoodbye parses the payload of a goodbye.
func ParseGoodbye(p []byte) (Goodbye, error) {
	if len(p) < 1 || len(p) > 1+MaxMessage {
		return Goodbye{}, fmt.Errorf("goodbye: %w: %d bytes, want 1 to %d", ErrMalformed, len(p), 1+MaxMessage)
	}
	return Goodbye{Code: Code(p[0]), Message: Printable(string(p[1:]))}, nil
}
