package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/bulk"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
	"github.com/quic-go/quic-go"
)

// AcceptorConfig is what an Acceptor needs.
type AcceptorConfig struct {
	// TLS holds the broker's certificate and how agents' are verified: by
	// VerifyConnection, or by ClientCAs with tls.RequireAndVerifyClientCert. A
	// certificate is demanded in any case. NextProtos, MinVersion and session
	// tickets are seen to here, also for what GetConfigForClient returns.
	TLS *tls.Config
	// Config is the sessions'.
	Config Config
	// Adjust may change the configuration of one session whose peer's certificate was verified: who handles
	// its streams, and MaxPending. It must not block. nil: all sessions have Config.
	Adjust func(tls.ConnectionState, *Config)
	// OnSession is called for each session once both have said hello, in a
	// goroutine of its own; the session lives on when it returns. ctx ends with
	// the session. Who lets the session in calls Admitted. May be nil.
	OnSession func(ctx context.Context, s *Session)
	// Enter is asked before a QUIC handshake is taken up, with its source, or nil where
	// nobody has proven that the sender has that address. What it returns an error for is
	// refused at once; leave is called once the session was admitted or is gone. It
	// must not block: it holds up what else arrives. nil: no bound. A TCP connection
	// passed such a bound before it comes here, and has a method Admitted if that
	// wants to be told.
	Enter func(source net.Addr) (leave func(), err error)
	// HandshakeTimeout is Config.HandshakeTimeout, if that is not set.
	HandshakeTimeout time.Duration
	// StatelessResetKey must survive restarts: by it an agent that sends to a broker
	// which was killed learns at once that its session is gone. nil: it learns by timeout.
	StatelessResetKey *[32]byte
	// Logger is Config.Logger, if that is not set.
	Logger *slog.Logger
}

// Acceptor makes sessions from the broker's side, of the packets and
// connections that it is handed. Any number of Serve calls may run beside each other.
type Acceptor struct {
	tls       *tls.Config
	cfg       Config
	adjust    func(tls.ConnectionState, *Config)
	onSession func(ctx context.Context, s *Session)
	enter     func(net.Addr) (func(), error)
	resetKey  *quic.StatelessResetKey
	log       *slog.Logger
}

// NewAcceptor makes an Acceptor. It starts nothing.
func NewAcceptor(c AcceptorConfig) *Acceptor {
	if c.Config.HandshakeTimeout == 0 {
		c.Config.HandshakeTimeout = c.HandshakeTimeout
	}
	if c.Config.Logger == nil {
		c.Config.Logger = c.Logger
	}
	a := &Acceptor{cfg: c.Config.populate(), adjust: c.Adjust, onSession: c.OnSession, enter: c.Enter}
	if a.enter == nil {
		a.enter = func(net.Addr) (func(), error) { return func() {}, nil }
	}
	a.log = a.cfg.Logger
	if c.TLS != nil {
		a.tls = serverTLS(c.TLS)
	}
	if c.StatelessResetKey != nil {
		key := quic.StatelessResetKey(*c.StatelessResetKey)
		a.resetKey = &key
	}
	return a
}

// serverTLS returns a copy of c that speaks our protocol only, and to nobody
// without a certificate. Without tickets no session of one tenant can be
// resumed past another's verification.
func serverTLS(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = []string{wire.ALPN}
	c.MinVersion = tls.VersionTLS13
	c.SessionTicketsDisabled = true
	c.DynamicRecordSizingDisabled = true
	if c.ClientAuth != tls.RequireAndVerifyClientCert {
		c.ClientAuth = tls.RequireAnyClientCert
	}
	if get := c.GetConfigForClient; get != nil {
		c.GetConfigForClient = func(hi *tls.ClientHelloInfo) (*tls.Config, error) {
			cc, err := get(hi)
			if err != nil || cc == nil {
				return nil, err
			}
			cc = serverTLS(cc)
			return cc, verifies(cc)
		}
	}
	return c
}

// verifies returns an error for a configuration by which any certificate would do.
func verifies(c *tls.Config) error {
	if c == nil {
		return errors.New("tunnel acceptor: no TLS configuration")
	}
	if c.VerifyConnection == nil && c.ClientAuth != tls.RequireAndVerifyClientCert && c.GetConfigForClient == nil {
		return errors.New("tunnel acceptor: the TLS configuration would trust any client certificate: set VerifyConnection, or ClientCAs with RequireAndVerifyClientCert")
	}
	return nil
}

