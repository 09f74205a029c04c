package egressproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	konnectivity "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// packets is a client that speaks packet by packet, and goes when it likes.
type packets struct {
	t      *testing.T
	stream konnectivity.ProxyService_ProxyClient
	vanish func() // closes the gRPC connection as a process that dies does
	cancel func() // ends the stream alone
}

func (f *fixture) packets(t *testing.T) *packets {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+f.socket, f.dialOption(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := konnectivity.NewProxyServiceClient(cc).Proxy(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cc.Close() })
	return &packets{t: t, stream: stream, vanish: func() { cc.Close() }, cancel: cancel}
}

func (k *packets) send(pkt *konnectivity.Packet) {
	k.t.Helper()
	if err := k.stream.Send(pkt); err != nil {
		k.t.Fatal(err)
	}
}

func (k *packets) dialRequest(random int64, target string) {
	k.t.Helper()
	k.send(&konnectivity.Packet{Type: konnectivity.PacketType_DIAL_REQ, Payload: &konnectivity.Packet_DialRequest{
		DialRequest: &konnectivity.DialRequest{Protocol: "tcp", Address: target, Random: random},
	}})
}

func (k *packets) data(id int64, b []byte) {
	k.t.Helper()
	k.send(dataPacket(id, b))
}

func dataPacket(id int64, b []byte) *konnectivity.Packet {
	return &konnectivity.Packet{Type: konnectivity.PacketType_DATA, Payload: &konnectivity.Packet_Data{Data: &konnectivity.Data{ConnectID: id, Data: b}}}
}

func (k *packets) closeRequest(id int64) {
	k.t.Helper()
	k.send(&konnectivity.Packet{Type: konnectivity.PacketType_CLOSE_REQ, Payload: &konnectivity.Packet_CloseRequest{
		CloseRequest: &konnectivity.CloseRequest{ConnectID: id},
	}})
}

// next is the next packet, which comes soon.
func (k *packets) next(want konnectivity.PacketType) *konnectivity.Packet {
	k.t.Helper()
	got := make(chan error, 1)
	var pkt *konnectivity.Packet
	go func() {
		var err error
		pkt, err = k.stream.Recv()
		got <- err
	}()
	select {
	case err := <-got:
		if err != nil {
			k.t.Fatalf("waiting for %s: %v", want, err)
		}
	case <-time.After(limit):
		k.cancel()
		<-got
		k.t.Fatalf("%s never came", want)
	}
	if pkt.Type != want {
		k.t.Fatalf("%v came; want %s", pkt, want)
	}
	return pkt
}

// dial connects, and returns the connection's id.
func (k *packets) dial(random int64, target string) int64 {
	k.t.Helper()
	k.dialRequest(random, target)
	r := k.next(konnectivity.PacketType_DIAL_RSP).GetDialResponse()
	if r.Error != "" || r.Random != random || r.ConnectID == 0 {
		k.t.Fatalf("the answer to dial %d: %v", random, r)
	}
	return r.ConnectID
}

