//go:build !linux

package splice

import (
	"errors"
	"net"
)

// gatherer is Linux's.
type gatherer struct{}

func newGatherer(net.Conn) *gatherer { return nil }

func (*gatherer) wanted(int) bool { return false }

func (*gatherer) patient() bool { return false }

func (*gatherer) read([]byte) (int, error) { return 0, errors.ErrUnsupported }

func (*gatherer) mark(int) {}

func (*gatherer) end() {}
