package tunnel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
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
