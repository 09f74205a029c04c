// Command remotedialer is the least that makes a tunnel of Rancher's library: near takes CONNECT over mTLS and dials through the
// session of far, which came by a WebSocket over TLS.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/gorilla/websocket"
	"github.com/rancher/remotedialer"
)

const (
	idHeader = "X-Tunnel-Id"
	id       = "node"
)

func main() {
	role := flag.String("role", "", "near or far")
	north := flag.String("north", "", "where CONNECT is taken")
	south := flag.String("south", "", "where the WebSocket is taken")
	dir := flag.String("certs", "", "directory of ca.crt, part.crt and part.key")
	flag.Parse()
	run := map[string]func(string, string, string) error{"near": near, "far": far}[*role]
	if run == nil {
		run = func(string, string, string) error { return errors.New("--role: want near or far") }
	}
	if err := run(*north, *south, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "remotedialer:", err)
		os.Exit(1)
	}
}

func tlsOf(dir string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "part.crt"), filepath.Join(dir, "part.key"))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "localhost",
	}, nil
}

func near(north, south, dir string) error {
	conf, err := tlsOf(dir)
	if err != nil {
		return err
	}
	server := remotedialer.New(func(r *http.Request) (string, bool, error) { return r.Header.Get(idHeader), true, nil }, remotedialer.DefaultErrorWriter)
	nl, err := tls.Listen("tcp", north, conf)
	if err != nil {
		return err
	}
	sl, err := tls.Listen("tcp", south, conf)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- http.Serve(sl, server) }()
	go func() {
		for {
			c, err := nl.Accept()
			if err != nil {
				failed <- err
				return
			}
			go serve(c, server.Dialer(id))
		}
	}()
	fmt.Fprintln(os.Stderr, "serves")
	return <-failed
}

func serve(c net.Conn, dial remotedialer.Dialer) {
	defer c.Close()
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	far, err := dial(context.Background(), "tcp", req.Host)
	if err != nil {
		_, _ = fmt.Fprintf(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return
	}
	defer far.Close()
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(far, c)
		far.Close()
	})
	_, _ = io.Copy(c, far)
	c.Close()
	wg.Wait()
}

func far(_, south, dir string) error {
	conf, err := tlsOf(dir)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "dials")
	return remotedialer.ConnectToProxy(context.Background(), "wss://"+south+"/connect", http.Header{idHeader: {id}},
		func(string, string) bool { return true }, &websocket.Dialer{TLSClientConfig: conf}, nil)
}
