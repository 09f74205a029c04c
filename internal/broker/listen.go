package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/mooring-edge/mooring/internal/listen"
	"github.com/mooring-edge/mooring/internal/strangers"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// apiDialTimeout bounds the connection to a tenant's API server.
const apiDialTimeout = 10 * time.Second

// handshakeTimeout bounds a TLS handshake on the enrolment server.
const handshakeTimeout = 10 * time.Second

// listeners are all ports of the broker. They are opened before anything runs, so that a port which
// is taken is an error at the start and not a half-working broker.
type listeners struct {
	tcp, egress, admin net.Listener
	health             net.Listener // nil if turned off
	peers              net.Listener // nil if there is one broker only
	udp                net.PacketConn
}

func (b *broker) listen(ctx context.Context) (_ *listeners, err error) {
	ln := &listeners{}
	defer func() {
		if err != nil {
			ln.close()
		}
	}()
	cfg := b.cfg
	if ln.tcp, ln.udp, err = listenBoth(ctx, cfg.Front.Listen); err != nil {
		return nil, fmt.Errorf("front.listen: %w", err)
	}
	if ln.egress, err = net.Listen("tcp", cfg.Egress.Listen); err != nil {
		return nil, fmt.Errorf("egress.listen: %w", err)
	}
	if ln.admin, err = listenUnix(cfg.AdminSocket); err != nil {
		return nil, fmt.Errorf("adminSocket: %w", err)
	}
	if cfg.HealthAddress != "" {
		if ln.health, err = net.Listen("tcp", cfg.HealthAddress); err != nil {
			return nil, fmt.Errorf("healthAddress: %w", err)
		}
	}
	if cfg.Peer.Listen != "" {
		if ln.peers, err = net.Listen("tcp", cfg.Peer.Listen); err != nil {
			return nil, fmt.Errorf("peer.listen: %w", err)
		}
	}
	return ln, nil
}

// listenBoth takes one port for TCP and UDP. Where the choice is left to the system (port 0), that chooses for TCP
// alone, and another program may have the port for UDP: then it is asked again.
func listenBoth(ctx context.Context, addr string) (net.Listener, net.PacketConn, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, nil, err
	}
	for tries := 1; ; tries++ {
		tcp, err := tunnel.ListenTCP(ctx, addr)
		if err != nil {
			return nil, nil, err
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return tcp, udp, nil
		}
		tcp.Close()
		if port != "0" || tries == 20 {
			return nil, nil, err
		}
	}
}

// newDoor bounds the strangers at the public port.
func (b *broker) newDoor() *strangers.Door {
	l := b.cfg.Front.Limits
	return strangers.NewDoor(strangers.Config{Port: "front", Registerer: b.metrics, Logger: b.log, Limits: strangers.Limits{
		Max: l.MaxUnauthenticated, MaxPerSource: l.MaxUnauthenticatedPerSource, Rate: l.AcceptRate, RatePerSource: l.AcceptRatePerSource,
	}})
}

// newEgressDoor does so where API servers call. One that goes wild must not take the processors from the others.
func (b *broker) newEgressDoor() *strangers.Door {
	most := b.cfg.Egress.MaxUnauthenticated
	return strangers.NewDoor(strangers.Config{Port: "egress", Registerer: b.metrics, Logger: b.log, Limits: strangers.Limits{
		Max: most, MaxPerSource: most / 4, RatePerSource: b.cfg.Egress.AcceptRatePerSource, Burst: 1, // an API server is no fleet
	}})
}

func (ln *listeners) close() {
	for _, c := range []io.Closer{ln.tcp, ln.udp, ln.egress, ln.admin, ln.health, ln.peers} {
		if c != nil {
			c.Close()
		}
	}
}

// listenUnix opens the admin socket. The store's lock, taken before, says that no other broker of this data directory runs, so
// who answers at the path is one of another's.
func listenUnix(path string) (net.Listener, error) {
	l, err := listen.Unix(path)
	if errors.Is(err, listen.ErrAnswered) {
		return nil, fmt.Errorf("%s: another broker answers there", path)
	}
	return l, err
}

func httpServer(ctx context.Context, h http.Handler, log *slog.Logger) *http.Server {
	var http1 http.Protocols // and no other, also where nobody asks by ALPN
	http1.SetHTTP1(true)
	return &http.Server{
		Handler:           h,
		Protocols:         &http1,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      2 * time.Minute,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
}

// serveHTTP serves until ctx ends.
func serveHTTP(ctx context.Context, srv *http.Server, l net.Listener) error {
	return untilDone(ctx, srv, func() error { return srv.Serve(l) })
}

// serveHTTPS serves with srv.TLSConfig, whose ALPN protocol is our own, until ctx ends.
func serveHTTPS(ctx context.Context, srv *http.Server, l net.Listener) error {
	return untilDone(ctx, srv, func() error { return srv.Serve(tlsListener{l, srv.TLSConfig}) })
}

// tlsListener is tls.NewListener with a connection type that http.Server does not know: it closes a
// *tls.Conn on which a protocol other than HTTP's own names was agreed.
type tlsListener struct {
	net.Listener
	config *tls.Config
}

func (l tlsListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tlsConn{tls.Server(c, l.config)}, nil
}

type tlsConn struct{ *tls.Conn }

// ConnectionState is what http.Server asks for first, in the connection's own goroutine, and puts into
// each request; so this is the place for the handshake. Its error is that of the read which follows.
func (c tlsConn) ConnectionState() tls.ConnectionState {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	_ = c.HandshakeContext(ctx)
	return c.Conn.ConnectionState()
}

func untilDone(ctx context.Context, srv *http.Server, serve func() error) error {
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	err := serve()
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
