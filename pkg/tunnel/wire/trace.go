package wire

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
)

// TraceSize is how many bytes a Trace takes in a preamble: id, span, flags.
const TraceSize = 16 + 8 + 1

// FlagSampled is the bit of Trace.Flags that says that the caller records the
// dial's spans (W3C Trace Context, section 3.2.2.5.1).
const FlagSampled = 1

// Trace is a W3C trace context in binary: it names one dial to both ends, so that
// the lines that each of them logs about it can be put together. The zero value
// means that there is none.
type Trace struct {
	ID    [16]byte // of the dial, or of what it is a part of; not all zero
	Span  [8]byte  // of the sender's part; not all zero
	Flags byte     // FlagSampled; other bits are passed on
}

// NewTrace returns a random one with no flags set.
func NewTrace() Trace {
	var t Trace
	for !t.Valid() {
		_, _ = rand.Read(t.ID[:]) // never fails
		_, _ = rand.Read(t.Span[:])
	}
	return t
}

// Valid tells whether the trace names something.
func (t Trace) Valid() bool { return t.ID != [16]byte{} && t.Span != [8]byte{} }

// String returns the id as logs show it, 32 digits of hex; empty if there is none.
func (t Trace) String() string {
	if t.ID == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(t.ID[:])
}

// appendTrace appends the length and the encoding of t.
func appendTrace(b []byte, t Trace) ([]byte, error) {
	if t == (Trace{}) {
		return append(b, 0), nil
	}
	if !t.Valid() {
		return b, fmt.Errorf("preamble: a trace without an id or a span")
	}
	b = append(b, TraceSize)
	b = append(b, t.ID[:]...)
	b = append(b, t.Span[:]...)
	return append(b, t.Flags), nil
}

// readTrace reads what appendTrace wrote.
func readTrace(r io.Reader) (Trace, error) {
	var buf [TraceSize]byte
	if err := readRest(r, buf[:1]); err != nil {
		return Trace{}, fmt.Errorf("preamble: %w", err)
	}
	switch buf[0] {
	case 0:
		return Trace{}, nil
	case TraceSize:
	default:
		return Trace{}, fmt.Errorf("preamble: %w: trace of %d bytes, want 0 or %d", ErrMalformed, buf[0], TraceSize)
	}
	if err := readRest(r, buf[:]); err != nil {
		return Trace{}, fmt.Errorf("preamble: %w", err)
	}
	var t Trace
	copy(t.ID[:], buf[:16])
	copy(t.Span[:], buf[16:24])
	t.Flags = buf[24]
	if !t.Valid() {
		return Trace{}, fmt.Errorf("preamble: %w: trace without an id or a span", ErrMalformed)
	}
	return t, nil
}
