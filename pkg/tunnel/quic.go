package tunnel

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"github.com/quic-go/quic-go"
)

// quicInitialWindow is where a stream's window starts; quic-go raises it up to
// Config.StreamWindow for readers that keep up.
const quicInitialWindow = 512 << 10

// quicPacketSize is the size of datagrams from the first to the last: the least that QUIC allows, which every path takes
// that can carry QUIC at all. Larger ones are not looked for: quic-go does not go back from a size that a path took once,
// and bulk would stop for good where a path changes, while heartbeats, which are small, still passed.
const quicPacketSize = 1200

// quicConfig is the transport's configuration for either end. Keep-alives are
// off: the heartbeat does their work, and tells a dead process from a live one.
func quicConfig(c Config) *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:       c.HandshakeTimeout / 2, // quic-go doubles it
		MaxIdleTimeout:             c.HeartbeatTimeout,
		InitialStreamReceiveWindow: uint64(min(quicInitialWindow, c.StreamWindow)),
		MaxStreamReceiveWindow:     uint64(c.StreamWindow),
		// The whole from the start: a stalled stream's bytes count against it for as
		// long as it stalls, and must not take the others' share. A stream may stall
		// after its window was raised, so this is that of many such.
		InitialConnectionReceiveWindow: uint64(c.SessionWindow),
		MaxConnectionReceiveWindow:     uint64(c.SessionWindow),
		// Beyond MaxStreams there is room for streams that are being refused.
		MaxIncomingStreams:    int64(maxLive(c)),
		MaxIncomingUniStreams: -1,

		InitialPacketSize:       quicPacketSize,
		DisablePathMTUDiscovery: true,
	}
}

// maxLive is how many streams of the other side may exist at once: the open
// ones, the control stream, and those that are being refused or torn down.
func maxLive(c Config) int { return c.MaxStreams + 1 + yamuxBacklog }

// quicMux is a mux over one QUIC connection.
type quicMux struct {
	conn    *quic.Conn
	release func() // frees the dialling side's socket; nil on the accepting side
}

// newQUICLink takes conn over, after its handshake.
func newQUICLink(conn *quic.Conn, dialled bool, release func()) *link {
	return &link{
		admitted:  admittedOf(conn),
		mux:       &quicMux{conn: conn, release: release},
		transport: TransportQUIC,
		dialled:   dialled,
		state:     conn.ConnectionState().TLS,
		local:     conn.LocalAddr(),
		remote:    conn.RemoteAddr(),
		heard:     func() uint64 { return conn.ConnectionStats().PacketsReceived },
		acked:     true,
		sent:      func() uint64 { return conn.ConnectionStats().PacketsSent },
		explain:   closedByQUIC,
	}
}

func (m *quicMux) open(context.Context) (muxStream, error) {
	s, err := m.conn.OpenStream()
	var limit *quic.StreamLimitReachedError
	if errors.As(err, &limit) {
		return nil, errStreamLimit
	}
	if err != nil {
		return nil, closedByQUIC(err)
	}
	return &quicStream{s: s}, nil
}

func (m *quicMux) accept(ctx context.Context) (muxStream, error) {
	s, err := m.conn.AcceptStream(ctx)
	if err != nil {
		return nil, err
	}
	return &quicStream{s: s}, nil
}

func (m *quicMux) close(code wire.Code, msg string, linger time.Duration) {
	if linger > 0 {
		t := time.NewTimer(linger)
		defer t.Stop()
		select {
		case <-m.conn.Context().Done():
		case <-t.C:
		}
	}
	_ = m.conn.CloseWithError(quic.ApplicationErrorCode(code), msg)
	if m.release != nil {
		m.release()
	}
}

// closedByQUIC says why a connection ended.
func closedByQUIC(err error) *ClosedError {
	var (
		app   *quic.ApplicationError
		idle  *quic.IdleTimeoutError
		reset *quic.StatelessResetError
	)
	switch {
	case errors.As(err, &app):
		return &ClosedError{Code: wireCode(uint64(app.ErrorCode)), Message: wire.Printable(app.ErrorMessage), Remote: app.Remote}
	case errors.As(err, &idle):
		return &ClosedError{Code: wire.HeartbeatLost, Message: "no packet arrived for too long"}
	case errors.As(err, &reset):
		return &ClosedError{Code: wire.Unavailable, Message: "the other side does not know this connection any more: it was restarted", Remote: true}
	}
	return &ClosedError{Code: wire.Unavailable, Err: err}
}

// wireCode maps QUIC's 62-bit codes, of which the protocol uses a byte.
func wireCode(c uint64) wire.Code {
	if c > 0xff {
		return wire.Internal
	}
	return wire.Code(c)
}

// quicStream is a muxStream over a QUIC stream.
type quicStream struct {
	s   *quic.Stream
	wmu sync.Mutex // held through each write: quic-go forbids Close beside Write
}

func (q *quicStream) Read(p []byte) (int, error) {
	n, err := q.s.Read(p)
	return n, mapQUIC(err)
}

func (q *quicStream) Write(p []byte) (int, error) {
	q.wmu.Lock()
	defer q.wmu.Unlock()
	n, err := q.s.Write(p)
	return n, mapQUIC(err)
}

// waitRead returns once there is something to read, be it an error.
func (q *quicStream) waitRead() error {
	var b [1]byte
	_, err := q.s.Peek(b[:])
	return mapQUIC(err)
}

func (q *quicStream) SetReadDeadline(t time.Time) error  { return q.s.SetReadDeadline(t) }
func (q *quicStream) SetWriteDeadline(t time.Time) error { return q.s.SetWriteDeadline(t) }

func (q *quicStream) closeWrite() error {
	if !q.wmu.TryLock() {
		// A write is under way. What it has not sent is lost, so this is no clean end.
		q.s.CancelWrite(quic.StreamErrorCode(wire.Canceled))
		return nil
	}
	defer q.wmu.Unlock()
	return mapQUIC(q.s.Close())
}

func (q *quicStream) close() {
	_ = q.closeWrite() // an error says that it was reset before
	q.s.CancelRead(quic.StreamErrorCode(wire.OK))
}

func (q *quicStream) reset(code wire.Code) {
	q.s.CancelWrite(quic.StreamErrorCode(code))
	q.s.CancelRead(quic.StreamErrorCode(code))
}

func (q *quicStream) onAbort(f func()) func() {
	stop := context.AfterFunc(q.s.Context(), f)
	return func() { stop() }
}

// mapQUIC translates the errors of a stream's methods.
func mapQUIC(err error) error {
	var se *quic.StreamError
	switch {
	case err == nil || err == io.EOF:
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errTimeout
	case errors.As(err, &se):
		code := wireCode(uint64(se.ErrorCode))
		if !se.Remote && code == wire.OK {
			return errStreamClosed
		}
		return &ResetError{Code: code, Remote: se.Remote}
	case errors.Is(err, quic.ErrStreamClosed):
		return errStreamClosed
	}
	return closedByQUIC(err)
}
