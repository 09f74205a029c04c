package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dialerFunc stands for the switchboard.
type dialerFunc func(ctx context.Context, tenant, addr string) (net.Conn, error)

func (f dialerFunc) Dial(ctx context.Context, tenant, addr string) (net.Conn, error) {
	return f(ctx, tenant, addr)
}

type fixture struct {
	ca   *pki.CA
	addr string
	// onAuthorize is told of each look at a certificate's tenant; set before the first request.
	onAuthorize func(pki.Identity)
}

func start(t *testing.T, dial dialerFunc) *fixture {
	t.Helper()
	return startWith(t, dial, func(*Config) {})
}

func startWith(t *testing.T, dial dialerFunc, set func(*Config), made ...func(*Server)) *fixture {
	t.Helper()
	ca, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.IssueBroker("b1", []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{ca: ca, addr: l.Addr().String(), onAuthorize: func(pki.Identity) {}}
	cfg := Config{
		TLS: pki.ServerTLS(func() (*tls.Certificate, error) { return &cert, nil },
			pki.VerifyPeer(ca.Pool, x509.ExtKeyUsageClientAuth, time.Now, nil), pki.ServerOptions{AllowTLS12: true}),
		Authorize: func(id pki.Identity, _ *x509.Certificate) error {
			f.onAuthorize(id)
			if id.Tenant == "gone" {
				return errors.New("no such tenant")
			}
			return nil
		},
		Dialer: dial, DialTimeout: 200 * time.Millisecond,
	}
	set(&cfg)
	srv := New(cfg)
	for _, f := range made {
		f(srv)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return f
}

// connect opens a connection as a tenant's API server does: TLS without ALPN, then CONNECT.
func (f *fixture) connect(t *testing.T, tenant, target string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	return f.connectFrom(t, "127.0.0.1", tenant, target)
}

// connectFrom is connect with a source address.
func (f *fixture) connectFrom(t *testing.T, source, tenant, target string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	certPEM, keyPEM, err := f.ca.IssueAPIServer(tenant, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	conn := f.tlsFrom(t, source, pair)
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatalf("CONNECT %s: %v", target, err)
	}
	return conn, r, resp
}

func (f *fixture) tls(t *testing.T, certs ...tls.Certificate) *tls.Conn {
	t.Helper()
	return f.tlsFrom(t, "127.0.0.1", certs...)
}

func (f *fixture) tlsFrom(t *testing.T, source string, certs ...tls.Certificate) *tls.Conn {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}, "tcp", f.addr, &tls.Config{RootCAs: f.ca.Pool(), Certificates: certs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

// pair is a loopback TCP connection: it has half-close, which net.Pipe has not.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestConnectCarriesBytesBothWaysWithHalfClose(t *testing.T) {
	near, far := pair(t)
	var asked string
	f := start(t, func(_ context.Context, tenant, addr string) (net.Conn, error) {
		asked = tenant + " " + addr
		return near, nil
	})
	conn, r, resp := f.connect(t, "acme", "edge-1:10250")
	if resp.StatusCode != 200 || resp.Status != "200 OK" || len(resp.Header) != 0 {
		t.Fatalf("answer = %q %v; want a bare 200", resp.Status, resp.Header)
	}
	if asked != "acme edge-1:10250" {
		t.Errorf("dialled %q", asked)
	}
	if r.Buffered() > 0 {
		t.Errorf("%d bytes follow the answer before anybody spoke", r.Buffered())
	}
	io.WriteString(conn, "hello")
	conn.(*tls.Conn).CloseWrite()
	if got, err := io.ReadAll(far); err != nil || string(got) != "hello" {
		t.Fatalf("far end read %q, %v", got, err)
	}
	io.WriteString(far, "late answer")
	far.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "late answer" {
		t.Fatalf("near end read %q, %v", got, err)
	}
}

// A client that does not wait for the answer loses nothing.
func TestEarlyBytesArrive(t *testing.T) {
	near, far := pair(t)
	f := start(t, func(context.Context, string, string) (net.Conn, error) { return near, nil })
	certPEM, keyPEM, _ := f.ca.IssueAPIServer("acme", time.Now(), time.Hour)
	cert, _ := tls.X509KeyPair(certPEM, keyPEM)
	conn := f.tls(t, cert)
	io.WriteString(conn, "CONNECT edge-1:10250 HTTP/1.1\r\nHost: x\r\n\r\nearly")
	conn.CloseWrite()
	if got, err := io.ReadAll(far); err != nil || string(got) != "early" {
		t.Fatalf("far end read %q, %v", got, err)
	}
}

func TestRefusalsSayWhyInTheStatusLine(t *testing.T) {
	errs := map[string]error{
		"absent:1": &tunnel.RefusedError{Code: wire.NotFound, Message: "no connected node has the name \"absent\""},
		"denied:1": &tunnel.RefusedError{Code: wire.Denied, Message: "line one\r\nInjected: header"},
		"broken:1": errors.New("something else"),
	}
	f := start(t, func(ctx context.Context, _, addr string) (net.Conn, error) {
		if addr == "slow:1" {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, errs[addr]
	})
	for target, want := range map[string]struct {
		code wire.Code
		text string
	}{
		"absent:1": {wire.NotFound, "no connected node"},
		"denied:1": {wire.Denied, "line one  Injected: header"},
		"broken:1": {wire.Unavailable, "something else"},
		"slow:1":   {wire.DialTimeout, "deadline"},
	} {
		_, _, resp := f.connect(t, "acme", target)
		if resp.StatusCode != want.code.HTTPStatus() || !strings.Contains(resp.Status, want.text) {
			t.Errorf("%s: answer %q; want %d with %q", target, resp.Status, want.code.HTTPStatus(), want.text)
		}
		if !dialID.MatchString(resp.Status) {
			t.Errorf("%s: answer %q has no id", target, resp.Status)
		}
		if resp.Header.Get("Injected") != "" {
			t.Errorf("%s: the message reached the headers", target)
		}
	}
}

func TestOnlyAPIServersAreServed(t *testing.T) {
	f := start(t, func(context.Context, string, string) (net.Conn, error) {
		t.Error("a dial happened")
		return nil, errors.New("no")
	})
	keyPEM, key, err := pki.MakeKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	csrPEM, err := pki.MakeCSR(key, "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseCSR(csrPEM, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := f.ca.IssueNode(csr, pki.Identity{TrustDomain: "mooring.test", Role: pki.RoleNode, Tenant: "acme", Name: "edge-1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	node, err := tls.X509KeyPair(chain, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	conn := f.tls(t, node)
	io.WriteString(conn, "CONNECT edge-1:10250 HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a node's certificate: %v, %v; want 403", resp, err)
	} else if !resp.Close {
		t.Error("the connection of a refused client is kept open, for as long as it likes")
	}

	if _, _, resp := f.connect(t, "gone", "edge-1:10250"); resp.StatusCode != http.StatusForbidden || !dialID.MatchString(resp.Status) ||
		!strings.Contains(resp.Status, "broker egress issue") {
		t.Errorf("a certificate that speaks for nobody: %s; want 403", resp.Status)
	}

	anonymous, err := tls.Dial("tcp", f.addr, &tls.Config{RootCAs: f.ca.Pool()})
	if err == nil {
		defer anonymous.Close()
		io.WriteString(anonymous, "CONNECT edge-1:10250 HTTP/1.1\r\nHost: x\r\n\r\n")
		if n, err := anonymous.Read(make([]byte, 1)); err == nil {
			t.Errorf("no certificate: read %d bytes; want the handshake refused", n)
		}
	}
}

func TestOtherMethodsAreRefused(t *testing.T) {
	f := start(t, func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no") })
	certPEM, keyPEM, _ := f.ca.IssueAPIServer("acme", time.Now(), time.Hour)
	cert, _ := tls.X509KeyPair(certPEM, keyPEM)
	conn := f.tls(t, cert)
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusMethodNotAllowed || !resp.Close {
		t.Fatalf("GET: %v, %v; want 405 and the connection's end", resp, err)
	}
}

// dialID is what the person at kubectl is shown.
var dialID = regexp.MustCompile(`\(dial ([0-9a-f]{16})\)`)

// A node of another tenant and one that nobody has: the same bytes come back but for the dial's id, which is random, and the same is done for them. All that
// the egress can ask anybody is the certificate's tenant, once, and the dialer, once and for that tenant.
func TestFault31ForeignAndAbsentAreOneAnswer(t *testing.T) {
	var mu sync.Mutex
	var calls []string
	note := func(call string) {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, call)
	}
	f := start(t, func(_ context.Context, tenant, addr string) (net.Conn, error) {
		note("dial " + tenant + " " + addr)
		host, _, _ := net.SplitHostPort(addr)
		return nil, &tunnel.RefusedError{Code: wire.NotFound, Message: "no connected node has the name or address " + host}
	})
	f.onAuthorize = func(id pki.Identity) { note("authorize " + id.Tenant) }
	ask := func(host string) (answer, done string) {
		mu.Lock()
		calls = nil
		mu.Unlock()
		_, _, resp := f.connect(t, "acme", host+":10250")
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		answer = dialID.ReplaceAllString(fmt.Sprint(resp.Status, " ", resp.Header, " ", string(body)), "(dial ID)")
		return strings.ReplaceAll(answer, host, "HOST"), strings.ReplaceAll(strings.Join(calls, ", "), host, "HOST")
	}
	foreign, doneForeign := ask("edge-2")
	absent, doneAbsent := ask("edge-9")
	if strings.Count(foreign, "(dial ID)") != 2 {
		t.Errorf("want the dial's id in status and body: %s", foreign)
	}
	if foreign != absent || !strings.HasPrefix(foreign, "404 ") {
		t.Errorf("another tenant's node: %s\none that nobody has: %s", foreign, absent)
	}
	if doneForeign != doneAbsent || doneForeign != "authorize acme, dial acme HOST:10250" {
		t.Errorf("for another tenant's node: %s; for one that nobody has: %s", doneForeign, doneAbsent)
	}
}
