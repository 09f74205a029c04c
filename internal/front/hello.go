package front

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"time"
)

// maxHello bounds the bytes read for one ClientHello, which are kept, a few times over, for each of the thousands
// of connections that may be in that state. Hellos with post-quantum key shares have about 2 KiB; crypto/tls itself
// would take 64.
const maxHello = 16 << 10

// clientHello is what the routing looks at.
type clientHello struct {
	serverName string   // SNI, in lower case; may be empty
	protocols  []string // ALPN
	raw        []byte   // what was read of the connection: the hello, and perhaps more
}

var (
	errSeen     = errors.New("hello seen")
	errTooLarge = errors.New("ClientHello larger than 16 KiB")
)

// peekHello reads a ClientHello, however it is split into records or segments, writes nothing, and
// returns a reader of conn's bytes from the hello on. crypto/tls's own parser does the
// reading: its handshake is let run up to the hello and stopped there.
func peekHello(conn net.Conn) (clientHello, io.Reader, error) {
	var hello clientHello
	rec := &recorder{conn: conn}
	err := tls.Server(rec, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = clientHello{serverName: strings.ToLower(info.ServerName), protocols: info.SupportedProtos}
			return nil, errSeen
		},
	}).Handshake()
	if !errors.Is(err, errSeen) {
		if rec.err != nil {
			err = rec.err
		}
		return clientHello{}, nil, err
	}
	hello.raw = rec.seen.Bytes()
	return hello, io.MultiReader(&rec.seen, conn), nil
}

// recorder is the connection that crypto/tls sees: reads are kept, and nothing is written, so that
// the alert with which crypto/tls ends the handshake does not go out.
type recorder struct {
	conn net.Conn
	seen bytes.Buffer
	err  error
}

func (r *recorder) Read(p []byte) (int, error) {
	if r.seen.Len() >= maxHello {
		r.err = errTooLarge
		return 0, r.err
	}
	n, err := r.conn.Read(p[:min(len(p), maxHello-r.seen.Len())])
	r.seen.Write(p[:n])
	if err != nil {
		r.err = err
	}
	return n, err
}

func (r *recorder) Write(p []byte) (int, error)      { return len(p), nil }
func (r *recorder) Close() error                     { return nil }
func (r *recorder) LocalAddr() net.Addr              { return r.conn.LocalAddr() }
func (r *recorder) RemoteAddr() net.Addr             { return r.conn.RemoteAddr() }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetReadDeadline(time.Time) error  { return nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
