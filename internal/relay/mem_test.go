package relay

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// inMem runs f in a bubble of fake time, with a client and a server that have a relay between them.
func inMem(t *testing.T, set Settings, f func(t *testing.T, r *Relay, client, server net.PacketConn)) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		server, client := m.ListenPacket(), m.ListenPacket()
		r, err := Start(Config{Target: server.LocalAddr().String(), Mem: m, Seed: 1, Settings: set})
		if err != nil {
			t.Fatal(err)
		}
		f(t, r, client, server)
		r.Close()
	})
}

func send(t *testing.T, c net.PacketConn, to string, b []byte) {
	t.Helper()
	addr, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteTo(b, addr); err != nil {
		t.Fatal(err)
	}
}

// receive reads what arrives within a time of fake time; nil is nothing.
func receive(t *testing.T, c net.PacketConn, within time.Duration) ([]byte, net.Addr) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(within))
	b := make([]byte, 2048)
	n, from, err := c.ReadFrom(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return b[:n], from
}

func TestDelayIsExact(t *testing.T) {
	inMem(t, Settings{Up: Path{Delay: 100 * time.Millisecond}, Down: Path{Delay: 50 * time.Millisecond}}, func(t *testing.T, r *Relay, client, server net.PacketConn) {
		began := time.Now()
		send(t, client, r.Addr(), []byte("ping"))
		b, from := receive(t, server, time.Second)
		if d := time.Since(began); string(b) != "ping" || d != 100*time.Millisecond {
			t.Errorf("%q after %s, want it after 100 ms", b, d)
		}
		send(t, server, from.String(), []byte("pong"))
		if b, _ = receive(t, client, time.Second); string(b) != "pong" || time.Since(began) != 150*time.Millisecond {
			t.Errorf("%q after %s, want it after 150 ms", b, time.Since(began))
		}
		r.Set(func(s *Settings) { s.Up.Delay = 0 })
		send(t, client, r.Addr(), []byte("fast"))
		if b, _ = receive(t, server, 0); b != nil {
			t.Errorf("read %q of the past", b)
		}
		synctest.Wait()
		if b, _ = receive(t, server, time.Millisecond); string(b) != "fast" || time.Since(began) != 150*time.Millisecond {
			t.Errorf("%q after %s, want it at once", b, time.Since(began))
		}
	})
}

func TestJitterReorders(t *testing.T) {
	inMem(t, Settings{Up: Path{Delay: 10 * time.Millisecond, Jitter: 10 * time.Millisecond}}, func(t *testing.T, r *Relay, client, server net.PacketConn) {
		began := time.Now()
		for i := range 100 {
			send(t, client, r.Addr(), []byte{byte(i)})
		}
		var overtaken int
		for i := range 100 {
			b, _ := receive(t, server, time.Second)
			if d := time.Since(began); d < 10*time.Millisecond || d > 20*time.Millisecond {
				t.Errorf("packet %d after %s, want 10 to 20 ms", i, d)
			}
			if int(b[0]) != i {
				overtaken++
			}
		}
		if overtaken < 50 {
			t.Errorf("%d of 100 packets are not in their place, want most", overtaken)
		}
	})
}

// TestLossIsOfTheSeed: the share is what it says, and the same seed loses the same packets.
func TestLossIsOfTheSeed(t *testing.T) {
	run := func() (got []byte) {
		inMem(t, Settings{Up: Path{Loss: 0.25}}, func(t *testing.T, r *Relay, client, server net.PacketConn) {
			for i := range 4000 {
				send(t, client, r.Addr(), []byte{byte(i), byte(i >> 8)})
			}
			synctest.Wait()
			for {
				b, _ := receive(t, server, time.Millisecond)
				if b == nil {
					break
				}
				got = append(got, b...)
			}
			if s := r.Stats().Up; s.Packets+s.Lost != 4000 || s.Packets != len(got)/2 || s.InFlight != 0 {
				t.Errorf("stats %+v, and %d arrived", s, len(got)/2)
			}
		})
		return got
	}
	first, second := run(), run()
	if n := len(first) / 2; n < 2900 || n > 3100 {
		t.Errorf("%d of 4000 arrived, want about 3000", n)
	}
	if string(first) != string(second) {
		t.Error("the same seed lost other packets")
	}
}

func TestRateIsATokenBucket(t *testing.T) {
	set := Settings{Up: Path{Rate: 100_000, Burst: 10_000, Queue: time.Hour}}
	inMem(t, set, func(t *testing.T, r *Relay, client, server net.PacketConn) {
		time.Sleep(time.Minute) // which fills the bucket, and no more than that
		began := time.Now()
		for range 100 {
			send(t, client, r.Addr(), make([]byte, 1000))
		}
		for i := 1; i <= 100; i++ {
			if b, _ := receive(t, server, time.Hour); len(b) != 1000 {
				t.Fatalf("packet %d did not arrive", i)
			}
			want := time.Duration(max(i-10, 0)) * 10 * time.Millisecond
			if d := time.Since(began); d < want-time.Millisecond || d > want+time.Millisecond {
				t.Fatalf("packet %d after %s, want %s", i, d, want)
			}
		}
		r.Set(func(s *Settings) { s.Up.Queue = 50 * time.Millisecond })
		for range 100 {
			send(t, client, r.Addr(), make([]byte, 1000))
		}
		time.Sleep(time.Second)
		if s := r.Stats().Up; s.Lost < 90 || s.Lost > 95 {
			t.Errorf("%d of 100 were lost, want those beyond a queue of 5", s.Lost)
		}
	})
}

