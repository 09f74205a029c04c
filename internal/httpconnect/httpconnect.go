// Package httpconnect is the answering side of HTTP CONNECT as kube-apiserver's egress selector speaks it (KEP-1281,
// k8s.io/apiserver/pkg/server/egressselector): over HTTP/1.1, with an answer of which not one byte may follow the empty line, and
// a reason in the status line, which is all of a refusal that the person at kubectl gets to read.
//
// Who asks, and for what, is its users' matter.
package httpconnect

import (
	"fmt"
	"strings"
)

const (
	// maxReason bounds a reason in a status line, in bytes.
	maxReason = 480
	// shownID is how many digits of a dial's id the person at kubectl sees: enough to find it in the logs.
	shownID = 16
)

// Reason is what a person is told of a refusal: one line, and the dial's id, by which it is found in the logs.
func Reason(text, dial string) string {
	return fmt.Sprintf("%s (dial %.*s)", oneLine(text), shownID, dial)
}

// oneLine makes a text fit for a status line: no control characters, and bounded.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxReason {
		s = s[:maxReason]
	}
	return s
}
