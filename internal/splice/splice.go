// Package splice is the only copy loop: it joins two connections until both
// directions have ended, keeps half-closes, and never lets an abnormal end on
// one side look like a clean one on the other.
package splice

import "net"

// Splice copies between a and b until both directions have ended, and closes both.
func Splice(a, b net.Conn) (aToB, bToA int64, err error) { panic("todo") }