// TestPackets: the packets of a connection's life, each end of it.
func TestPackets(t *testing.T) {
	f := start(t)
	k := f.packets(t)
	id := k.dial(7, "edge-1:10250")
	node := f.node(t)
	k.data(id, []byte("to the node"))
	k.closeRequest(id)
	if r := k.next(konnectivity.PacketType_CLOSE_RSP).GetCloseResponse(); r.ConnectID != id || r.Error != "" {
		t.Errorf("closed with %v", r)
	}
	wantEnd(t, node, "to the node")

	// The same stream serves another one. The node's end is the connection's.
	id2 := k.dial(8, "edge-2:10250")
	node = f.node(t)
	if id2 == id {
		t.Error("two connections have one id")
	}
	io.WriteString(node, "bye")
	node.Close()
	if d := k.next(konnectivity.PacketType_DATA).GetData(); d.ConnectID != id2 || string(d.Data) != "bye" {
		t.Errorf("data %v", d)
	}
	if r := k.next(konnectivity.PacketType_CLOSE_RSP).GetCloseResponse(); r.ConnectID != id2 || r.Error != "" {
		t.Errorf("closed with %v", r)
	}
	f.logs.await(t, fmt.Sprintf("connection=%d toNode=", id2)) // until then it is one that is closing, and was answered
	k.data(id2, []byte("crossed"))                             // is dropped
	k.closeRequest(id2)
	if r := k.next(konnectivity.PacketType_CLOSE_RSP).GetCloseResponse(); r.ConnectID != id2 || r.Error == "" {
		t.Errorf("what is closed was closed with %v", r)
	}

	// One that is cut says so.
	id3 := k.dial(9, "edge-3:10250")
	node = f.node(t)
	node.Reset(wire.DialTimeout)
	if r := k.next(konnectivity.PacketType_CLOSE_RSP).GetCloseResponse(); r.ConnectID != id3 || !strings.Contains(r.Error, "cut: tunnel stream reset by the other side: timed out") {
		t.Errorf("cut with %v", r)
	}

	// What makes no sense is refused, or passed over, and costs nothing else.
	k.send(&konnectivity.Packet{Type: konnectivity.PacketType_DIAL_REQ, Payload: &konnectivity.Packet_DialRequest{
		DialRequest: &konnectivity.DialRequest{Protocol: "udp", Address: "x:1", Random: 10},
	}})
	if r := k.next(konnectivity.PacketType_DIAL_RSP).GetDialResponse(); r.Random != 10 || !strings.Contains(r.Error, "only tcp is carried, not udp") {
		t.Errorf("udp: %v", r)
	}
	k.dialRequest(11, strings.Repeat("x", 5000))
	if r := k.next(konnectivity.PacketType_DIAL_RSP).GetDialResponse(); r.Random != 11 || r.Error == "" {
		t.Errorf("a long address: %v", r)
	}
	k.dialRequest(12, "no good address")
	if r := k.next(konnectivity.PacketType_DIAL_RSP).GetDialResponse(); r.Random != 12 || !strings.Contains(r.Error, "bad request") {
		t.Errorf("a bad address: %v", r)
	}
	for _, p := range []*konnectivity.Packet{
		{Type: konnectivity.PacketType_DATA}, {Type: konnectivity.PacketType_DRAIN}, {Type: konnectivity.PacketType_DIAL_CLS}, {Type: 77},
		{Type: konnectivity.PacketType_DIAL_RSP}, {Type: konnectivity.PacketType_CLOSE_RSP}, dataPacket(id3+1, []byte("x")),
	} {
		k.send(p)
	}
	id4 := k.dial(13, "echo:1")
	k.data(id4, []byte("still here"))
	if d := k.next(konnectivity.PacketType_DATA).GetData(); string(d.Data) != "still here" {
		t.Errorf("data %v", d)
	}

	// Two dials by one number can't be told apart by their client.
	k.dialRequest(14, "hold:1")
	held := <-f.held
	k.dialRequest(14, "hold:1")
	var err error
	for err == nil { // the connection that is open may be said to be cut
		_, err = k.stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("two dials by one number: %v", err)
	}
	within(t, held.Done(), "the dial to be given up")
}

// TestClientVanishes: at each step, by its connection's end and by its stream's. The node reads a reset where the connection was
// not closed, and all that was sent where it was. That nothing is left behind is seen by goleak, and by the stop of the sidecar. Mechanism:
// call.abandon. Seen failing without it (the node is never told), and with it for connections that were closed (the node reads a
// reset behind CLOSE_REQ).
func TestClientVanishes(t *testing.T) {
	for how, vanish := range map[string]func(*packets){
		"connection": func(k *packets) { k.vanish() },
		"stream":     func(k *packets) { k.cancel() },
		"half":       func(k *packets) { _ = k.stream.CloseSend() },
	} {
		t.Run(how, func(t *testing.T) {
			f := start(t)
			vanish(f.packets(t)) // before it asked for anything

			k := f.packets(t) // during the dial
			k.dialRequest(1, "hold:1")
			held := <-f.held
			vanish(k)
			within(t, held.Done(), "the dial to be given up")

			k = f.packets(t) // in the middle of data
			id := k.dial(2, "edge-1:10250")
			node := f.node(t)
			k.data(id, []byte("half of"))
			if _, err := io.ReadFull(node, make([]byte, 7)); err != nil {
				t.Fatal(err)
			}
			vanish(k)
			wantReset(t, node, wire.Canceled)

			// After CLOSE_REQ, with more on its way than the stream takes at once.
			k = f.packets(t)
			id = k.dial(3, "edge-1:10250")
			node = f.node(t)
			all := strings.Repeat("0123456789abcdef", 40_000) // 640 kB: more than the window of the stream, less than the queue
			for i := 0; i < len(all); i += 32_000 {
				k.data(id, []byte(all[i:i+32_000]))
			}
			k.closeRequest(id)
			k.next(konnectivity.PacketType_CLOSE_RSP)
			vanish(k)
			wantEnd(t, node, all)

			// And one that did not close, with a queue that its node does not take.
			k = f.packets(t)
			id = k.dial(4, "edge-1:10250")
			node = f.node(t)
			for i := 0; i < len(all); i += 32_000 {
				k.data(id, []byte(all[i:i+32_000]))
			}
			vanish(k)
			wantReset(t, node, wire.Canceled)
		})
	}
}

