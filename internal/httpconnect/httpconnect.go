// Package httpconnect is the answering side of HTTP CONNECT as kube-apiserver's egress selector speaks it (KEP-1281,
// k8s.io/apiserver/pkg/server/egressselector): over HTTP/1.1, with an answer of which not one byte may follow the empty line, and
// a reason in the status line, which is all of a refusal that the person at kubectl gets to read.
//
// Who asks, and for what, is its users' matter.
package httpconnect

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	// answerTimeout bounds the writing of a refusal.
	answerTimeout = 10 * time.Second
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

// Accept takes a request's connection over and answers 200. Bytes that came early are not lost. The connection has no
// deadline any more.
func Accept(w http.ResponseWriter) (net.Conn, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Time{}) // the server's header deadline would cut a long exec
	// Not a byte may follow the empty line before the API server speaks.
	if _, err := conn.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")); err != nil {
		conn.Close()
		return nil, err
	}
	if n := buf.Reader.Buffered(); n > 0 {
		early, _ := buf.Reader.Peek(n)
		return &replayConn{Conn: conn, early: early}, nil
	}
	return conn, nil
}

// Refuse answers with reason, which Reason made, in the status line too, and ends the connection: kube-apiserver puts that line, and
// not the body, into the error that the person at kubectl reads.
func Refuse(w http.ResponseWriter, status int, reason string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, reason, status)
		return
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, reason, len(reason), reason)
}
