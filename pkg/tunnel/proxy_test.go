package tunnel

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// proxy is an HTTP proxy that answers CONNECT as answer says; where that is empty, it connects.
type proxy struct {
	ln     net.Listener
	user   string // "name:password"; empty: anybody
	answer string
	mute   bool // takes the request and says nothing

	mu       sync.Mutex // guards requests
	requests []*http.Request
	wg       sync.WaitGroup
}

func startProxy(t *testing.T, p *proxy) *url.URL {
	t.Helper()
	if p.ln == nil {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.ln = ln
	}
	p.wg.Go(func() {
		for {
			c, err := p.ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() { _ = p.ln.Close(); p.wg.Wait() })
	return &url.URL{Scheme: "http", Host: p.ln.Addr().String()}
}

func (p *proxy) serve(c net.Conn) {
	defer c.Close()
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	p.mu.Lock()
	p.requests = append(p.requests, req)
	p.mu.Unlock()
	req.Header.Set("Authorization", req.Header.Get("Proxy-Authorization"))
	name, password, _ := req.BasicAuth()
	switch {
	case p.mute:
		_, _ = io.Copy(io.Discard, c)
	case p.answer != "":
		_, _ = io.WriteString(c, p.answer)
	case p.user != "" && name+":"+password != p.user:
		_, _ = io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n")
	case req.Method != http.MethodConnect:
		_, _ = io.WriteString(c, "HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")
	default:
		far, err := net.Dial("tcp", req.Host)
		if err != nil {
			_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n")
		_, _, _ = splice.Splice(c, far)
	}
}

func (p *proxy) seen() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

func through(u *url.URL) func(*url.URL) (*url.URL, error) {
	return func(*url.URL) (*url.URL, error) { return u, nil }
}

// TestThroughProxy: with a proxy the session is over TCP at once, and the proxy sees the broker's name and TLS, no more.
func TestThroughProxy(t *testing.T) {
	b := startBroker(t, AcceptorConfig{Config: Config{Handler: echo}})
	for name, tc := range map[string]struct {
		user, gives string
		tls         bool
	}{
		"open":                   {},
		"with a user":            {user: "site 7:p@ss:word", gives: "site 7:p@ss:word"},
		"over TLS":               {tls: true, user: "a:b", gives: "a:b"},
		"with a user for naught": {gives: "a:b"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &proxy{user: tc.user}
			if tc.tls {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				p.ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{pki().broker}})
			}
			u := startProxy(t, p)
			if name, password, ok := strings.Cut(tc.gives, ":"); ok {
				u.User = url.UserPassword(name, password)
			}
			d := dialer(b.addr, TransportAuto, Config{})
			d.HeadStart, d.Proxy = time.Hour, through(u)
			if tc.tls {
				u.Scheme = "https"
				proxyRoots = pki().roots
				defer func() { proxyRoots = nil }()
			}
			s, err := d.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close(wire.Shutdown, "")
			b.next(t)
			if s.Transport() != TransportTCP {
				t.Errorf("over %s", s.Transport())
			}
			st, err := s.Open(t.Context(), wire.KindAPI, "")
			if err != nil {
				t.Fatal(err)
			}
			copyOver(t, st, 1<<20)
			_ = st.Close()
			if r := p.seen(); len(r) != 1 || r[0].Host != b.addr || r[0].RequestURI != b.addr {
				t.Errorf("the proxy was asked for %+v", r)
			}
		})
	}
}

// TestProxyRefuses: what a person reads who has to set it right. Nothing is said about passwords.
func TestProxyRefuses(t *testing.T) {
	b := startBroker(t, AcceptorConfig{})
	for name, tc := range map[string]struct {
		p    proxy
		want string
	}{
		"user wanted":   {proxy{user: "a:b"}, "wants a user and password"},
		"refused":       {proxy{answer: "HTTP/1.1 403 Forbidden by policy\r\nContent-Length: 0\r\n\r\n"}, `"403 Forbidden by policy"`},
		"a portal":      {proxy{answer: "HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n"}, `"302 Found"`},
		"garbage":       {proxy{answer: "SSH-2.0-OpenSSH\r\n"}, "does not answer CONNECT"},
		"cut short":     {proxy{answer: "HTTP/1.1 200 OK\r\nVia: "}, "does not answer CONNECT"},
		"endless":       {proxy{answer: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxProxyAnswer)}, "longer than"},
		"endless small": {proxy{answer: strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 10000)}, "longer than"},
		"mute":          {proxy{mute: true}, "no answer within"},
		"switching":     {proxy{answer: "HTTP/1.1 101 Switching Protocols\r\n\r\n"}, "refuses to connect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := startProxy(t, &tc.p)
			u.User = url.UserPassword("agent", "sesame")
			d := dialer(b.addr, TransportAuto, Config{HandshakeTimeout: time.Second})
			d.Proxy = through(u)
			_, err := d.Dial(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, ErrProxy) && !tc.p.mute || strings.Contains(err.Error(), "sesame") {
				t.Errorf("got %v, want %q of the proxy", err, tc.want)
			}
		})
	}
	for name, tc := range map[string]struct {
		transport Transport
		proxy     func(*url.URL) (*url.URL, error)
		want      string
	}{
		"QUIC alone":      {TransportQUIC, through(&url.URL{Scheme: "http", Host: "proxy:3128"}), "QUIC does not pass"},
		"another kind":    {TransportAuto, through(&url.URL{Scheme: "socks5", Host: "proxy:1080"}), "want http:// or https://"},
		"nothing to know": {TransportAuto, func(*url.URL) (*url.URL, error) { return nil, errors.New("no such variable") }, "no such variable"},
	} {
		d := dialer(b.addr, tc.transport, Config{})
		d.Proxy = tc.proxy
		if _, err := d.Dial(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// TestProxyForSome: a broker that NO_PROXY names is reached directly, over QUIC.
func TestProxyForSome(t *testing.T) {
	b := startBroker(t, AcceptorConfig{})
	d := dialer(b.addr, TransportAuto, Config{})
	var asked string
	d.Proxy = func(u *url.URL) (*url.URL, error) { asked = u.String(); return nil, nil }
	s, err := d.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Transport() != TransportQUIC || asked != "https://"+b.addr {
		t.Errorf("over %s, asked for %q", s.Transport(), asked)
	}
	_ = s.Close(wire.Shutdown, "")
}

func FuzzConnectAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200\r\n\r\n\x16\x03\x01", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n",
		"HTTP/1.1 407 No\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/2 200\r\n\r\n", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		early, err := readConnectAnswer(r)
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(r)
		if !bytes.HasSuffix(b, append(bytes.Clone(early), rest...)) || len(b)-r.Len() > maxProxyAnswer {
			t.Fatalf("%q: early %q, then %q", b, early, rest)
		}
	})
}
