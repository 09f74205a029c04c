package tunnel

import (
	"context"
	"log/slog"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Transport names what carries a session.
type Transport string

// The transports. A session's own is never TransportAuto.
const (
	TransportAuto Transport = "auto" // QUIC first, TCP beside it when QUIC is slow to answer
	TransportQUIC Transport = "quic"
	TransportTCP  Transport = "tcp" // TLS 1.3 and yamux
)

// Handler answers one stream that the other side opened, in a goroutine of its
// own. A request that it leaves unanswered is refused with wire.Internal. ctx
// ends with the session, and when the other side gives the request up before
// it is answered; a handler returns soon after ctx ended.
type Handler func(ctx context.Context, s *Session, r *Request)

// Config is what both ends of a session have in common. The zero value of each
// field means its default; a Config is copied, never changed.
type Config struct {
	// Hello makes what this end says of itself, once for each session. nil: an empty hello.
	Hello func() wire.Hello
	// Handler answers the other side's opens. nil: each is refused with wire.Denied.
	Handler Handler

	// OnBundle is called with each CA bundle that the other side sends, OnStatus with
	// each status, OnNetwork with each network: in their order, by the one goroutine that reads the control
	// stream, so they must not block; the first may come before Dial has returned.
	// nil: what arrives is checked and dropped.
	OnBundle  func(*Session, wire.Bundle)
	OnStatus  func(*Session, wire.Status)
	OnNetwork func(*Session, wire.Network)

	// HeartbeatInterval is the time between two pings of the dialling side. Default 25 s.
	HeartbeatInterval time.Duration
	// HeartbeatTimeout is the silence after which a session is given up. Default 60 s.
	HeartbeatTimeout time.Duration
	// ProbeTimeout is how long a ping that was sent upon a suspicion (an open without
	// answer, packets without acknowledgement) may go unanswered. Default 5 s.
	ProbeTimeout time.Duration
	// OpenTimeout bounds Session.Open, over and above its context. Default 15 s.
	OpenTimeout time.Duration
	// HandshakeTimeout bounds a handshake up to and including the hello, and how long
	// a stream may take to say what it is for. Default 10 s.
	HandshakeTimeout time.Duration

	// MaxStreams bounds the open streams of a session, in each direction by itself.
	// One more is refused with wire.Overloaded at once. Default 1000.
	MaxStreams int
	// MaxPending bounds the opens of a session that wait for an answer, in each
	// direction by itself. Default 100; at most 256 take effect.
	MaxPending int
	// StreamWindow is how many bytes a stream may hold that its reader has not taken
	// yet, which is also what is on its way at most: to fill a path it takes what that
	// carries in a round trip, and a third more, as grants come late. A stream begins with
	// less (512 KiB over QUIC, 256 KiB over TCP) and gets more only for a reader that keeps
	// up. Default 8 MiB, which is 170 Mbit/s at 300 ms; at least 256 KiB, at most 1 GiB.
	StreamWindow int
	// SessionWindow bounds the same for all streams of a session together. Over TCP it is
	// what they hold beyond 256 KiB each, which every stream has in any case: the most
	// that a session makes this end hold is SessionWindow and 256 KiB for each stream
	// (628 MiB with the defaults and MaxStreams in either direction). Over QUIC it is
	// the whole: streams that stall take the others' share, and may take all but a
	// quarter before those notice. Default 128 MiB, the windows of 16 streams; at least StreamWindow.
	SessionWindow int

	// Logger defaults to discarding.
	Logger *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

const (
	defaultHeartbeatInterval = 25 * time.Second
	defaultHeartbeatTimeout  = 60 * time.Second
	defaultProbeTimeout      = 5 * time.Second
	defaultOpenTimeout       = 15 * time.Second
	defaultHandshakeTimeout  = 10 * time.Second
	defaultMaxStreams        = 1000
	defaultMaxPending        = 100
	defaultStreamWindow      = 8 << 20
	minStreamWindow          = baseWindow
	maxStreamWindow          = 1 << 30
	defaultSessionWindow     = 128 << 20
)

// populate returns a copy of c with the defaults filled in.
func (c Config) populate() Config {
	if c.Hello == nil {
		c.Hello = func() wire.Hello { return wire.Hello{} }
	}
	if c.Handler == nil {
		c.Handler = func(_ context.Context, _ *Session, r *Request) {
			_ = r.Refuse(wire.Denied, "this side accepts no streams")
		}
	}
	if c.OnBundle == nil {
		c.OnBundle = func(*Session, wire.Bundle) {}
	}
	if c.OnStatus == nil {
		c.OnStatus = func(*Session, wire.Status) {}
	}
	if c.OnNetwork == nil {
		c.OnNetwork = func(*Session, wire.Network) {}
	}
	setDefault(&c.HeartbeatInterval, defaultHeartbeatInterval)
	setDefault(&c.HeartbeatTimeout, defaultHeartbeatTimeout)
	setDefault(&c.ProbeTimeout, defaultProbeTimeout)
	setDefault(&c.OpenTimeout, defaultOpenTimeout)
	setDefault(&c.HandshakeTimeout, defaultHandshakeTimeout)
	setDefault(&c.MaxStreams, defaultMaxStreams)
	setDefault(&c.MaxPending, defaultMaxPending)
	setDefault(&c.StreamWindow, defaultStreamWindow)
	setDefault(&c.SessionWindow, defaultSessionWindow)
	c.MaxPending = min(c.MaxPending, yamuxBacklog)
	c.StreamWindow = min(max(c.StreamWindow, minStreamWindow), maxStreamWindow)
	c.SessionWindow = max(c.SessionWindow, c.StreamWindow)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// setDefault sets what is not set, or makes no sense, to its default.
func setDefault[T time.Duration | int](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}
