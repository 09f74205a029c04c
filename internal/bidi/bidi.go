// Package bidi serves one bidirectional method of gRPC over HTTP/2 with prior knowledge (RFC 9113; gRPC's "PROTOCOL-HTTP2.md"), for
// clients of the same machine. It is for who passes messages on, many or large: whoever reads the connection hands each to its handler at once, and a
// message is sent by whoever sends it, with one system call. A general server of gRPC has queues and goroutines in between on both ways.
//
// What such a server knows beyond that, it does not: no compression, no metadata, no deadlines (a client resets its stream), no keep-alive.
//
//	err := bidi.Serve(conn, nil, bidi.Config{Method: "/ProxyService/Proxy", MaxMessage: 4 << 20, MaxStreams: 1024, Open: open})
package bidi

import (
	"net"
	"time"
)

// Config says what is served.
type Config struct {
	// Method is the one method, as "/service/method". Others are answered with Unimplemented.
	Method string
	// MaxMessage bounds a message that is received, in bytes.
	MaxMessage int
	// MaxStreams bounds the streams of one connection. Of those that the client has reset, but whose handler has not ended, there may be as many again, less
	// those that are open.
	MaxStreams int
	// Patience bounds how long a client may take for its first bytes, up to its settings. 0: for ever.
	Patience time.Duration
	// Open makes the handler of a new stream. It must not wait.
	Open func(*Stream) Handler

	aWhile time.Duration // for tests; 0: as below
}

// Handler is what takes the messages of one stream. Take and Ended are called by the one goroutine that reads the connection: while they
// wait for something, nothing of any stream is read.
type Handler interface {
	// Take takes a message, which is the handler's until Take returns, but for what it Keeps. An error ends the stream with its status, as
	// status.FromError sees it. Nothing follows it.
	Take(*Message) error
	// Ended says that no more messages come. It is called once. The client has ended its side, of which the handler may still send; or the stream
	// was reset, the connection lost, or Take returned an error.
	Ended()
	// Wait returns when nothing of the handler runs any more, and nothing will be sent. The stream ends for the client then, with OK or with
	// what Take returned. It is called once, by a goroutine of its own, after Ended.
	Wait()
}

// HTTP/2, RFC 9113.
const (
	preface      = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // section 3.4
	frameHeader  = 9                                  // section 4.1
	maxFrame     = 16 << 10                           // section 4.2: more is for those who were allowed to
	firstWindow  = 64<<10 - 1                         // section 6.9.2
	largestValue = 1<<31 - 1                          // of a window
)

const (
	// prefixSize is what gRPC puts before each message: whether it is compressed, and its length.
	prefixSize = 5
	// streamWindow is what a client may send ahead on one stream, in bytes. It is given back as the bytes arrive, unless the stream is paused.
	streamWindow = 512 << 10
	// connWindow is that of all streams of a connection together.
	connWindow = 4 << 20
	// maxHeaders bounds what the headers of a stream take, in bytes.
	maxHeaders = 8 << 10
	// maxQueue bounds what waits for a client that does not read, of answers to settings, pings and such and of the ends of streams, in bytes. It is more than
	// the ends of a thousand streams take.
	maxQueue = 256 << 10
)

// Serve serves a connection until it ends or is closed, and returns why when all its handlers have ended: a *ProtocolError where its client is to blame. It closes conn. early is what was
// read of it already.
func Serve(conn net.Conn, early []byte, cfg Config) error {
	c := newConn(conn, early, cfg)
	err := c.read()
	c.end(err)
	c.work.Wait()
	return err
}
