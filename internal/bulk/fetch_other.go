//go:build !unix

package bulk

// readable says that sockets can be read from directly.
const readable = false

func (c *Conn) fetch() error { panic("not reached: raw is nil") }
