package tunnel

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// startProxy serves p, over TLS if cert is there.
func startProxy(t *testing.T, p *relay.Proxy, cert *tls.Certificate) *url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &url.URL{Scheme: "http", Host: l.Addr().String()}
	if cert != nil {
		u.Scheme = "https"
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*cert}})
	}
	p.Serve(l)
	t.Cleanup(p.Close)
	return u
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
			p := &relay.Proxy{User: tc.user}
			var cert *tls.Certificate
			if tc.tls {
				cert = &pki().broker
				proxyRoots = pki().roots
				defer func() { proxyRoots = nil }()
			}
			u := startProxy(t, p, cert)
			if name, password, ok := strings.Cut(tc.gives, ":"); ok {
				u.User = url.UserPassword(name, password)
			}
			d := dialer(b.addr, TransportAuto, Config{})
			d.HeadStart, d.Proxy = time.Hour, through(u)
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
			if got := p.Asked(); len(got) != 1 || got[0] != "CONNECT "+b.addr {
				t.Errorf("the proxy was asked for %q", got)
			}
		})
	}
}

// TestProxyRefuses: what a person reads who has to set it right. Nothing is said about passwords.
func TestProxyRefuses(t *testing.T) {
	b := startBroker(t, AcceptorConfig{})
	for name, tc := range map[string]struct {
		p    *relay.Proxy
		want string
	}{
		"user wanted":   {&relay.Proxy{User: "a:b"}, "wants a user and password"},
		"refused":       {&relay.Proxy{Answer: "HTTP/1.1 403 Forbidden by policy\r\nContent-Length: 0\r\n\r\n"}, `"403 Forbidden by policy"`},
		"a portal":      {&relay.Proxy{Answer: "HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n"}, `"302 Found"`},
		"garbage":       {&relay.Proxy{Answer: "SSH-2.0-OpenSSH\r\n"}, "does not answer CONNECT"},
		"cut short":     {&relay.Proxy{Answer: "HTTP/1.1 200 OK\r\nVia: "}, "does not answer CONNECT"},
		"endless":       {&relay.Proxy{Answer: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxProxyAnswer)}, "longer than"},
		"endless small": {&relay.Proxy{Answer: strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 10000)}, "longer than"},
		"mute":          {&relay.Proxy{Mute: true}, "no answer within"},
		"switching":     {&relay.Proxy{Answer: "HTTP/1.1 101 Switching Protocols\r\n\r\n"}, "refuses to connect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := startProxy(t, tc.p, nil)
			u.User = url.UserPassword("agent", "sesame")
			d := dialer(b.addr, TransportAuto, Config{HandshakeTimeout: time.Second})
			d.Proxy = through(u)
			_, err := d.Dial(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, ErrProxy) && !tc.p.Mute || strings.Contains(err.Error(), "sesame") {
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
