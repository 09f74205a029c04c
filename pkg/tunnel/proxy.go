package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// maxProxyAnswer bounds what is read of a proxy's answer to CONNECT, in bytes.
const maxProxyAnswer = 16 << 10

// proxyRoots vouch for proxies that speak TLS; nil: the system's do. Set by tests.
var proxyRoots *x509.CertPool

// ErrProxy is in the chain of what goes wrong between this side and its proxy.
var ErrProxy = errors.New("proxy")

// throughProxy asks which proxy leads to the broker; nil: none.
func (e *expedition) throughProxy() (*url.URL, error) {
	if e.proxy == nil {
		return nil, nil
	}
	u, err := e.proxy(&url.URL{Scheme: "https", Host: e.address()})
	if err != nil {
		return nil, fmt.Errorf("%w for %s: %w", ErrProxy, e.address(), err)
	}
	if u != nil && u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%w %s: a %q proxy is not supported; want http:// or https://", ErrProxy, u.Redacted(), u.Scheme)
	}
	return u, nil
}

// DialProxy connects to target, a host:port, through an HTTP proxy (CONNECT, RFC 9110, section 9.3.6), whose URL is
// http://[user:password@]host[:port] or https://... ErrProxy is in the chain of its errors, which hold no password.
// nd is what the proxy itself is dialled with. ctx bounds the whole, and has no say afterwards.
func DialProxy(ctx context.Context, nd *net.Dialer, proxy *url.URL, target string) (net.Conn, error) {
	port := proxy.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[proxy.Scheme]
	}
	raw, err := nd.DialContext(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrProxy, proxy.Redacted(), err)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(aLongTimeAgo) })
	c, err := connectVia(ctx, raw, proxy, target)
	if !stop() && err == nil { // the deadline is set or about to be
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("%w %s: %w", ErrProxy, proxy.Redacted(), err)
	}
	return c, nil
}

// connectVia has the proxy at the other end of raw connect to target.
func connectVia(ctx context.Context, raw net.Conn, proxy *url.URL, target string) (net.Conn, error) {
	c := raw
	if proxy.Scheme == "https" {
		tc := tls.Client(raw, &tls.Config{ServerName: proxy.Hostname(), MinVersion: tls.VersionTLS12, RootCAs: proxyRoots})
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		c = tc
	}
	req := "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n"
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		req += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(c, req+"\r\n"); err != nil {
		return nil, err
	}
	early, err := readConnectAnswer(c)
	if err != nil {
		return nil, err
	}
	return &proxiedConn{Conn: c, early: early}, nil
}

// readConnectAnswer reads the answer to CONNECT, and returns what came behind it.
func readConnectAnswer(r io.Reader) (early []byte, err error) {
	limited := &io.LimitedReader{R: r, N: maxProxyAnswer}
	br := bufio.NewReaderSize(limited, 4<<10)
	for {
		res, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
		switch {
		case err != nil && limited.N <= 0:
			return nil, fmt.Errorf("its answer to CONNECT is longer than %d bytes", maxProxyAnswer)
		case err != nil:
			return nil, fmt.Errorf("it does not answer CONNECT as a proxy does: %w", err)
		case res.StatusCode == http.StatusProxyAuthRequired:
			return nil, errors.New("it wants a user and password that it knows (407): set them in the proxy's URL")
		case res.StatusCode >= 300 || res.StatusCode == http.StatusSwitchingProtocols:
			return nil, fmt.Errorf("it refuses to connect (%s)", printableStatus(res.Status))
		case res.StatusCode >= 200:
			early, err = br.Peek(br.Buffered())
			return early, err
		}
		// 1xx: another answer follows
	}
}

// printableStatus bounds a status line that a stranger wrote.
func printableStatus(s string) string {
	return fmt.Sprintf("%.100q", s)
}

// proxiedConn is a connection through a proxy, with what came early.
type proxiedConn struct {
	net.Conn
	early []byte
}

// Read implements net.Conn.
func (c *proxiedConn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// NetConn lets the socket be tuned.
func (c *proxiedConn) NetConn() net.Conn { return c.Conn }
