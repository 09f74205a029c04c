package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/hashicorp/yamux"
	"github.com/quic-go/quic-go"
)

// How the two ends of a chain that is no product are joined.
const (
	overLegs  = "legs"  // a TLS connection for each request: the practical limit
	overYamux = "yamux" // stock yamux on one TLS connection
	overQUIC  = "quic"  // stock quic-go
)

const bareALPN = "bench"

// nearEnd takes CONNECT over mTLS on north, and carries each connection to the far end, which came, or is reached, at south.
func nearEnd(ctx context.Context, over, north, south string, c certs) error {
	client, server, err := c.tls()
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", north, server)
	if err != nil {
		return err
	}
	open, err := southOf(ctx, over, south, client, server)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "serves")
	return serveConns(ctx, l, func(c net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil || req.Method != http.MethodConnect {
			return
		}
		far, err := open(ctx)
		if err != nil {
			fmt.Fprintln(os.Stderr, "open:", err)
			return
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			far.Close()
			return
		}
		join(c.(*tls.Conn), far)
	})
}

// southOf waits for the far end, where that is who dials, and returns how a stream to it is opened.
func southOf(ctx context.Context, over, south string, client, server *tls.Config) (func(context.Context) (duplex, error), error) {
	switch over {
	case overLegs:
		conf := client.Clone()
		conf.Certificates = nil
		d := tls.Dialer{Config: conf}
		return func(ctx context.Context) (duplex, error) {
			c, err := d.DialContext(ctx, "tcp", south)
			if err != nil {
				return nil, err
			}
			return c.(*tls.Conn), nil
		}, nil
	case overYamux:
		l, err := tls.Listen("tcp", south, server)
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(os.Stderr, "waits")
		c, err := l.Accept()
		l.Close()
		if err != nil {
			return nil, err
		}
		session, err := yamux.Client(c, yamux.DefaultConfig()) // who opens the streams
		if err != nil {
			return nil, err
		}
		return func(context.Context) (duplex, error) {
			s, err := session.OpenStream()
			if err != nil {
				return nil, err
			}
			return yamuxDuplex{s}, nil
		}, nil
	case overQUIC, overQUIC1200, overQUICNoGSO, overQUICBuffers:
		conf := server.Clone()
		conf.NextProtos = []string{bareALPN}
		c, err := acceptQUIC(ctx, over, south, conf)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (duplex, error) {
			s, err := c.OpenStreamSync(ctx)
			if err != nil {
				return nil, err
			}
			return quicDuplex{s}, nil
		}, nil
	}
	return nil, fmt.Errorf("unknown way %q", over)
}

// farEnd takes what the near end opens, and carries it to the target.
func farEnd(ctx context.Context, over, south, target string, c certs) error {
	client, server, err := c.tls()
	if err != nil {
		return err
	}
	carry := func(s duplex) {
		t, err := net.Dial("tcp", target)
		if err != nil {
			s.Close()
			return
		}
		join(t.(*net.TCPConn), s)
	}
	switch over {
	case overLegs:
		conf := server.Clone()
		conf.ClientAuth = tls.NoClientCert
		l, err := tls.Listen("tcp", south, conf)
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "waits")
		return serveConns(ctx, l, func(c net.Conn) { carry(c.(*tls.Conn)) })
	case overYamux:
		c, err := tls.Dial("tcp", south, client)
		if err != nil {
			return err
		}
		session, err := yamux.Server(c, yamux.DefaultConfig())
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "joined")
		for {
			s, err := session.AcceptStreamWithContext(ctx)
			if err != nil {
				return err
			}
			go carry(yamuxDuplex{s})
		}
	case overQUIC, overQUIC1200, overQUICNoGSO, overQUICBuffers:
		conf := client.Clone()
		conf.NextProtos = []string{bareALPN}
		c, err := dialQUIC(ctx, over, south, conf)
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "joined")
		for {
			s, err := c.AcceptStream(ctx)
			if err != nil {
				return err
			}
			go carry(quicDuplex{s})
		}
	}
	return fmt.Errorf("unknown way %q", over)
}

// duplex is a stream whose two directions end apart.
type duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// yamuxDuplex is a stream whose Close is a half-close.
type yamuxDuplex struct{ *yamux.Stream }

// CloseWrite ends what is written.
func (s yamuxDuplex) CloseWrite() error { return s.Close() }

type quicDuplex struct{ *quic.Stream }

// CloseWrite ends what is written.
func (s quicDuplex) CloseWrite() error { return s.Stream.Close() }

// Close ends both directions.
func (s quicDuplex) Close() error {
	s.CancelRead(0)
	return s.Stream.Close()
}

// join copies between a and b, as one would write it at once, until both directions have ended.
func join(a, b duplex) {
	var wg sync.WaitGroup
	for _, d := range [][2]duplex{{a, b}, {b, a}} {
		wg.Go(func() {
			_, _ = io.Copy(d[0], d[1])
			_ = d[0].CloseWrite()
		})
	}
	wg.Wait()
	a.Close()
	b.Close()
}
