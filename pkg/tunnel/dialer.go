package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/mooring-edge/mooring/internal/bulk"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"github.com/quic-go/quic-go"
)

const (
	defaultHeadStart = 1500 * time.Millisecond
	// addressDelay is between the attempts at the addresses of one name.
	addressDelay = 250 * time.Millisecond
)

// Dialer makes sessions from the agent's side.
type Dialer struct {
	// Endpoint is the broker's host:port, the same for UDP and TCP.
	Endpoint string
	// TLS holds the certificate to present and how the broker's is verified.
	// NextProtos, MinVersion and session tickets are seen to here; ServerName
	// defaults to Endpoint's host.
	TLS *tls.Config
	// Transport is TransportAuto if empty.
	Transport Transport
	// First is the transport that TransportAuto begins with: TransportQUIC (the default) or TransportTCP.
	First Transport
	// HeadStart is how long TransportAuto waits for the first transport before it dials the other beside it. Default 1.5 s.
	HeadStart time.Duration
	// Proxy is asked for the HTTP proxy by which the broker, as https://host:port, is to be reached; nil, or an answer of
	// nil: directly. http.ProxyFromEnvironment has this form, but for its argument. With a proxy, TransportAuto is TCP
	// alone, as CONNECT carries no UDP. User and password in the proxy's URL are sent by basic authentication.
	Proxy func(*url.URL) (*url.URL, error)
	// Handover tells the broker that this box has a session already which goes on until its streams have ended.
	Handover bool
	// Config is the session's.
	Config Config
}

// Dial makes a session. With TransportAuto the first transport to complete its
// handshake wins, and the other is closed before it has said hello; a QUIC that
// wins and then carries nothing is followed by TCP.
func (d *Dialer) Dial(ctx context.Context) (*Session, error) {
	e, err := d.prepare()
	if err != nil {
		return nil, fmt.Errorf("dial tunnel to %q: %w", d.Endpoint, err)
	}
	s, err := e.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial tunnel to %s: %w", d.Endpoint, err)
	}
	return s, nil
}

// chooses tells whether both transports may be tried.
func (d *Dialer) chooses() bool {
	if d.Transport != "" && d.Transport != TransportAuto {
		return false
	}
	if d.Proxy == nil {
		return true
	}
	u, err := d.Proxy(&url.URL{Scheme: "https", Host: d.Endpoint})
	return err == nil && u == nil
}

// expedition is a Dialer whose fields are known to make sense.
type expedition struct {
	host      string
	port      uint16
	tls       *tls.Config
	transport Transport
	first     Transport
	headStart time.Duration
	proxy     func(*url.URL) (*url.URL, error)
	via       *url.URL // the proxy, once asked for; nil: directly
	cfg       Config
}

// address is the broker's host:port.
func (e *expedition) address() string { return net.JoinHostPort(e.host, strconv.Itoa(int(e.port))) }

func (d *Dialer) prepare() (*expedition, error) {
	host, port, err := net.SplitHostPort(d.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w; want host:port", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || host == "" {
		return nil, errors.New("endpoint: want host:port with a port of 1 to 65535")
	}
	if d.TLS == nil {
		return nil, errors.New("no TLS configuration")
	}
	if d.TLS.InsecureSkipVerify && d.TLS.VerifyConnection == nil {
		return nil, errors.New("the TLS configuration would trust any broker: set RootCAs, or VerifyConnection")
	}
	e := &expedition{
		host: host, port: uint16(n), tls: d.TLS.Clone(), transport: d.Transport, first: d.First, headStart: d.HeadStart, proxy: d.Proxy,
		cfg: d.Config.populate(),
	}
	setDefault(&e.headStart, defaultHeadStart)
	if d.Handover {
		hello := e.cfg.Hello
		e.cfg.Hello = func() wire.Hello {
			h := hello()
			h.Handover = true
			return h
		}
	}
	e.tls.NextProtos = []string{wire.ALPN}
	e.tls.MinVersion = tls.VersionTLS13
	e.tls.ClientSessionCache = nil // each session shows its certificate
	e.tls.DynamicRecordSizingDisabled = true
	if e.tls.ServerName == "" {
		e.tls.ServerName = host
	}
	switch e.transport {
	case "":
		e.transport = TransportAuto
	case TransportAuto, TransportQUIC, TransportTCP:
	default:
		return nil, fmt.Errorf("transport %q: want auto, quic or tcp", e.transport)
	}
	if e.first != "" && e.first != TransportQUIC && e.first != TransportTCP {
		return nil, fmt.Errorf("first transport %q: want quic or tcp", e.first)
	}
	return e, nil
}

