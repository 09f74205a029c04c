package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// mux is one multiplexed connection: quicMux, or yamuxMux.
type mux interface {
	// open makes a stream, or returns errStreamLimit if the other side takes no more now.
	open(ctx context.Context) (muxStream, error)
	// accept returns the next stream that the other side opened.
	accept(ctx context.Context) (muxStream, error)
	// close ends the connection and waits for its goroutines. For up to linger it
	// leaves the last word to the other side, so that nothing already sent is lost.
	close(code wire.Code, msg string, linger time.Duration)
}

// muxStream is a stream of a mux. Its errors are io.EOF, errTimeout,
// errStreamClosed, *ResetError; all others mean that the connection is gone.
type muxStream interface {
	io.ReadWriter
	deadliner
	ender
	// onAbort has f called once the other side resets the stream or stops reading
	// it, until stop is called. f must not block.
	onAbort(f func()) (stop func())
}

type deadliner interface {
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// ender is how a stream ends. Neither method waits for the network, but
// closeWrite where the connection itself takes no more.
type ender interface {
	closeWrite() error    // a clean end of what is written here
	close()               // the same, and nothing is read any more
	reset(code wire.Code) // an abnormal end of both directions
}

// resetCarrier is a mux that has no resets of its own and sends them as control
// frames. It is given the control stream once that is there, and told when its
// frames are obeyed no more.
type resetCarrier interface {
	attach(ctl muxStream, send func(frame []byte, stop <-chan struct{}) error) io.Reader
	onReset(r wire.Reset)
	detach()
}

// link is a mux and what a session wants to know of it.
type link struct {
	mux
	transport     Transport
	dialled       bool
	state         tls.ConnectionState
	local, remote net.Addr

	// heard rises with whatever arrives from the other side.
	heard func() uint64
	// acked is true where heard counts acknowledgements too, so that silence after
	// something was sent means that the path is dead and not merely slow.
	acked bool
	// sent counts the packets sent, repetitions included; nil where that is not known.
	sent func() uint64
	// admitted is to be called once it is known who the other side is; nil: nobody asks.
	admitted func()
	// explain turns an error of the mux into the reason why a session ended.
	explain func(error) *ClosedError
}

var (
	errStreamLimit = errors.New("the other side's limit of streams is reached")
	errFlood       = errors.New("the other side opened more streams than it was allowed to")
	errMuxGone     = errors.New("connection lost")
)
