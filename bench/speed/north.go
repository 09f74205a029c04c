package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/bench/internal/shore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	konnectivity "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/pkg/client"
)

// dialFunc makes a connection to the target through a chain.
type dialFunc func(ctx context.Context) (net.Conn, error)

// plainDial dials an address that leads to the target.
func plainDial(address string) dialFunc {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}
}

// mtlsConnect is kube-apiserver's HTTPConnect over TCP: a TLS connection with a client certificate for each dial, without resumption.
func mtlsConnect(address, target string, conf *tls.Config) dialFunc {
	return func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{Config: conf}
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return connect(c, target)
	}
}

// unixConnect is kube-apiserver's HTTPConnect over a unix socket.
func unixConnect(path, target string) dialFunc {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return connect(c, target)
	}
}

// connect has c lead to target, or closes it.
func connect(c net.Conn, target string) (net.Conn, error) {
	if err := shore.Connect(c, target); err != nil {
		c.Close()
		return nil, fmt.Errorf("CONNECT %s: %w", target, err)
	}
	return c, nil
}

// unixGRPC is kube-apiserver's GRPC over a unix socket: upstream's client, and as it does, a gRPC connection for each dial.
func unixGRPC(path, target string) dialFunc {
	return func(ctx context.Context) (net.Conn, error) {
		tunnelCtx, cancel := context.WithCancel(context.Background())
		t, err := konnectivity.CreateSingleUseGrpcTunnelWithContext(ctx, tunnelCtx, path,
			grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", path)
			}),
			grpc.WithBlock(),                 //lint:ignore SA1019 kube-apiserver does so
			grpc.WithReturnConnectionError(), //lint:ignore SA1019 and so
			grpc.WithTimeout(30*time.Second), //lint:ignore SA1019 and so
			grpc.WithTransportCredentials(insecure.NewCredentials()),
		)
		if err != nil {
			cancel()
			return nil, err
		}
		c, err := t.DialContext(ctx, "tcp", target)
		if err != nil {
			cancel()
			return nil, err
		}
		return &grpcConn{Conn: c, cancel: sync.OnceFunc(cancel)}, nil
	}
}

// grpcConn ends its gRPC connection with itself.
type grpcConn struct {
	net.Conn
	cancel func()
}

// Close implements net.Conn.
func (c *grpcConn) Close() error {
	err := c.Conn.Close()
	c.cancel()
	return err
}