// TestCloseOfOneThatTakesNothing: what a client has sent and closed is given up in the end, and its node does not take that for
// the whole. Mechanism: the write deadline of finish. Seen failing without it (the node is never told).
func TestCloseOfOneThatTakesNothing(t *testing.T) {
	f := start(t, func(c *Config) { c.closeGrace = 200 * time.Millisecond })
	k := f.packets(t)
	id := k.dial(1, "edge-1:10250")
	node := f.node(t)
	for range 30 {
		k.data(id, make([]byte, 32_000))
	}
	k.closeRequest(id)
	k.next(konnectivity.PacketType_CLOSE_RSP)
	f.logs.await(t, `msg="connection ended"`)
	wantReset(t, node, wire.Canceled)
}

// TestNodeIsToldToStop: one that does not end its side when its client has closed is told to write no more, be it that it says nothing, or goes on. Mechanism: the end
// of conn.run, and the read deadline of its write. Seen failing without the deadline (it is never told).
func TestNodeIsToldToStop(t *testing.T) {
	f := start(t)
	k := f.packets(t)
	for random, says := range map[int64]func(*tunnel.Stream) error{
		1: func(s *tunnel.Stream) error { // until it is told
			time.Sleep(partTime + partTime/2)
			_, err := io.CopyN(s, zeros{}, 1<<10)
			return err
		},
		2: func(s *tunnel.Stream) error {
			_, err := io.CopyN(s, zeros{}, 256<<20)
			return err
		},
	} {
		id := k.dial(random, "edge-1:10250")
		node := f.node(t)
		k.data(id, []byte("bye"))
		k.closeRequest(id)
		k.next(konnectivity.PacketType_CLOSE_RSP)
		wantEnd(t, node, "bye")
		_ = node.SetWriteDeadline(time.Now().Add(limit))
		var reset *tunnel.ResetError
		if err := says(node); !errors.As(err, &reset) {
			t.Errorf("%d: the node was told %v", random, err)
		}
	}
}

// TestDialClosedAfterItsAnswer: a DIAL_CLS that crossed the answer closes the connection.
func TestDialClosedAfterItsAnswer(t *testing.T) {
	f := start(t)
	k := f.packets(t)
	k.dial(1, "edge-1:10250")
	node := f.node(t)
	k.send(&konnectivity.Packet{Type: konnectivity.PacketType_DIAL_CLS, Payload: &konnectivity.Packet_CloseDial{CloseDial: &konnectivity.CloseDial{Random: 1}}})
	wantReset(t, node, wire.Canceled)

	k.dialRequest(2, "hold:1")
	held := <-f.held
	k.send(&konnectivity.Packet{Type: konnectivity.PacketType_DIAL_CLS, Payload: &konnectivity.Packet_CloseDial{CloseDial: &konnectivity.CloseDial{Random: 2}}})
	within(t, held.Done(), "the dial to be given up")
}

// TestSlowNodeHoldsUpItsConnectionAlone: on streams of their own as the API server has them for good, and on one stream for a
// while, after which the slow one is cut. Mechanism: conn's queue, and the stall limit in put. Seen failing with put waiting
// for ever (the other never gets its data), and with a queue of no bound (nobody is cut).
func TestSlowNodeHoldsUpItsConnectionAlone(t *testing.T) {
	f := start(t, func(c *Config) { c.stallLimit = 300 * time.Millisecond })
	slow, other := f.packets(t), f.packets(t)
	id := slow.dial(1, "edge-1:10250")
	node := f.node(t)
	blocked := make(chan int, 1)
	go func() { // sends until it is stopped
		sent := 0
		for range 1000 {
			if slow.stream.Send(dataPacket(id, make([]byte, 64_000))) != nil {
				break
			}
			sent += 64_000
		}
		blocked <- sent
	}()
	oid := other.dial(2, "echo:1")
	for range 20 { // in which time the slow one is stopped; it is alone on its stream, so the limit is not for it
		other.data(oid, []byte("a word"))
		other.next(konnectivity.PacketType_DATA)
		time.Sleep(50 * time.Millisecond)
	}
	select {
	case n := <-blocked:
		t.Fatalf("the client of a node that takes nothing was not stopped, after %d bytes", n)
	default:
	}
	if _, err := io.CopyN(io.Discard, node, 20_000_000); err != nil { // it was but slow
		t.Fatal(err)
	}
	slow.vanish()
	if n := <-blocked; n < 20_000_000 {
		t.Errorf("%d bytes were sent", n)
	}

	both := f.packets(t)
	id, oid = both.dial(3, "edge-1:10250"), both.dial(4, "echo:2")
	stuck := f.node(t)
	go func() {
		for range 1000 {
			if both.stream.Send(dataPacket(id, make([]byte, 64_000))) != nil {
				return
			}
		}
		_ = both.stream.Send(dataPacket(oid, []byte("at last")))
	}()
	r := both.next(konnectivity.PacketType_CLOSE_RSP).GetCloseResponse()
	if r.ConnectID != id || !strings.Contains(r.Error, "others wait behind it") {
		t.Errorf("the stuck one: %v", r)
	}
	if d := both.next(konnectivity.PacketType_DATA).GetData(); d.ConnectID != oid || string(d.Data) != "at last" {
		t.Errorf("the other: %v", d)
	}
	wantReset(t, stuck, wire.Overloaded)
}

