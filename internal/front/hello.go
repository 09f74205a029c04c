package front

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"
)

// maxHello bounds the bytes read for one ClientHello. crypto/tls takes handshake messages of up to
// 64 KiB; hellos with post-quantum key shares have about 2 KiB.
const maxHello = 64 << 10

// clientHello is what the routing looks at.
type clientHello struct {
	serverName string   // SNI, lower-case as crypto/tls gives it; may be empty
	protocols  []string // ALPN
}

var (
	errSeen     = errors.New("hello seen")
	errTooLarge = errors.New("ClientHello larger than 64 KiB")
)

// peekHello reads a ClientHello, however it is split into records or segments, writes nothing, and
// returns a connection whose bytes start with the hello again. crypto/tls's own parser does the
// reading: its handshake is let run up to the hello and stopped there.
func peekHello(conn net.Conn) (clientHello, net.Conn, error) {
	var hello clientHello
	rec := &recorder{conn: conn}
	err := tls.Server(rec, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = clientHello{info.ServerName, info.SupportedProtos}
			return nil, errSeen
		},
	}).Handshake()
	if !errors.Is(err, errSeen) {
		if rec.err != nil {
			err = rec.err
		}
		return clientHello{}, nil, err
	}
	return hello, &replayConn{Conn: conn, r: io.MultiReader(&rec.seen, conn)}, nil
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

// replayConn gives the hello's bytes again, then the connection's.
type replayConn struct {
	net.Conn
	r io.Reader
}

func (c *replayConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite lets a route say its last word and still read. errors.ErrUnsupported: not on such a connection.
func (c *replayConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// NetConn lets a route reach the socket below, to tune it.
func (c *replayConn) NetConn() net.Conn { return c.Conn }