// ServeQUIC takes sessions from pc until ctx ends, which closes them with
// wire.Shutdown, or pc fails. It returns when they and their handlers have
// ended. pc stays the caller's to close, but nobody else may read it meanwhile.
func (a *Acceptor) ServeQUIC(ctx context.Context, pc net.PacketConn) error {
	if err := verifies(a.tls); err != nil {
		return err
	}
	door := newQUICDoor(a.enter)
	tr := &quic.Transport{
		Conn:                pc,
		StatelessResetKey:   a.resetKey,
		VerifySourceAddress: door.wantsProof,
		ConnContext:         door.take,
	}
	ln, err := tr.Listen(a.tls, quicConfig(a.cfg))
	if err != nil {
		return fmt.Errorf("listen for QUIC on %s: %w", pc.LocalAddr(), err)
	}
	var sessions sync.WaitGroup
	for {
		conn, aerr := ln.Accept(ctx)
		if aerr != nil {
			err = aerr
			break
		}
		sessions.Go(func() { a.serve(ctx, newQUICLink(conn, false, nil)) })
	}
	_ = ln.Close()
	if ctx.Err() == nil { // the socket failed: the sessions are dead, and find out by themselves
		_ = tr.Close()
	}
	sessions.Wait()
	_ = tr.Close()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("accept QUIC on %s: %w", pc.LocalAddr(), err)
}

// ServeConn makes a session of c, a TCP connection of which nothing was read
// (or which replays what was), and returns when that and its handlers have
// ended. ctx's end closes it with wire.Shutdown. c is closed in any case.
func (a *Acceptor) ServeConn(ctx context.Context, c net.Conn) {
	var l *link
	var err error
	aside(func() { l, err = a.handshake(ctx, c) })
	if err != nil {
		_ = c.Close()
		a.log.Info("a connection to the tunnel's port came to nothing", "transport", string(TransportTCP), "remote", c.RemoteAddr().String(), "err", err)
		return
	}
	a.serve(ctx, l)
}

func (a *Acceptor) handshake(ctx context.Context, c net.Conn) (*link, error) {
	if err := verifies(a.tls); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.HandshakeTimeout)
	defer cancel()
	tuneTCP(c)
	cc := bulk.New(c)
	tc := tls.Server(cc, a.tls)
	if err := tc.HandshakeContext(ctx); err != nil {
		lingeringClose(ctx, c)
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	if p := tc.ConnectionState().NegotiatedProtocol; p != wire.ALPN {
		return nil, fmt.Errorf("the client did not ask for %s by ALPN", wire.ALPN)
	}
	l, err := newYamuxLink(tc, cc, false, a.cfg)
	if err != nil {
		return nil, err
	}
	if w, ok := c.(interface{ Admitted() }); ok {
		l.admitted = w.Admitted
	}
	return l, nil
}

// lingeringClose lets the other side read the alert that says why the handshake failed: a client of TLS
// 1.3 has sent more by then, and closing with that unread would have the kernel take the alert back.
func lingeringClose(ctx context.Context, c net.Conn) {
	h, ok := c.(interface{ CloseWrite() error })
	if !ok || ctx.Err() != nil || h.CloseWrite() != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(aLongTimeAgo) })()
	_ = c.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c, maxLinger)
}

// maxLinger is how many bytes of a client that was turned away are read, and dropped.
const maxLinger = 256 << 10

// serve has a link say hello, and stays until its session has ended.
func (a *Acceptor) serve(ctx context.Context, l *link) {
	var s *Session
	var err error
	cfg := a.cfg
	if a.adjust != nil {
		a.adjust(l.state, &cfg)
		cfg = cfg.populate() // the bounds hold for what was changed, too
	}
	aside(func() { s, err = introduce(ctx, l, cfg, false) })
	if err != nil {
		a.log.Info("a connection to the tunnel's port did not say hello", "transport", string(l.transport), "remote", l.remote.String(), "err", err)
		return
	}
	if a.onSession != nil {
		s.handlers.Go(func() { a.onSession(s.ctx, s) })
	} else {
		s.Admitted()
	}
	defer context.AfterFunc(ctx, func() { _ = s.Close(wire.Shutdown, "the broker is stopping") })()
	s.acceptLoop() // here: of ten thousand sessions each goroutine counts
	s.wait()
}
