package tunnel

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/strangers"
)

// initial is a packet that begins a QUIC connection, as far as can be told without its keys, with a token or without.
func initial(token []byte, dst []byte) []byte {
	b := append([]byte{0xc3, 0, 0, 0, 1, byte(len(dst))}, dst...)
	b = append(b, 4, 'f', 'l', 'o', 'd')
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(len(token)))
	b = append(b, token...)
	rest := 1200 - len(b) - 2
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(rest))
	body := make([]byte, rest)
	_, _ = rand.Read(body)
	return append(b, body...)
}

func randomID() []byte {
	id := make([]byte, 8)
	_, _ = rand.Read(id)
	return id
}

// parseRetry returns the token of a Retry packet and the connection ID to go on with; nil if it is none.
func parseRetry(b []byte) (token, id []byte) {
	if len(b) < 7 || b[0]&0xf0 != 0xf0 {
		return nil, nil
	}
	at := 6 + int(b[5])
	id = b[at+1 : at+1+int(b[at])]
	return b[at+1+len(id) : len(b)-16], id
}

// attacker is one socket.
func attacker(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// flooded is a broker whose QUIC connections are counted.
func flooded(t *testing.T, limits strangers.Limits) (b *broker, inside, proven, refused *atomic.Int64) {
	door := strangers.NewDoor(strangers.Config{Limits: limits})
	inside, proven, refused = new(atomic.Int64), new(atomic.Int64), new(atomic.Int64)
	b = startBroker(t, AcceptorConfig{
		OnSession: func(_ context.Context, s *Session) { s.Admitted() },
		Enter: func(from net.Addr) (func(), error) {
			leave, err := door.Enter(from)
			if err != nil {
				refused.Add(1)
				return nil, err
			}
			inside.Add(1)
			if from != nil {
				proven.Add(1)
			}
			return func() { inside.Add(-1); leave() }, nil
		},
	})
	return b, inside, proven, refused
}

// TestFault36InitialFlood: forged Initials beyond a small number are answered by a Retry, which keeps nothing; an agent
// gets in meanwhile.
//
// Fails with wantsProof always false: thousands of connections are made, and no Retry is seen.
func TestFault36InitialFlood(t *testing.T) {
	b, inside, proven, _ := flooded(t, strangers.Limits{Max: 4096, MaxPerSource: 512})
	before := heap()
	c := attacker(t, b.addr)
	// The forger needs no answers, but the test counts them; a batch at a time, so that loopback drops none.
	retries, buf := 0, make([]byte, 2048)
	const packets = 4000
	for range packets / 100 {
		for range 100 {
			if _, err := c.Write(initial(nil, randomID())); err != nil {
				t.Fatal(err)
			}
		}
		for {
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			if token, _ := parseRetry(buf[:n]); token != nil {
				retries++
			}
		}
	}
	n := inside.Load()
	t.Logf("%d forged Initials: %d Retries, %d connections, %d KiB of heap", packets, retries, n, (heap()-before)>>10)
	if n > maxUnproven {
		t.Errorf("%d connections were made of addresses that nobody has proven, want %d at most", n, maxUnproven)
	}
	if retries == 0 || proven.Load() > 0 {
		t.Errorf("%d Retries were seen and %d addresses taken for proven", retries, proven.Load())
	}
	var flood sync.WaitGroup
	over := make(chan struct{})
	flood.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond): // ten times the rate at which no Retry is asked for
				_, _ = c.Write(initial(nil, randomID()))
			}
		}
	})
	s, err := dialer(b.addr, TransportQUIC, Config{}).Dial(t.Context())
	close(over)
	flood.Wait()
	if err != nil {
		t.Fatalf("an agent does not get in: %v", err)
	}
	_ = s.Close(0, "")
}

// TestFault36ProvenFlood: who answers the Retry, and opens as many connections as he likes with the token that he got,
// has his source's places and no more.
//
// Fails with MaxPerSource 0: all of his connections are made.
func TestFault36ProvenFlood(t *testing.T) {
	const perSource = 50
	b, inside, proven, refused := flooded(t, strangers.Limits{Max: 4096, MaxPerSource: perSource})
	c := attacker(t, b.addr)
	var token, id []byte
	buf := make([]byte, 2048)
	for token == nil { // until the broker is under load
		if _, err := c.Write(initial(nil, randomID())); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, err := c.Read(buf); err == nil {
			token, id = parseRetry(append([]byte(nil), buf[:n]...))
		}
	}
	unproven := inside.Load()
	for i := range 1000 {
		if _, err := c.Write(initial(token, append(randomID()[:4], id...))); err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 {
			time.Sleep(time.Millisecond) // what loopback drops proves nothing
		}
	}
	for deadline := time.Now().Add(10 * time.Second); refused.Load() < 100; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections of one source were made, %d refused", proven.Load(), refused.Load())
		}
	}
	if p, n := proven.Load(), inside.Load(); p != perSource || n > unproven+perSource {
		t.Errorf("%d connections of the flood's source were made, want %d; %d are inside", p, perSource, n)
	}
}

// TestAdmittedGivesThePlaceBack: and so does the end of a connection that came to nothing.
func TestAdmittedGivesThePlaceBack(t *testing.T) {
	b, inside, _, _ := flooded(t, strangers.Limits{Max: 1})
	for range 3 {
		s, err := dialer(b.addr, TransportQUIC, Config{}).Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close(0, "")
		for b.next(t); inside.Load() != 0; time.Sleep(time.Millisecond) {
		}
	}
	e, err := dialer(b.addr, TransportQUIC, Config{}).prepare()
	if err != nil {
		t.Fatal(err)
	}
	e.tls.Certificates = nil
	if l, err := e.dialQUIC(t.Context()); err == nil {
		_, _ = l.accept(t.Context()) // until it is hung up on
		l.close(0, "", 0)
	}
	for inside.Load() != 0 {
		time.Sleep(time.Millisecond)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
