package front

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/mooring-edge/mooring/internal/strangers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clientHelloBytes is what a crypto/tls client sends first.
func clientHelloBytes(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	c, s := net.Pipe()
	defer s.Close()
	got := make(chan []byte, 1)
	go func() {
		buf := make([]byte, maxHello)
		n, _ := s.Read(buf)
		s.Close()
		got <- buf[:n]
	}()
	tls.Client(c, cfg).Handshake()
	c.Close()
	return <-got
}

func config(protos ...string) *tls.Config {
	return &tls.Config{ServerName: "edge.example", NextProtos: protos}
}

func TestPeekHelloHoweverItIsSplit(t *testing.T) {
	for name, protos := range map[string][]string{
		"small":  {"mooring/1"},
		"> 4KiB": append(slices.Repeat([]string{strings.Repeat("x", 200)}, 30), "mooring/1"),
	} {
		for _, step := range []int{1, 7, 1 << 20} {
			hello := clientHelloBytes(t, config(protos...))
			c, s := net.Pipe()
			go func() {
				for b := range slices.Chunk(hello, step) {
					c.Write(b)
				}
				c.Write([]byte("after"))
				c.Close()
			}()
			got, replay, err := peekHello(s)
			if err != nil || got.serverName != "edge.example" || !slices.Equal(got.protocols, protos) {
				t.Fatalf("%s by %d: %+v, %v", name, step, got, err)
			}
			all, err := io.ReadAll(replay)
			if err != nil || string(all) != string(hello)+"after" {
				t.Fatalf("%s by %d: replayed %d bytes of %d, %v", name, step, len(all), len(hello)+5, err)
			}
		}
	}
}

func TestPeekHelloFailsOnEveryTruncation(t *testing.T) {
	hello := clientHelloBytes(t, config("mooring/1"))
	for n := range hello {
		c, s := net.Pipe()
		go func() { c.Write(hello[:n]); c.Close() }()
		if got, _, err := peekHello(s); err == nil {
			t.Fatalf("%d of %d bytes gave %+v", n, len(hello), got)
		}
	}
}

func TestPeekHelloIsBounded(t *testing.T) {
	c, s := net.Pipe()
	defer c.Close()
	go func() {
		// Records of type handshake, each a piece of one endless ClientHello.
		record := append([]byte{22, 3, 1, 0x10, 0x00}, make([]byte, 0x1000)...)
		record[5], record[6], record[7], record[8] = 1, 0x00, 0xff, 0xff
		for {
			if _, err := c.Write(record); err != nil {
				return
			}
			record[5] = 0
		}
	}()
	if _, _, err := peekHello(s); err == nil {
		t.Fatal("an endless hello was taken")
	}
	s.Close()
}

// serve runs a Server on loopback and returns its address; the test's end stops it.
func serve(t *testing.T, cfg Config) string {
	t.Helper()
	_, addr := serveServer(t, cfg)
	return addr
}

func serveServer(t *testing.T, cfg Config) (*Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := New(cfg)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, l.Addr().String()
}

