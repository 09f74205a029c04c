package relay

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"
)

// TestUDPSockets: what the tests in memory show holds on real sockets.
func TestUDPSockets(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	r := start(t, Config{Target: server.LocalAddr().String(), Settings: Settings{Up: Path{Delay: 20 * time.Millisecond, MaxDatagram: 1300}}})
	client, err := net.Dial("udp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_ = client.SetDeadline(patience())
	_ = server.SetDeadline(patience())
	b := make([]byte, 2048)
	ask := func(q string) net.Addr {
		t.Helper()
		began := time.Now()
		if _, err := client.Write([]byte(q)); err != nil {
			t.Fatal(err)
		}
		n, from, err := server.ReadFrom(b)
		if err != nil || string(b[:n]) != q || time.Since(began) < 20*time.Millisecond {
			t.Fatalf("%q after %s, %v", b[:n], time.Since(began), err)
		}
		if _, err := server.WriteTo([]byte("answer"), from); err != nil {
			t.Fatal(err)
		}
		if n, err := client.Read(b); err != nil || string(b[:n]) != "answer" {
			t.Fatalf("%q, %v", b[:n], err)
		}
		return from
	}
	first := ask("one")
	if again := ask("two"); again.String() != first.String() {
		t.Errorf("from %s, then from %s", first, again)
	}
	_, _ = client.Write(make([]byte, 1400))
	r.Rebind()
	if again := ask("three"); again.String() == first.String() {
		t.Error("no new source port after Rebind")
	}
	if s := r.Stats(); s.UDPFlows != 2 || s.Up.TooBig != 1 || s.Up.Packets != 3 || s.Down.Packets != 3 {
		t.Errorf("stats %+v", s)
	}
}

func TestTCPPassesBytesAndEnds(t *testing.T) {
	addr, conns := tcpServer(t)
	path := Path{Delay: 5 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.05}
	r := start(t, Config{Target: addr, Settings: Settings{Up: path, Down: path}})
	client, server := tcpThrough(t, r, conns)
	data := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	go func() {
		_, _ = client.Write(data)
		_ = client.CloseWrite()
	}()
	if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	passes(t, server, client) // only one direction has ended
	_ = server.Close()
	if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v; want EOF", n, err)
	}
	if s := r.Stats(); s.Up.Bytes != 1<<20 || s.Up.Lost == 0 || s.TCPFlows != 1 {
		t.Errorf("stats %+v", s)
	}

	client, server = tcpThrough(t, r, conns)
	passes(t, client, server)
	reset(server)
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %v, want the reset handed on", err)
	}
}

// TestTCPRateAndDelay: bounds from below, which no machine is too slow for.
func TestTCPRateAndDelay(t *testing.T) {
	addr, conns := tcpServer(t)
	r := start(t, Config{Target: addr, Settings: Settings{Up: Path{Rate: 1 << 20, Delay: 50 * time.Millisecond}}})
	client, server := tcpThrough(t, r, conns)
	began := time.Now()
	passes(t, client, server)
	if d := time.Since(began); d < 50*time.Millisecond {
		t.Errorf("a word took %s, want the delay at least", d)
	}
	began = time.Now()
	go func() { _, _ = client.Write(make([]byte, 256<<10)) }()
	if _, err := io.ReadFull(server, make([]byte, 256<<10)); err != nil {
		t.Fatal(err)
	}
	if d, want := time.Since(began), 50*time.Millisecond+span(256<<10-defaultBurst, 1<<20)-time.Millisecond; d < want {
		t.Errorf("256 KiB at 1 MiB/s took %s, want %s at least", d, want)
	}
	if s := r.Stats(); s.Up.Peak < 16<<10 {
		t.Errorf("at most %d bytes were on their way", s.Up.Peak)
	}
}

// TestTCPStall: the writer is stuck once the kernels are full, and nothing is lost.
func TestTCPStall(t *testing.T) {
	addr, conns := tcpServer(t)
	r := start(t, Config{Target: addr})
	client, server := tcpThrough(t, r, conns)
	passes(t, client, server)
	r.Set(func(s *Settings) { s.Up.Stall = true })
	passes(t, server, client) // the other way is none of it
	const total = 64 << 20
	wrote := make(chan error, 1)
	go func() {
		_, err := client.Write(make([]byte, total))
		wrote <- err
	}()
	silent(t, server)
	select {
	case err := <-wrote:
		t.Fatalf("64 MiB were written into a stalled way: %v", err)
	default:
	}
	r.Set(func(s *Settings) { s.Up.Stall = false })
	if _, err := io.CopyN(io.Discard, server, total); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

func TestTCPCuts(t *testing.T) {
	addr, conns := tcpServer(t)
	r := start(t, Config{Target: addr})

	client, server := tcpThrough(t, r, conns)
	passes(t, client, server)
	r.Reset()
	for _, c := range []net.Conn{client, server} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Reset: read %v, want a RST", err)
		}
	}

	client, server = tcpThrough(t, r, conns)
	passes(t, client, server)
	r.Rebind()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Rebind: the client read %v, want a RST", err)
	}
	silent(t, server)

	for name, cut := range map[string]func(){"Forget": r.Forget, "Sever": r.Sever} {
		client, server = tcpThrough(t, r, conns)
		passes(t, client, server)
		cut()
		if _, err := client.Write([]byte("lost")); err != nil {
			t.Errorf("%s: write %v, want nobody to be told", name, err)
		}
		silent(t, server)
		_ = server.Close()
		silent(t, client)
		client, server = tcpThrough(t, r, conns) // a new one is none the worse
		passes(t, client, server)
	}

	r.Set(func(s *Settings) { s.Both(Path{Hole: true}) })
	_, _ = client.Write([]byte("lost"))
	silent(t, server)
}

func TestTCPIdleFlowIsForgotten(t *testing.T) {
	addr, conns := tcpServer(t)
	r := start(t, Config{Target: addr})
	client, server := tcpThrough(t, r, conns)
	passes(t, client, server)
	r.mu.Lock()
	r.set.IdleTimeout = time.Hour
	for f := range r.tcpFlows {
		f.last = time.Now().Add(-2 * time.Hour)
	}
	r.mu.Unlock()
	_, _ = client.Write([]byte("late"))
	silent(t, server)
	if s := r.Stats(); s.Forgotten != 1 {
		t.Errorf("stats %+v", s)
	}
}

// TestCloseInTheMiddle: connections are open, stalled and full, datagrams on their way.
func TestCloseInTheMiddle(t *testing.T) {
	addr, conns := tcpServer(t)
	r := start(t, Config{Target: addr, Settings: Settings{Down: Path{Stall: true}, Up: Path{Delay: time.Hour}}})
	client, server := tcpThrough(t, r, conns)
	_, _ = client.Write(make([]byte, 1000))
	go func() { _, _ = server.Write(make([]byte, 64<<20)) }()
	udp, err := net.Dial("udp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	_, _ = udp.Write([]byte("x"))
	r.Close()
	r.Close()
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open after Close")
	}
}
