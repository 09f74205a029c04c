package tunnel

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"github.com/prometheus/client_golang/prometheus"
)

const yamuxBacklog = 256

type Session struct{}

func (s *Session) Open(ctx context.Context, kind wire.Kind, target string) (*Stream, error) {
	panic("todo")
}
func (s *Session) Close(code wire.Code, msg string) error { panic("todo") }
func (s *Session) Drain(delay time.Duration) error        { panic("todo") }
func (s *Session) Draining() <-chan struct{}              { panic("todo") }
func (s *Session) Done() <-chan struct{}                  { panic("todo") }
func (s *Session) Err() error                             { panic("todo") }
func (s *Session) ConnectionState() tls.ConnectionState   { panic("todo") }
func (s *Session) PeerHello() wire.Hello                  { panic("todo") }
func (s *Session) Transport() Transport                   { panic("todo") }
func (s *Session) LocalAddr() net.Addr                    { panic("todo") }
func (s *Session) RemoteAddr() net.Addr                   { panic("todo") }
func (s *Session) Stats() Stats                           { panic("todo") }

type Stats struct {
	RTT               time.Duration
	OpenStreams       int
	Opened            uint64
	BytesIn, BytesOut uint64
	Since, LastHeard  time.Time
}

type Stream struct{ net.Conn }

func (s *Stream) CloseWrite() error          { panic("todo") }
func (s *Stream) Reset(code wire.Code) error { panic("todo") }
func (s *Stream) Abort() error               { panic("todo") }

type Request struct {
	Kind   wire.Kind
	Target string
}

func (r *Request) Accept() (*Stream, error)                { panic("todo") }
func (r *Request) Refuse(code wire.Code, msg string) error { panic("todo") }

type Dialer struct {
	Endpoint  string
	TLS       *tls.Config
	Transport Transport
	HeadStart time.Duration
	Config    Config
}

func (d *Dialer) Dial(ctx context.Context) (*Session, error) { panic("todo") }

type ClientConfig struct {
	Dialer                 func() *Dialer
	OnUp                   func(*Session)
	OnDown                 func(error)
	Tick                   func()
	TickInterval           time.Duration
	BackoffMin, BackoffMax time.Duration
	Logger                 *slog.Logger
}
type Client struct{}

func NewClient(c ClientConfig) *Client                          { panic("todo") }
func (c *Client) Run(ctx context.Context) error                 { panic("todo") }
func (c *Client) Session(ctx context.Context) (*Session, error) { panic("todo") }

type AcceptorConfig struct {
	TLS               *tls.Config
	Config            Config
	OnSession         func(ctx context.Context, s *Session)
	HandshakeTimeout  time.Duration
	StatelessResetKey *[32]byte
	Logger            *slog.Logger
}
type Acceptor struct{}

func NewAcceptor(c AcceptorConfig) *Acceptor                               { panic("todo") }
func (a *Acceptor) ServeQUIC(ctx context.Context, pc net.PacketConn) error { panic("todo") }
func (a *Acceptor) ServeConn(ctx context.Context, c net.Conn)              { panic("todo") }

type Metrics struct{}

func NewMetrics(reg prometheus.Registerer) *Metrics { panic("todo") }
