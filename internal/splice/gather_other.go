//go:build !linux

package splice

import "net"

// gatherer is Linux's.
type gatherer struct{}

func newGatherer(net.Conn) *gatherer { return nil }

func (*gatherer) read([]byte) (int, error) { panic("no gatherer") }

func (*gatherer) end() {}
