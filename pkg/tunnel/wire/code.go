package wire

import "fmt"

// Code says why an open was refused, a stream was reset or a session ended.
// The values are on the wire: they are only ever added to.
type Code byte

// The codes. The comment is the meaning for whoever receives it.
const (
	OK            Code = 0  // accepted; as the reason of a stop: closed in the ordinary way
	NotFound      Code = 1  // no such node, or not one of this tenant's
	Denied        Code = 2  // the policy of the other side does not permit this target
	DialRefused   Code = 3  // the target was dialled and refused the connection
	DialTimeout   Code = 4  // the target, or the other side, did not answer in time
	Overloaded    Code = 5  // a limit is reached; the same may succeed later
	Draining      Code = 6  // this end is about to stop; open elsewhere
	BadRequest    Code = 7  // the bytes are not the protocol, or the target makes no sense
	Internal      Code = 8  // a fault of the side that answers
	Unavailable   Code = 9  // the way there is interrupted; the same may succeed later
	Canceled      Code = 10 // given up by whoever asked for it
	Superseded    Code = 11 // a newer session of the same node took over
	Revoked       Code = 12 // the node's identity is no longer accepted
	HeartbeatLost Code = 13 // the other side was silent for too long
	Shutdown      Code = 14 // the process is stopping
	Quarantined   Code = 15 // two boxes use this identity; an operator must say which one keeps it
)

// codes holds what is known of each code: its text and the HTTP status that a
// client of the egress sees.
var codes = [...]struct {
	text   string
	status int
}{
	OK:            {"ok", 200},
	NotFound:      {"not found", 404},
	Denied:        {"denied by policy", 403},
	DialRefused:   {"connection refused by the target", 502},
	DialTimeout:   {"timed out", 504},
	Overloaded:    {"overloaded", 503},
	Draining:      {"draining", 503},
	BadRequest:    {"bad request", 400},
	Internal:      {"internal error", 500},
	Unavailable:   {"unavailable", 503},
	Canceled:      {"canceled", 503},
	Superseded:    {"superseded by a newer session", 503},
	Revoked:       {"identity revoked", 403},
	HeartbeatLost: {"heartbeat lost", 504},
	Shutdown:      {"shutting down", 503},
	Quarantined:   {"identity used by two boxes", 403},
}

// String returns the code as a person reads it.
func (c Code) String() string {
	if int(c) < len(codes) {
		return codes[c].text
	}
	return fmt.Sprintf("code %d", byte(c))
}

// HTTPStatus is the one mapping from codes to HTTP; a code from a newer peer is a 502.
func (c Code) HTTPStatus() int {
	if int(c) < len(codes) {
		return codes[c].status
	}
	return 502
}
