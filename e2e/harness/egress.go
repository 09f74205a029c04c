package harness

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Connect asks the broker for a connection as the tenant's API server would, with that one's
// certificate or through its sidecar. It returns the connection, or nil and the answer, byte for byte.
func (t *Tenant) Connect(ctx context.Context, target string) (net.Conn, []byte, error) {
	dial := t.askBroker
	if t.withSidecar() {
		dial = t.askSidecar
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(40 * time.Second))
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	var answer bytes.Buffer
	resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &answer)), &http.Request{Method: http.MethodConnect})
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("read the answer to CONNECT %s: %w (%q)", target, err, answer.Bytes())
	}
	if resp.StatusCode == http.StatusOK {
		return conn, nil, nil
	}
	_, err = io.Copy(&answer, conn) // the rest, up to the broker's close
	_ = conn.Close()
	return nil, answer.Bytes(), err
}

// askBroker makes the connection that an API server without a sidecar makes for each dial.
func (t *Tenant) askBroker(ctx context.Context) (net.Conn, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(t.EgressDir(), "client.crt"), filepath.Join(t.EgressDir(), "client.key"))
	if err != nil {
		return nil, err
	}
	roots, err := certPool(filepath.Join(t.EgressDir(), "ca.crt"))
	if err != nil {
		return nil, err
	}
	raw, err := t.platform.Net.Dial(ctx, "tcp", EgressAddress)
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(EgressAddress)
	return tls.Client(raw, &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, ServerName: host}), nil
}

// KubeletCertificate connects to a target as the tenant's API server would and returns the certificate
// of the kubelet that answers, verified by the tenant's CA for the name.
func (t *Tenant) KubeletCertificate(ctx context.Context, target, name string) (*x509.Certificate, error) {
	conn, answer, err := t.Connect(ctx, target)
	if err != nil {
		return nil, err
	}
	if conn == nil {
		return nil, fmt.Errorf("CONNECT %s as %s: %s", target, t.Name, answer)
	}
	defer conn.Close()
	roots, err := certPool(t.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	inner := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: name})
	if err := inner.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS with the kubelet behind %s as %s: %w", target, t.Name, err)
	}
	return inner.ConnectionState().PeerCertificates[0], nil
}

func certPool(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return pool, nil
}
