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
			hello = clientHello{strings.ToLower(info.ServerName), info.SupportedProtos}
			return nil, errSeen
		},
	}).Handshake()
	if !errors.Is(err, errSeen) {
		if rec.err != nil {
			err = rec.err
		}
		return clientHello{}, nil, err
	}
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

// guest is a connection whose peer nobody knows yet. Once routed it gives the hello's bytes again.
type guest struct {
	net.Conn
	r     io.Reader // set before anybody reads
	leave func()
}

func (c *guest) Read(p []byte) (int, error) { return c.r.Read(p) }

// Admitted says that it is known who the peer is: the connection is no stranger's any more.
func (c *guest) Admitted() { c.leave() }

func (c *guest) Close() error {
	c.leave()
	return c.Conn.Close()
}

// CloseWrite lets a route say its last word and still read. errors.ErrUnsupported: not on such a connection.
func (c *guest) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// NetConn lets a route reach the socket below, to tune it.
func (c *guest) NetConn() net.Conn { return c.Conn }