func prefixes(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func TestRoutesByProtocol(t *testing.T) {
	named := func(name string) func(context.Context, net.Conn) {
		return func(_ context.Context, c net.Conn) {
			defer c.Close()
			// The hello must be there in full for the one that is to answer it.
			if hello, _, err := peekHello(c); err == nil {
				io.WriteString(c, name+" saw "+hello.serverName)
			}
		}
	}
	reg := prometheus.NewRegistry()
	addr := serve(t, Config{Registerer: reg, Routes: []Route{{"a/1", named("A")}, {"b/1", named("B")}}})
	for _, c := range []struct {
		protos []string
		want   string
	}{
		{[]string{"a/1"}, "A saw edge.example"},
		{[]string{"b/1"}, "B saw edge.example"},
		{[]string{"x", "b/1"}, "B saw edge.example"},
		{[]string{"h2", "http/1.1"}, ""},
		{nil, ""},
	} {
		conn := dial(t, addr)
		conn.Write(clientHelloBytes(t, config(c.protos...)))
		got, _ := io.ReadAll(conn)
		if string(got) != c.want {
			t.Errorf("%v: got %q, want %q", c.protos, got, c.want)
		}
	}
	conn := dial(t, addr)
	io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n")
	if got, _ := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("plain HTTP was answered: %q", got)
	}
	const want = `
# HELP mooring_front_connections_total TCP connections on the public port, by where they were routed: an ALPN protocol, konnectivity, passthrough, or none, malformed, timeout, overloaded.
# TYPE mooring_front_connections_total counter
mooring_front_connections_total{route="a/1"} 1
mooring_front_connections_total{route="b/1"} 2
mooring_front_connections_total{route="malformed"} 1
mooring_front_connections_total{route="none"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// TestRoutesByName: a protocol that others speak too leads somewhere by some names alone, and no other's client is taken.
func TestRoutesByName(t *testing.T) {
	reg := prometheus.NewRegistry()
	answer := func(name string) func(context.Context, net.Conn) {
		return func(_ context.Context, c net.Conn) {
			defer c.Close()
			if _, _, err := peekHello(c); err == nil {
				io.WriteString(c, name)
			}
		}
	}
	addr := serve(t, Config{
		Registerer: reg, Routes: []Route{{"a/1", answer("A")}},
		Named: []NamedRoute{{Route{"h2", answer("agents")}, func(name string) bool { return name == "acme.agents.example" }, "konnectivity"}},
	})
	for _, c := range []struct{ name, proto, want string }{
		{"ACME.agents.example", "h2", "agents"},
		{"acme.agents.example", "a/1", "A"},
		{"acme.agents.example", "http/1.1", ""},
		{"acme.example", "h2", ""},
	} {
		cfg := config(c.proto)
		cfg.ServerName = c.name
		conn := dial(t, addr)
		conn.Write(clientHelloBytes(t, cfg))
		if got, _ := io.ReadAll(conn); string(got) != c.want {
			t.Errorf("%s %s: got %q, want %q", c.name, c.proto, got, c.want)
		}
	}
	const want = `
# HELP mooring_front_connections_total TCP connections on the public port, by where they were routed: an ALPN protocol, konnectivity, passthrough, or none, malformed, timeout, overloaded.
# TYPE mooring_front_connections_total counter
mooring_front_connections_total{route="a/1"} 1
mooring_front_connections_total{route="konnectivity"} 1
mooring_front_connections_total{route="none"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestSilentConnectionIsClosed(t *testing.T) {
	addr := serve(t, Config{HelloTimeout: 20 * time.Millisecond})
	conn := dial(t, addr)
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read = %d, %v; want EOF after the hello's deadline", n, err)
	}
}

func TestOverTheBoundIsClosedAtOnce(t *testing.T) {
	reg := prometheus.NewRegistry()
	door := strangers.NewDoor(strangers.Config{Limits: strangers.Limits{Max: 2}})
	addr := serve(t, Config{Enter: door.Enter, Registerer: reg})
	first, second := dial(t, addr), dial(t, addr)
	// With both places taken by silent connections, a third is closed at once.
	third := dial(t, addr)
	if n, err := third.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Fatalf("read = %d, %v; want the third closed", n, err)
	}
	for _, c := range []net.Conn{first, second} {
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
			t.Errorf("an earlier connection did not stay: %v", err)
		}
	}
	if got := counter(t, reg, "overloaded"); got != 1 {
		t.Errorf("%v refusals are counted, want 1", got)
	}
}

// counter is the number of connections that were routed so.
func counter(t *testing.T, reg *prometheus.Registry, route string) float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == "mooring_front_connections_total" && m.GetLabel()[0].GetValue() == route {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

func FuzzPeekHello(f *testing.F) {
	f.Add(clientHelloBytes(f, config("mooring/1")))
	f.Add(clientHelloBytes(f, &tls.Config{ServerName: "EDGE.example", MaxVersion: tls.VersionTLS12}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{22, 3, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		c, s := net.Pipe()
		go func() { c.Write(data); c.Close() }()
		_, replay, err := peekHello(s)
		if err == nil {
			if got, _ := io.ReadAll(replay); string(got) != string(data) {
				t.Fatalf("replayed %q of %q", got, data)
			}
		}
		s.Close()
	})
}

// The tunnel tunes the socket, and so has to find it.
func TestRouteFindsTheSocket(t *testing.T) {
	found := make(chan bool, 1)
	addr := serve(t, Config{Routes: []Route{{"a/1", func(_ context.Context, c net.Conn) {
		defer c.Close()
		w, ok := c.(interface{ NetConn() net.Conn })
		if ok {
			_, ok = w.NetConn().(*net.TCPConn)
		}
		found <- ok
	}}}})
	dial(t, addr).Write(clientHelloBytes(t, config("a/1")))
	if !<-found {
		t.Error("the connection does not say which TCP connection it is of")
	}
}
