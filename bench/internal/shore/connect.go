package shore

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// StatusError is an answer to CONNECT that is not 200.
type StatusError struct {
	Code int
	Line string
}

// Error implements error.
func (e *StatusError) Error() string { return e.Line }

// Connect has conn lead to target, as a kube-apiserver's egress selector does it.
func Connect(conn net.Conn, target string) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target); err != nil {
		return err
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return &StatusError{resp.StatusCode, resp.Status}
	}
	if br.Buffered() > 0 {
		return errors.New("bytes before the client spoke")
	}
	return nil
}
