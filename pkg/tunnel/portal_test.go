package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHandshakeErrorsSayWhoAnswered: what a person reads who has to find out why there is no tunnel, and what a program
// finds in the chain.
func TestHandshakeErrorsSayWhoAnswered(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(net.Conn)
		want   string
		in     func(error) bool
	}{
		"HTTP": {
			func(c net.Conn) { answerWith(c, "HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n") },
			"captive portal", as[tls.RecordHeaderError],
		},
		"another protocol": {
			func(c net.Conn) { answerWith(c, "SSH-2.0-OpenSSH_9.2p1\r\n") },
			`begins with "SSH-2"`, as[tls.RecordHeaderError],
		},
		"another CA": {
			func(c net.Conn) {
				ca, key := makeCert("portal", nil, nil)
				_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{leaf("portal", ca, key)}}).Handshake()
			},
			"proxy that opens TLS", as[x509.UnknownAuthorityError],
		},
		"closed": {
			func(c net.Conn) { _, _ = c.Read(make([]byte, 64<<10)) },
			"closed without an answer", func(err error) bool { return errors.Is(err, io.EOF) },
		},
		"reset": {
			func(c net.Conn) {
				_, _ = c.Read(make([]byte, 1))
				_ = c.(*net.TCPConn).SetLinger(0)
			},
			"closed without an answer", func(err error) bool { return errors.Is(err, syscall.ECONNRESET) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				c, err := ln.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				tc.answer(c)
			}()
			_, err = dialer(ln.Addr().String(), TransportTCP, Config{}).Dial(t.Context())
			<-done
			if err == nil || !strings.Contains(err.Error(), tc.want) || !tc.in(err) {
				t.Errorf("error %v (%T); want one that says %q, and the cause in its chain", err, err, tc.want)
			}
		})
	}
	for _, err := range []error{context.Canceled, context.DeadlineExceeded, &net.OpError{Op: "remote error", Err: tls.AlertError(42)}} {
		if got := explainHandshake(err); got != err {
			t.Errorf("%v, which says nothing of who answered, became %v", err, got)
		}
	}
}

// as tells whether there is an E in an error's chain.
func as[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

// answerWith answers whatever comes, and waits for the other side to have read it.
func answerWith(c net.Conn, s string) {
	_, _ = c.Read(make([]byte, 1))
	_, _ = io.WriteString(c, s)
	_, _ = io.Copy(io.Discard, c)
}
