package httpconnect

import "net"

// replayConn gives bytes that were read too early before those of the connection.
type replayConn struct {
	net.Conn
	early []byte
}

func (c *replayConn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite keeps half-close working through the wrapper.
func (c *replayConn) CloseWrite() error {
	if hc, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return c.Conn.Close()
}

// NetConn lets the splice reach the TCP connection below, to reset it.
func (c *replayConn) NetConn() net.Conn {
	if tc, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
		return tc.NetConn()
	}
	return c.Conn
}
