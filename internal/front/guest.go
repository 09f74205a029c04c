package front

import (
	"errors"
	"io"
	"net"
	"time"
)

// guest is a connection whose peer nobody knows yet. Once routed it gives the hello's bytes again.
type guest struct {
	net.Conn
	remote   net.Addr  // the client's, also behind a load balancer
	deadline time.Time // of all that it has to say before it is routed
	r        io.Reader // set before anybody reads
	leave    func()
}

func (c *guest) Read(p []byte) (int, error) { return c.r.Read(p) }

// RemoteAddr is the client's address.
func (c *guest) RemoteAddr() net.Addr { return c.remote }

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