// TestSlowClientHoldsUpItsConnectionAlone: a client that does not read stops its node, and nobody else. Seen failing with a send of
// its own goroutine for each packet (the node is never stopped).
func TestSlowClientHoldsUpItsConnectionAlone(t *testing.T) {
	f := start(t)
	slow, other := f.packets(t), f.packets(t)
	slow.dial(1, "edge-1:10250")
	node := f.node(t)
	_ = node.SetWriteDeadline(time.Now().Add(2 * time.Second))
	sent, err := io.CopyN(node, zeros{}, 256<<20)
	if err == nil || sent > 20<<20 { // a stream's window is 8 MiB at most
		t.Fatalf("a node whose client reads nothing was stopped after %d bytes, by %v", sent, err)
	}
	id := other.dial(2, "echo:1")
	other.data(id, []byte("a word"))
	other.next(konnectivity.PacketType_DATA)
	slow.vanish()
	wantReset(t, node, wire.Canceled)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestAnswersThatWait: a client that reads its answers late, or beside much data, gets all of them. Seen failing with a bound of 128 that may wait, and with
// Pause left out of addLate (all that the client likes waits).
func TestAnswersThatWait(t *testing.T) {
	f := start(t)
	k := f.packets(t)
	const each = 20_000
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range each {
			_ = k.stream.Send(&konnectivity.Packet{Type: konnectivity.PacketType_CLOSE_REQ, Payload: &konnectivity.Packet_CloseRequest{CloseRequest: &konnectivity.CloseRequest{ConnectID: int64(i + 1000)}}})
			_ = k.stream.Send(&konnectivity.Packet{Type: konnectivity.PacketType_DIAL_REQ, Payload: &konnectivity.Packet_DialRequest{
				DialRequest: &konnectivity.DialRequest{Protocol: "udp", Address: "x:1", Random: int64(i)},
			}})
		}
	}()
	select {
	case <-sent:
		t.Error("all was taken of a client that reads nothing")
	case <-time.After(time.Second):
	}
	closed, refused := 0, 0
	for range 2 * each {
		p, err := k.stream.Recv()
		if err != nil {
			t.Fatalf("after %d and %d answers: %v", closed, refused, err)
		}
		switch p.Type {
		case konnectivity.PacketType_CLOSE_RSP:
			closed++
		case konnectivity.PacketType_DIAL_RSP:
			refused++
		}
	}
	if closed != each || refused != each {
		t.Errorf("%d and %d answers came", closed, refused)
	}
	within(t, sent, "the client to be read again")
}

// TestBoundsOfOneStream: so many dials and connections on one stream, and packets of such a size.
func TestBoundsOfOneStream(t *testing.T) {
	f := start(t)
	k := f.packets(t)
	for i := range maxPerCall {
		k.dial(int64(i+1), "edge-1:10250")
		f.node(t)
	}
	k.dialRequest(999, "edge-1:10250")
	if r := k.next(konnectivity.PacketType_DIAL_RSP).GetDialResponse(); r.Random != 999 || !strings.Contains(r.Error, "too many") {
		t.Errorf("one more: %v", r)
	}
	k = f.packets(t)
	id := k.dial(1, "edge-1:10250")
	node := f.node(t)
	_ = k.stream.Send(dataPacket(id, make([]byte, maxPacket+1)))
	var err error
	for err == nil { // the connection may be said to be cut
		_, err = k.stream.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted && !errors.Is(err, io.EOF) {
		t.Errorf("a packet that is too large: %v", err)
	}
	wantReset(t, node, wire.Canceled)
}

// TestBrokenClientsAreLogged: one that does not keep to HTTP/2 is cut off, and the operator sees why.
func TestBrokenClientsAreLogged(t *testing.T) {
	f := start(t)
	c, err := net.Dial("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x06\x00\x00\x00\x00\x00"); err != nil { // no settings
		t.Fatal(err)
	}
	f.logs.await(t, `level=WARN msg="a gRPC client of the socket was cut off`)
	f.logs.await(t, "settings come first")
}
