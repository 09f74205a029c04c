// Package wire is the tunnel's protocol as bytes: the preamble that opens a
// stream, the answer to it, and the frames of the control stream.
//
// It is not a policy: nothing here reads a clock, starts a goroutine or decides
// who may do what; pkg/tunnel does. Append functions build bytes onto a slice,
// Read functions parse them from an io.Reader and never read further than the
// message they return, so that raw stream bytes may follow it at once. Every
// length is bounded before anything is allocated for it.
//
// docs/tunnel-protocol.md tells the same in prose; the two change together.
package wire

import "errors"

// ALPN is the protocol's name in TLS; a change that old peers cannot read gets a new one.
const ALPN = "mooring/1"

// Limits of the messages. A peer that exceeds one is not to be talked to further.
const (
	MaxTarget  = 512      // bytes of a preamble's target
	MaxMessage = 1024     // bytes of an answer's or goodbye's message
	MaxFrame   = 64 << 10 // bytes of a control frame's payload
)

// ErrMalformed is in the chain of every error that says that the bytes read are
// not the protocol (as opposed to errors of the reader itself).
var ErrMalformed = errors.New("malformed tunnel message")
