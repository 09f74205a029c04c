package egressproxy

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/protobuf/proto"
	konnectivity "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/mooring-edge/mooring/internal/bidi"
)

// session0 is a TLS state of a handshake that is complete.
func (f *fixture) session0() tls.ConnectionState { return tls.ConnectionState{HandshakeComplete: true} }

func tlsPair(cert, key []byte) (tls.Certificate, error) { return tls.X509KeyPair(cert, key) }

// FuzzSniff: whatever comes first, in whatever pieces, nothing of it is lost, and only what begins as HTTP/2 does is taken for that.
func FuzzSniff(f *testing.F) {
	for _, s := range []string{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "CONNECT edge-1:10250 HTTP/1.1\r\n\r\n", "PR", "PRX", "", "P", "PUT / HTTP/1.1\r\n\r\n"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, slow bool) {
		var r io.Reader = bytes.NewReader(b)
		if slow {
			r = iotest.OneByteReader(r)
		}
		early, h2, err := sniff(r)
		if err != nil {
			if len(b) >= len(preface) || !bytes.HasPrefix([]byte(preface), b) {
				t.Fatalf("%q: %v", b, err)
			}
			return
		}
		rest, _ := io.ReadAll(r)
		if got := append(early, rest...); !bytes.Equal(got, b) || h2 != bytes.HasPrefix(b, []byte(preface)) {
			t.Fatalf("%q: %q is early, h2 %v", b, early, h2)
		}
	})
}

// scripted is a gRPC stream that keeps what is sent.
type scripted struct {
	mu   sync.Mutex // guards the following
	out  map[konnectivity.PacketType]int
	last []*konnectivity.Packet
}

func (s *scripted) Send(head, body []byte) error {
	var p konnectivity.Packet
	if err := proto.Unmarshal(append(bytes.Clone(head), body...), &p); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out[p.Type]++
	s.last = append(s.last, &p)
	return nil
}

func (s *scripted) TrySend(head, body []byte) bool { return s.Send(head, body) == nil }
func (s *scripted) Pause()                         {}
func (s *scripted) Resume()                        {}

// FuzzCodec: a packet of data is read as protobuf reads it, whatever it looks like, or left to protobuf; and is written as protobuf would.
func FuzzCodec(f *testing.F) {
	for _, p := range []*konnectivity.Packet{dataPacket(1, []byte("x")), dataPacket(-7, make([]byte, 5000)), dataPacket(0, nil), {Type: konnectivity.PacketType_DATA},
		{Type: konnectivity.PacketType_DIAL_REQ, Payload: &konnectivity.Packet_DialRequest{DialRequest: &konnectivity.DialRequest{Random: 5}}}} {
		b, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, b...)) // fields twice
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		id, data, ok := parseData(b)
		if !ok {
			return
		}
		var want konnectivity.Packet
		if err := proto.Unmarshal(b, &want); err != nil {
			t.Fatalf("%x: protobuf says %v", b, err)
		}
		if want.Type != konnectivity.PacketType_DATA || want.GetData().GetConnectID() != id || !bytes.Equal(want.GetData().GetData(), data) {
			t.Fatalf("%x: %d %x, want %v", b, id, data, &want)
		}
		var memory [dataRoom]byte
		head := appendData(memory[:0], id, len(data))
		if &head[0] != &memory[0] {
			t.Fatalf("%d bytes do not hold the %d before a packet's", dataRoom, len(head))
		}
		var again konnectivity.Packet
		if err := proto.Unmarshal(append(head, data...), &again); err != nil {
			t.Fatal(err)
		}
		if again.Type != want.Type || again.GetData().GetConnectID() != id || !bytes.Equal(again.GetData().GetData(), data) {
			t.Fatalf("%d %x is sent as %v", id, data, &again)
		}
	})
}

// TestDataIsReadHere: the packets of data that clients write are not left to protobuf.
func TestDataIsReadHere(t *testing.T) {
	b, err := proto.Marshal(dataPacket(7, []byte("seven")))
	if err != nil {
		t.Fatal(err)
	}
	if id, data, ok := parseData(b); !ok || id != 7 || string(data) != "seven" {
		t.Errorf("%d %q %v", id, data, ok)
	}
}

// FuzzPackets: whatever packets come, in whatever order, the call ends when they do, with no more answers than there were
// questions and no panic.
func FuzzPackets(f *testing.F) {
	add := func(all ...*konnectivity.Packet) {
		var b []byte
		for _, p := range all {
			one, err := proto.Marshal(p)
			if err != nil {
				f.Fatal(err)
			}
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(one))), one...)
		}
		f.Add(b)
	}
	dial := func(n int64) *konnectivity.Packet {
		return &konnectivity.Packet{Type: konnectivity.PacketType_DIAL_REQ, Payload: &konnectivity.Packet_DialRequest{
			DialRequest: &konnectivity.DialRequest{Protocol: "tcp", Address: "edge-1:10250", Random: n},
		}}
	}
	closing := &konnectivity.Packet{Type: konnectivity.PacketType_CLOSE_REQ, Payload: &konnectivity.Packet_CloseRequest{CloseRequest: &konnectivity.CloseRequest{ConnectID: 1}}}
	giveUp := &konnectivity.Packet{Type: konnectivity.PacketType_DIAL_CLS, Payload: &konnectivity.Packet_CloseDial{CloseDial: &konnectivity.CloseDial{Random: 1}}}
	add(dial(1), dataPacket(1, []byte("x")), closing)
	add(dial(1), giveUp, dial(1), dial(2), closing, giveUp)
	add(&konnectivity.Packet{Type: konnectivity.PacketType_DATA}, &konnectivity.Packet{Type: 99}, dial(1), dial(1))
	p := New(Config{Dir: f.TempDir(), sessionWait: time.Millisecond}) // has no session: each dial is refused
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &scripted{out: map[konnectivity.PacketType]int{}}
		c := newCall(t.Context(), p, s)
		asked := map[konnectivity.PacketType]int{}
		var err error
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			if err == nil {
				pkt := &konnectivity.Packet{}
				if proto.Unmarshal(b[2:2+n], pkt) == nil {
					asked[pkt.Type]++
				}
				err = c.Take(bidi.MessageOf(b[2 : 2+n]))
			}
			b = b[2+n:]
		}
		c.Ended()
		c.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.out[konnectivity.PacketType_DIAL_RSP] > asked[konnectivity.PacketType_DIAL_REQ] ||
			s.out[konnectivity.PacketType_CLOSE_RSP] > asked[konnectivity.PacketType_CLOSE_REQ] || s.out[konnectivity.PacketType_DATA] > 0 {
			t.Fatalf("%v came for %v", s.last, asked)
		}
	})
}
