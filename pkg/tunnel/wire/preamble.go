package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Kind says what a stream is for.
type Kind byte

// The kinds.
const (
	KindControl Kind = 1 // the session's first stream, opened by the side that dialled; never answered
	KindDial    Kind = 2 // target is the host:port that the other side is to connect to
	KindAPI     Kind = 3 // the tenant's API server; the target is empty
	KindForward Kind = 4 // between brokers: a node of a tenant that is connected to the other one; the target is tenant/node/host:port
)

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case KindControl:
		return "control"
	case KindDial:
		return "dial"
	case KindAPI:
		return "api"
	case KindForward:
		return "forward"
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// magic is the first byte of each preamble: a peer that speaks something else is
// found out by its first byte.
const magic = 0x4d

const preambleHeader = 4 // magic, kind, target length (2, big endian)

// Preamble is the first message on each stream.
type Preamble struct {
	Kind   Kind
	Target string
	Trace  Trace // may be zero
}

// AppendPreamble appends the encoding of p to b.
func AppendPreamble(b []byte, p Preamble) ([]byte, error) {
	if p.Kind == 0 {
		return b, fmt.Errorf("preamble: kind 0 is not a kind")
	}
	if err := validTarget(p.Target); err != nil {
		return b, err
	}
	b = append(b, magic, byte(p.Kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.Target)))
	return appendTrace(append(b, p.Target...), p.Trace)
}

// ReadPreamble reads one preamble. A kind that this version does not know is no
// error: it is for the caller to refuse.
func ReadPreamble(r io.Reader) (Preamble, error) {
	var buf [preambleHeader + MaxTarget]byte
	if _, err := io.ReadFull(r, buf[:preambleHeader]); err != nil {
		return Preamble{}, fmt.Errorf("preamble: %w", err)
	}
	if buf[0] != magic {
		return Preamble{}, fmt.Errorf("preamble: %w: first byte %#x, want %#x", ErrMalformed, buf[0], magic)
	}
	if buf[1] == 0 {
		return Preamble{}, fmt.Errorf("preamble: %w: kind 0", ErrMalformed)
	}
	n := int(binary.BigEndian.Uint16(buf[2:4]))
	if n > MaxTarget {
		return Preamble{}, fmt.Errorf("preamble: %w: target of %d bytes, at most %d", ErrMalformed, n, MaxTarget)
	}
	target := buf[preambleHeader : preambleHeader+n]
	if err := readRest(r, target); err != nil {
		return Preamble{}, fmt.Errorf("preamble: %w", err)
	}
	p := Preamble{Kind: Kind(buf[1]), Target: string(target)}
	if err := validTarget(p.Target); err != nil {
		return Preamble{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	var err error
	if p.Trace, err = readTrace(r); err != nil {
		return Preamble{}, err
	}
	return p, nil
}

// validTarget refuses what could be misread once a target stands in a log or a header.
func validTarget(t string) error {
	if len(t) > MaxTarget {
		return fmt.Errorf("preamble: target of %d bytes, at most %d", len(t), MaxTarget)
	}
	for i := range len(t) {
		if t[i] <= ' ' || t[i] >= 0x7f {
			return fmt.Errorf("preamble: target %q: only printable ASCII without spaces", t)
		}
	}
	return nil
}

const answerHeader = 3 // code, message length (2, big endian)

// Answer is the first message in the other direction: OK, and raw bytes follow
// in both; or why not.
type Answer struct {
	Code    Code
	Message string
}

// AppendAnswer appends the encoding of a to b. A message that is too long is cut.
func AppendAnswer(b []byte, a Answer) []byte {
	msg := cut(a.Message)
	b = append(b, byte(a.Code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(msg)))
	return append(b, msg...)
}

// ReadAnswer reads one answer.
func ReadAnswer(r io.Reader) (Answer, error) {
	var head [answerHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Answer{}, fmt.Errorf("answer: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[1:3]))
	if n == 0 {
		return Answer{Code: Code(head[0])}, nil
	}
	if n > MaxMessage {
		return Answer{}, fmt.Errorf("answer: %w: message of %d bytes, at most %d", ErrMalformed, n, MaxMessage)
	}
	msg := make([]byte, n)
	if err := readRest(r, msg); err != nil {
		return Answer{}, fmt.Errorf("answer: %w", err)
	}
	return Answer{Code: Code(head[0]), Message: Printable(string(msg))}, nil
}

// readRest fills b with what a header announced: an end before that is never clean.
func readRest(r io.Reader, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// cut shortens a message to MaxMessage without splitting a rune.
func cut(msg string) string {
	if len(msg) <= MaxMessage {
		return msg
	}
	return strings.ToValidUTF8(msg[:MaxMessage], "")
}

// Printable makes a peer's message safe to show: what does not print becomes '?',
// which is never longer than what it replaces.
func Printable(msg string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, msg)
}