func (e *expedition) dial(ctx context.Context) (*Session, error) {
	var err error
	switch e.via, err = e.throughProxy(); {
	case err != nil:
		return nil, err
	case e.via != nil && e.transport == TransportQUIC:
		return nil, fmt.Errorf("%w %s: QUIC does not pass through it; set the transport to auto or tcp, or go without a proxy", ErrProxy, e.via.Redacted())
	}
	quic := func(after time.Duration) attempt { return e.attempt(TransportQUIC, after, e.dialQUIC) }
	tcp := func(after time.Duration) attempt { return e.attempt(TransportTCP, after, e.dialTCP) }
	switch {
	case e.via != nil, e.transport == TransportTCP:
		return e.dialAny(ctx, []attempt{tcp(0)})
	case e.transport == TransportQUIC:
		return e.dialAny(ctx, []attempt{quic(0)})
	case e.first == TransportTCP:
		return e.dialAny(ctx, []attempt{tcp(0), quic(e.headStart)})
	}
	return e.dialAny(ctx, []attempt{quic(0), tcp(e.headStart)})
}

// dialAny races the attempts, and lets the last one try once more if the first
// won with a link that then carried nothing.
func (e *expedition) dialAny(ctx context.Context, attempts []attempt) (*Session, error) {
	l, won, err := race(ctx, attempts, func(l *link) { l.close(wire.Canceled, "the other transport was faster", 0) })
	if err != nil {
		return nil, err
	}
	s, err := establish(ctx, l, e.cfg)
	last := len(attempts) - 1
	if err == nil || ctx.Err() != nil || won == last || !errors.Is(err, errTimeout) {
		return s, err
	}
	e.cfg.Logger.Warn("the handshake went through and nothing after it; trying the other transport", "transport", attempts[won].name, "err", err)
	l, err2 := attempts[last].dial(ctx)
	if err2 != nil {
		return nil, errors.Join(err, err2)
	}
	return establish(ctx, l, e.cfg)
}

// attempt makes one of the race's, which is bounded in time and counted.
func (e *expedition) attempt(t Transport, after time.Duration, dial func(context.Context) (*link, error)) attempt {
	return attempt{name: string(t), after: after, dial: func(ctx context.Context) (*link, error) {
		tctx, cancel := context.WithTimeoutCause(ctx, e.cfg.HandshakeTimeout,
			fmt.Errorf("no answer within %s", e.cfg.HandshakeTimeout))
		defer cancel()
		l, err := dial(tctx)
		switch {
		case err == nil:
			e.cfg.Metrics.dialled(t, "ok")
		case ctx.Err() != nil:
			e.cfg.Metrics.dialled(t, "lost")
		default:
			e.cfg.Metrics.dialled(t, "failed")
			if tctx.Err() != nil {
				err = context.Cause(tctx)
			}
		}
		return l, err
	}}
}

// dialQUIC tries the addresses of the host, a new one each addressDelay.
func (e *expedition) dialQUIC(ctx context.Context) (*link, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", e.host)
	if err != nil {
		return nil, err
	}
	var attempts []attempt
	for i, a := range addrs {
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.Unmap(), e.port))
		attempts = append(attempts, attempt{
			name: to.String(), after: time.Duration(i) * addressDelay,
			dial: func(ctx context.Context) (*link, error) { return e.dialUDP(ctx, to) },
		})
	}
	l, _, err := race(ctx, attempts, func(l *link) { l.close(wire.Canceled, "another address was faster", 0) })
	return l, err
}

func (e *expedition) dialUDP(ctx context.Context, to *net.UDPAddr) (*link, error) {
	network := "udp4"
	if to.IP.To4() == nil {
		network = "udp6"
	}
	pc, err := net.ListenUDP(network, nil)
	if err != nil {
		return nil, err
	}
	tr := &quic.Transport{Conn: pc}
	release := func() {
		_ = tr.Close()
		_ = pc.Close()
	}
	conn, err := tr.Dial(ctx, to, e.tls, quicConfig(e.cfg))
	if err != nil {
		release()
		if ctx.Err() == nil && isTimeout(err) {
			err = fmt.Errorf("no answer by UDP: blocked on the way, or nobody there: %w", err)
		}
		return nil, err
	}
	return newQUICLink(conn, true, release), nil
}

func (e *expedition) dialTCP(ctx context.Context) (*link, error) {
	nd := &net.Dialer{KeepAlive: -1, Control: boundSegments}
	var raw net.Conn
	var err error
	if e.via != nil {
		raw, err = DialProxy(ctx, nd, e.via, e.address())
	} else {
		raw, err = nd.DialContext(ctx, "tcp", e.address())
	}
	if err != nil {
		return nil, err
	}
	tuneTCP(raw)
	cc := bulk.New(raw)
	tc := tls.Client(cc, e.tls)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, explainHandshake(err)
	}
	if p := tc.ConnectionState().NegotiatedProtocol; p != wire.ALPN {
		_ = raw.Close()
		return nil, fmt.Errorf("the server at %s does not speak %s (it chose %q): not a broker?", raw.RemoteAddr(), wire.ALPN, p)
	}
	l, err := newYamuxLink(tc, cc, true, e.cfg)
	if err != nil {
		_ = raw.Close()
	}
	return l, err
}
