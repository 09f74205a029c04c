package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// explainHandshake adds to the error of a client's TLS handshake what it says about the way to the broker, for somebody who
// stands before the box and knows the network there. The error itself stays in the chain.
func explainHandshake(err error) error {
	var (
		header tls.RecordHeaderError
		ne     net.Error
	)
	switch {
	case errors.As(err, &header) && string(header.RecordHeader[:]) == "HTTP/":
		return fmt.Errorf("an answer in plain HTTP, which the broker never gives: something on the way answers in its place: "+
			"a captive portal whose page wants to be confirmed, or a proxy that has to be set: %w", err)
	case errors.As(err, &header):
		return fmt.Errorf("an answer that is not TLS (it begins with %q): not the broker's port, or something on the way answers in its place: %w",
			header.RecordHeader[:], err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("the connection was taken and then closed without an answer: by a broker that is over its limits, "+
			"or by something on the way that lets nothing through: %w", err)
	case errors.As(err, &ne), errors.Is(err, context.Canceled):
		return err // an alert of the other side's among them: it has its own words
	}
	return fmt.Errorf("the answer is not that of a broker which is trusted here: if the network has a captive portal, or a proxy that opens TLS, "+
		"it answers in the broker's place: %w", err)
}
