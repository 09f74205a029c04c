package egressproxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	konnectivity "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
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
		if got := append(early, rest...); !bytes.Equal(got, b) || h2 != bytes.HasPrefix(b, []byte(preface)) || len(early) > len(preface) {
			t.Fatalf("%q: %q is early, h2 %v", b, early, h2)
		}
	})
}

// scripted is a gRPC stream whose packets are given, and which ends with them.
type scripted struct {
	grpc.ServerStream
	ctx  context.Context
	in   []*konnectivity.Packet
	mu   sync.Mutex // guards out
	out  map[konnectivity.PacketType]int
	last []*konnectivity.Packet
}

func (s *scripted) Context() context.Context { return s.ctx }

func (s *scripted) RecvMsg(m any) error {
	if len(s.in) == 0 {
		return io.EOF
	}
	b, err := proto.Marshal(s.in[0])
	s.in = s.in[1:]
	if err != nil {
		return err
	}
	return codec{}.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, m)
}

func (s *scripted) Recv() (*konnectivity.Packet, error) { panic("not used") }

func (s *scripted) Send(p *konnectivity.Packet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out[p.Type]++
	s.last = append(s.last, p)
	return nil
}

// FuzzCodec: a packet is read as protobuf reads it, whatever it looks like, and one of data written as protobuf would.
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
		var want konnectivity.Packet
		werr := proto.Unmarshal(b, &want)
		var got received
		err := codec{}.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b[:len(b)/2]), mem.SliceBuffer(b[len(b)/2:])}, &got)
		if (err == nil) != (werr == nil) {
			t.Fatalf("%x: %v, protobuf says %v", b, err, werr)
		}
		if err != nil {
			return
		}
		if got.packet != nil {
			if !proto.Equal(got.packet, &want) {
				t.Fatalf("%x: %v, want %v", b, got.packet, &want)
			}
			return
		}
		if want.Type != konnectivity.PacketType_DATA || want.GetData().GetConnectID() != got.id || !bytes.Equal(want.GetData().GetData(), got.data.bytes) {
			t.Fatalf("%x: %d %x, want %v", b, got.id, got.data.bytes, &want)
		}
		buf := dirty.Get(len(got.data.bytes))
		copy(*buf, got.data.bytes)
		sent, err := codec{}.Marshal(&sending{id: got.id, buf: buf, n: len(got.data.bytes)})
		if err != nil {
			t.Fatal(err)
		}
		defer sent.Free()
		var again konnectivity.Packet
		if err := proto.Unmarshal(sent.Materialize(), &again); err != nil {
			t.Fatal(err)
		}
		if again.Type != want.Type || again.GetData().GetConnectID() != got.id || !bytes.Equal(again.GetData().GetData(), got.data.bytes) {
			t.Fatalf("%d %x is sent as %v", got.id, got.data.bytes, &again)
		}
		got.data.free()
	})
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
		s := &scripted{ctx: t.Context(), out: map[konnectivity.PacketType]int{}}
		asked := map[konnectivity.PacketType]int{}
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			pkt := &konnectivity.Packet{}
			if proto.Unmarshal(b[2:2+n], pkt) == nil {
				s.in = append(s.in, pkt)
				asked[pkt.Type]++
			}
			b = b[2+n:]
		}
		_ = service{p}.Proxy(s)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.out[konnectivity.PacketType_DIAL_RSP] > asked[konnectivity.PacketType_DIAL_REQ] ||
			s.out[konnectivity.PacketType_CLOSE_RSP] > asked[konnectivity.PacketType_CLOSE_REQ] || s.out[konnectivity.PacketType_DATA] > 0 {
			t.Fatalf("%v came for %v", s.last, asked)
		}
	})
}
