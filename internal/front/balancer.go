package front

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/proxyproto"
)

// fromBalancer tells whether a connection comes from where PROXY headers are believed, and wanted.
func (s *Server) fromBalancer(conn net.Conn) bool {
	from := proxyproto.AddrPort(conn.RemoteAddr()).Addr()
	for _, n := range s.cfg.Balancers {
		if n.Contains(from) {
			return true
		}
	}
	return false
}

// introduced takes a balancer's connection, and serves it as its client's.
func (s *Server) introduced(ctx context.Context, wg *sync.WaitGroup, conn net.Conn) {
	deadline := time.Now().Add(s.cfg.HelloTimeout)
	select {
	case s.headers <- struct{}{}:
	default:
		s.routed.WithLabelValues("overloaded").Inc()
		conn.Close()
		return
	}
	wg.Go(func() {
		remote, err := s.readHeader(ctx, conn, deadline)
		<-s.headers
		if err != nil {
			s.routed.WithLabelValues(outcome(err)).Inc()
			// Told, unlike a stranger's nonsense: the balancer or the configuration is wrong. But many look whether the port is open, and say nothing.
			level := slog.LevelInfo
			if errors.Is(err, io.EOF) {
				level = slog.LevelDebug
			}
			s.cfg.Logger.Log(ctx, level, "load balancer's connection closed: is it set to send PROXY headers (front.proxyProtocol.trusted)?", "remote", conn.RemoteAddr().String(), "err", err)
			conn.Close()
			return
		}
		if c := s.admit(conn, remote, deadline); c != nil {
			s.serve(ctx, c)
		}
	})
}

// readHeader returns the client's address; the balancer's own for a connection of its own.
func (s *Server) readHeader(ctx context.Context, conn net.Conn, deadline time.Time) (net.Addr, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	conn.SetReadDeadline(deadline)
	client, err := proxyproto.Read(conn)
	if err != nil {
		return nil, err
	}
	if !client.IsValid() {
		return conn.RemoteAddr(), nil
	}
	return net.TCPAddrFromAddrPort(client), nil
}