func TestDropsBySizeAndAll(t *testing.T) {
	inMem(t, Settings{Up: Path{MaxDatagram: 1300}}, func(t *testing.T, r *Relay, client, server net.PacketConn) {
		send(t, client, r.Addr(), make([]byte, 1301))
		send(t, client, r.Addr(), make([]byte, 1300))
		if b, _ := receive(t, server, time.Second); len(b) != 1300 {
			t.Errorf("%d bytes arrived", len(b))
		}
		r.Set(func(s *Settings) { s.DropUDP = true })
		send(t, client, r.Addr(), []byte("x"))
		if b, _ := receive(t, server, time.Second); b != nil {
			t.Errorf("%q arrived", b)
		}
		r.Set(func(s *Settings) { s.DropUDP, s.Up.Hole = false, true })
		send(t, client, r.Addr(), []byte("x"))
		if b, _ := receive(t, server, time.Second); b != nil {
			t.Errorf("%q arrived through a hole", b)
		}
		r.Set(func(s *Settings) { s.Up.Hole = false })
		send(t, client, r.Addr(), []byte("x"))
		if b, _ := receive(t, server, time.Second); string(b) != "x" {
			t.Error("nothing arrives any more")
		}
		if s := r.Stats().Up; s.TooBig != 1 || s.Lost != 2 || s.Largest != 1300 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestStallHoldsDatagramsBack(t *testing.T) {
	inMem(t, Settings{Up: Path{Stall: true}}, func(t *testing.T, r *Relay, client, server net.PacketConn) {
		for i := range 10 {
			send(t, client, r.Addr(), []byte{byte(i)})
		}
		if b, _ := receive(t, server, time.Hour); b != nil {
			t.Fatalf("%v arrived", b)
		}
		r.Set(func(s *Settings) { s.Up.Stall = false })
		for i := range 10 {
			if b, _ := receive(t, server, time.Second); len(b) != 1 || int(b[0]) != i {
				t.Fatalf("%v arrived, want %d", b, i)
			}
		}
	})
}

func TestIdleFlowIsForgotten(t *testing.T) {
	inMem(t, Settings{IdleTimeout: 30 * time.Second}, func(t *testing.T, r *Relay, client, server net.PacketConn) {
		send(t, client, r.Addr(), []byte("a"))
		_, first := receive(t, server, time.Second)
		for range 10 { // traffic either way keeps it
			time.Sleep(29 * time.Second)
			send(t, server, first.String(), []byte("b"))
			if b, _ := receive(t, client, time.Second); string(b) != "b" {
				t.Fatal("a flow in use was forgotten")
			}
		}
		time.Sleep(31 * time.Second)
		send(t, server, first.String(), []byte("c"))
		if b, _ := receive(t, client, time.Second); b != nil {
			t.Fatalf("%q came through a mapping that is gone", b)
		}
		send(t, client, r.Addr(), []byte("d"))
		if _, second := receive(t, server, time.Second); second == nil || second.String() == first.String() {
			t.Errorf("from %v after %v, want a new source port", second, first)
		}
		if s := r.Stats(); s.Forgotten != 1 || s.UDPFlows != 2 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestRebindSeverAndLeadTo(t *testing.T) {
	inMem(t, Settings{}, func(t *testing.T, r *Relay, client, server net.PacketConn) {
		send(t, client, r.Addr(), []byte("a"))
		_, first := receive(t, server, time.Second)
		r.Rebind()
		send(t, client, r.Addr(), []byte("b"))
		b, second := receive(t, server, time.Second)
		if string(b) != "b" || second.String() == first.String() {
			t.Fatalf("%q from %v after %v, want a new source port", b, second, first)
		}
		send(t, server, first.String(), []byte("to the old"))
		send(t, server, second.String(), []byte("to the new"))
		if b, _ := receive(t, client, time.Second); string(b) != "to the new" {
			t.Errorf("%q arrived", b)
		}
		other := r.mem.ListenPacket()
		r.LeadTo(other.LocalAddr().String())
		send(t, client, r.Addr(), []byte("c"))
		if b, _ := receive(t, other, time.Second); string(b) != "c" {
			t.Errorf("%q arrived at the new target", b)
		}
		r.Sever()
		send(t, client, r.Addr(), []byte("d"))
		if b, _ := receive(t, other, time.Second); b != nil {
			t.Errorf("%q arrived over what was severed", b)
		}
		send(t, r.mem.ListenPacket(), r.Addr(), []byte("e"))
		if b, _ := receive(t, other, time.Second); string(b) != "e" {
			t.Errorf("%q arrived of a newcomer", b)
		}
	})
}
