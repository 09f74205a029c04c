package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"github.com/quic-go/quic-go"
)

// RefusedError says that an open was refused, by the other side or by a limit of this one.
type RefusedError struct {
	Code    wire.Code
	Message string // for a person; may be empty
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.Message == "" {
		return e.Code.String()
	}
	return e.Code.String() + ": " + e.Message
}

// Timeout makes a RefusedError of wire.DialTimeout look like any other timeout.
func (e *RefusedError) Timeout() bool { return e.Code == wire.DialTimeout }

// Is makes errors.Is find os.ErrDeadlineExceeded in timeouts.
func (e *RefusedError) Is(target error) bool {
	return target == os.ErrDeadlineExceeded && e.Timeout()
}

// CodeOf says what a failed open comes to, for who hands the failure on: a refusal's own code, that of a time limit or of a caller
// who gave up, and wire.Unavailable for all else, such as the end of the session. nil is wire.OK.
func CodeOf(err error) wire.Code {
	var refused *RefusedError
	switch {
	case err == nil:
		return wire.OK
	case errors.As(err, &refused):
		return refused.Code
	case errors.Is(err, context.DeadlineExceeded):
		return wire.DialTimeout
	case errors.Is(err, context.Canceled):
		return wire.Canceled
	}
	return wire.Unavailable
}

// ClosedError says why a session ended. net.ErrClosed is in its chain.
type ClosedError struct {
	Code    wire.Code
	Message string // for a person; may be empty
	Remote  bool   // the other side ended it
	Err     error  // what the transport said, if it was it that failed; may be nil
}

// Error implements error.
func (e *ClosedError) Error() string {
	by := "closed"
	if e.Remote {
		by = "closed by the other side"
	}
	s := fmt.Sprintf("tunnel session %s: %s", by, e.Code)
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns net.ErrClosed and the transport's error.
func (e *ClosedError) Unwrap() []error {
	if e.Err == nil {
		return []error{net.ErrClosed}
	}
	return []error{net.ErrClosed, e.Err}
}

// ResetError says that a stream ended abnormally: what was read up to it may not be all.
type ResetError struct {
	Code   wire.Code
	Remote bool // the other side reset it, or stopped reading
}

// Error implements error.
func (e *ResetError) Error() string {
	switch {
	case !e.Remote:
		return fmt.Sprintf("tunnel stream reset: %s", e.Code)
	case e.Code == wire.OK:
		return "tunnel stream closed by the other side"
	}
	return fmt.Sprintf("tunnel stream reset by the other side: %s", e.Code)
}

// Unwrap returns net.ErrClosed for a reset of ours, syscall.ECONNRESET for one of theirs.
func (e *ResetError) Unwrap() error {
	if e.Remote {
		return syscall.ECONNRESET
	}
	return net.ErrClosed
}

// errStreamClosed is what a stream's methods return once it was closed here.
var errStreamClosed = fmt.Errorf("tunnel stream: %w", net.ErrClosed)

// errTimeout is what Read and Write return after their deadline.
var errTimeout net.Error = timeoutError{}

type timeoutError struct{}

func (timeoutError) Error() string   { return "tunnel stream: i/o timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }
func (timeoutError) Unwrap() error   { return os.ErrDeadlineExceeded }

// isTimeout tells a deadline that passed from other errors.
func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// refusals are the TLS alerts by which a server turns away the certificate of its client: bad,
// unsupported, revoked, expired, unknown, unknown CA, access denied, required.
var refusals = []tls.AlertError{42, 43, 44, 45, 46, 48, 49, 116}

// CertificateRefused tells whether err, of Dial or of a session, says that the
// broker refused this side's certificate in the TLS handshake, over QUIC or TCP.
// With TLS 1.3 a client learns of that only after its own handshake is complete,
// so it can be the end of a session as well as the error of a dial.
func CertificateRefused(err error) bool {
	switch e := err.(type) {
	case nil:
		return false
	case *quic.TransportError:
		code := uint64(e.ErrorCode)
		return e.Remote && code>>8 == 1 && slices.Contains(refusals, tls.AlertError(code)) // RFC 9001, section 4.8
	case *net.OpError:
		// crypto/tls keeps its type of alerts to itself, but for their text.
		if e.Op == "remote error" && e.Err != nil {
			return slices.ContainsFunc(refusals, func(a tls.AlertError) bool { return a.Error() == e.Err.Error() })
		}
	}
	// By hand and not by errors.As, which stops at the first of a type: of two
	// transports that were tried either may have been turned away.
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		return CertificateRefused(e.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), CertificateRefused)
	}
	return false
}

// turnedAway tells whether err, of Dial, says that somebody answered who then took no connection: on TCP it was closed before
// the handshake, on QUIC it was refused. That is what a broker does that is over a limit.
func turnedAway(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return true
	}
	// By hand, as in CertificateRefused: either transport's error may be the one.
	switch e := err.(type) {
	case *quic.TransportError:
		return e.Remote && e.ErrorCode == quic.ConnectionRefused
	case interface{ Unwrap() error }:
		return turnedAway(e.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), turnedAway)
	}
	return false
}
