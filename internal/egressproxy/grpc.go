package egressproxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	konnectivity "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/mooring-edge/mooring/internal/bidi"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// maxPacket bounds a packet that is received, in bytes: gRPC's own default, and that of konnectivity's server. The client makes
	// one packet of each Write.
	maxPacket = 4 << 20
	// chunk bounds the data of a packet that is sent.
	chunk = 64 << 10
	// maxPerCall bounds the dials and connections of one gRPC stream. The API server has one on each.
	maxPerCall = 128
	// maxCalls bounds the gRPC streams of one connection.
	maxCalls = 1024

	proxyMethod = "/ProxyService/Proxy" // see konnectivity's client.proto
)

// grpc serves konnectivity's ProxyService on a connection, of which early was read, until that or ctx ends, and returns when its calls have. It
// closes conn.
func (p *Proxy) grpc(ctx context.Context, conn net.Conn, early []byte) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := bidi.Serve(conn, early, bidi.Config{
		Method: proxyMethod, MaxMessage: maxPacket, MaxStreams: maxCalls, Patience: firstBytes,
		Open: func(s *bidi.Stream) bidi.Handler { return newCall(ctx, p, s) },
	})
	var fault *bidi.ProtocolError
	if errors.As(err, &fault) {
		p.log.Warn("a gRPC client of the socket was cut off: it is none that kube-apiserver has, or has a bug", "err", err)
		return
	}
	p.log.Debug("a gRPC connection ended", "err", err)
}

// client is the gRPC stream of a call.
type client interface {
	Send(head, body []byte) error
	TrySend(head, body []byte) bool
	Pause()
	Resume()
}

// call is one gRPC stream: one dial and its connection as kube-apiserver uses it, several if somebody likes.
//
// One goroutine reads it, and the others of the same gRPC connection: it waits for nothing. Each connection has two of its own, and a queue for what the
// client sends, so that a node that is slow to take it holds up that connection alone, until the queue is full. From there on gRPC's flow control
// stops the client, all of the stream: see conn.put for what others on it may expect.
type call struct {
	p      *Proxy
	ctx    context.Context // ends when nothing more comes
	cancel context.CancelFunc
	client client
	work   sync.WaitGroup // dials, connections, and answers that wait

	sendMu sync.Mutex // held through each send; guards conn.mute

	mu      sync.Mutex                   // guards the following
	pending map[int64]context.CancelFunc // dials by their random number
	conns   map[int64]*conn              // by connection id
	last    int64                        // connection id that was given
	late    [][]byte                     // packets that wait for the client
}

func newCall(ctx context.Context, p *Proxy, to client) *call {
	c := &call{p: p, client: to, pending: map[int64]context.CancelFunc{}, conns: map[int64]*conn{}}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

// Take implements bidi.Handler: it does what one packet asks for.
func (c *call) Take(m *bidi.Message) error {
	if id, data, ok := parseData(m.Bytes()); ok {
		c.takeData(id, data, m)
		return nil
	}
	var pkt konnectivity.Packet
	if err := proto.Unmarshal(m.Bytes(), &pkt); err != nil {
		return status.Errorf(codes.Internal, "this is no packet: %v", err)
	}
	switch pkt.GetType() {
	case konnectivity.PacketType_DIAL_REQ:
		return c.dialRequest(pkt.GetDialRequest())
	case konnectivity.PacketType_DATA: // one that is written in an uncommon way
		c.takeData(pkt.GetData().GetConnectID(), pkt.GetData().GetData(), new(bidi.Message))
	case konnectivity.PacketType_CLOSE_REQ:
		id := pkt.GetCloseRequest().GetConnectID()
		k := c.conn(id)
		if k == nil {
			c.answer(closeResponse(id, "no such connection"))
			return nil
		}
		if k.finish() {
			c.closing(k)
		}
	case konnectivity.PacketType_DIAL_CLS:
		c.dialClosed(pkt.GetCloseDial().GetRandom())
	}
	// DRAIN is for servers with agents behind them, and what is not known is passed over.
	return nil
}

// Ended implements bidi.Handler.
func (c *call) Ended() {
	c.cancel()
	c.abandon()
}

// Wait implements bidi.Handler.
func (c *call) Wait() { c.work.Wait() }

// takeData hands data on, which is a part of m. What comes for a connection that has ended crossed the word of that.
func (c *call) takeData(id int64, data []byte, m *bidi.Message) {
	if k := c.conn(id); k != nil {
		k.put(data, m)
	}
}

func (c *call) conn(id int64) *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns[id]
}

// dialRequest begins a dial.
func (c *call) dialRequest(r *konnectivity.DialRequest) error {
	random := r.GetRandom()
	if r.GetProtocol() != "tcp" {
		c.answer(dialRefused(random, "only tcp is carried, not "+wire.Printable(cut(r.GetProtocol(), 20))))
		return nil
	}
	if len(r.GetAddress()) > wire.MaxTarget {
		c.answer(dialRefused(random, "the address is too long"))
		return nil
	}
	ctx, cancel := context.WithCancel(c.ctx)
	c.mu.Lock()
	_, twice := c.pending[random]
	full := len(c.pending)+len(c.conns) >= maxPerCall
	if !twice && !full {
		c.pending[random] = cancel
	}
	c.mu.Unlock()
	switch {
	case twice:
		cancel()
		return status.Errorf(codes.InvalidArgument, "a dial with the number %d is under way", random)
	case full:
		cancel()
		c.answer(dialRefused(random, "too many connections on one stream"))
		return nil
	}
	address := r.GetAddress()
	c.work.Go(func() {
		defer cancel()
		c.dial(ctx, random, address)
	})
	return nil
}

func cut(s string, most int) string {
	if len(s) > most {
		return s[:most]
	}
	return s
}

// dial answers a DIAL_REQ, and carries the connection to its end.
func (c *call) dial(ctx context.Context, random int64, address string) {
	node, log, refused := c.p.dial(ctx, protoGRPC, address)
	c.mu.Lock()
	_, wanted := c.pending[random]
	delete(c.pending, random)
	var k *conn
	if wanted && refused == nil && c.ctx.Err() == nil { // else abandon has been
		c.last++
		k = newConn(c, c.last, random, node, log)
		c.conns[k.id] = k
	}
	c.mu.Unlock()
	switch {
	case k != nil:
		defer c.p.metrics.open(protoGRPC)()
		k.run()
	case refused == nil: // nobody waits for it any more
		_ = node.Reset(wire.Canceled)
	case wanted && c.ctx.Err() == nil:
		c.answer(dialRefused(random, refused.text))
	}
}

// dialClosed is for a dial that its client gave up, be it that the answer is on its way to it.
func (c *call) dialClosed(random int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cancel := c.pending[random]; cancel != nil {
		delete(c.pending, random)
		cancel()
		return
	}
	for _, k := range c.conns {
		if k.random == random {
			k.abort(wire.Canceled, "its client gave up the dial")
		}
	}
}

// abandon cuts what is open when the stream ends: a client that did not close its connections has died, or was cut off.
func (c *call) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.conns {
		k.abandoned()
	}
}

// forget takes a connection off the stream.
func (c *call) forget(k *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, k.id)
}

// alone tells whether k is all that there is on the stream.
func (c *call) alone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.conns)+len(c.pending) == 1
}

// send sends a packet, and waits until the client takes it.
func (c *call) send(pkt *konnectivity.Packet) error {
	b, err := proto.Marshal(pkt)
	if err != nil {
		return err
	}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	return c.client.Send(b, nil)
}

// maxLate is how many answers may wait for the client before no more is read of it. What that may have sent by then is answered too.
const maxLate = 16

// answer sends a packet and does not wait for the client. Answers do not overtake each other.
func (c *call) answer(pkt *konnectivity.Packet) {
	b, err := proto.Marshal(pkt)
	if err != nil { // it is made here, of little
		c.p.log.Error("an answer can't be written", "err", err)
		return
	}
	c.mu.Lock()
	waiting := len(c.late) > 0
	if waiting {
		c.addLate(b)
	}
	c.mu.Unlock()
	if waiting {
		return
	}
	if c.sendMu.TryLock() {
		sent := c.client.TrySend(b, nil)
		c.sendMu.Unlock()
		if sent {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addLate(b)
	if len(c.late) == 1 {
		c.work.Go(c.sendLate)
	}
}

// addLate has a packet sent by sendLate. mu is held.
func (c *call) addLate(b []byte) {
	if c.late = append(c.late, b); len(c.late) == maxLate {
		c.client.Pause()
	}
}

// sendLate sends the packets that wait.
func (c *call) sendLate() {
	for {
		c.mu.Lock()
		b := c.late[0]
		c.mu.Unlock()
		c.sendMu.Lock()
		_ = c.client.Send(b, nil) // an error says that the client is gone, which the others will be told, too
		c.sendMu.Unlock()
		c.mu.Lock()
		c.late = c.late[1:]
		left := len(c.late)
		if left == maxLate-1 {
			c.client.Resume()
		}
		c.mu.Unlock()
		if left == 0 {
			return
		}
	}
}

// dataRoom is more than a packet of data has before its bytes.
const dataRoom = 48

// sendData sends bytes of a connection that has not been said to be closed. head is memory for what comes before them.
func (c *call) sendData(k *conn, head *[dataRoom]byte, data []byte) error {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if k.mute {
		return errMute
	}
	return c.client.Send(appendData(head[:0], k.id, len(data)), data)
}

// trySendData is sendData without waiting; false: nothing was sent.
func (c *call) trySendData(k *conn, head *[dataRoom]byte, data []byte) bool {
	if !c.sendMu.TryLock() {
		return false
	}
	defer c.sendMu.Unlock()
	return !k.mute && c.client.TrySend(appendData(head[:0], k.id, len(data)), data)
}

var errMute = errors.New("the connection was closed by its client")

// sayClosed sends the last packet of a connection, once. why is empty for an end in the ordinary way.
func (c *call) sayClosed(k *conn, why string) error {
	b, err := proto.Marshal(closeResponse(k.id, why))
	if err != nil {
		return err
	}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if k.mute {
		return nil
	}
	k.mute = true
	return c.client.Send(b, nil)
}

// closing is sayClosed for an end in the ordinary way, and does not wait.
func (c *call) closing(k *conn) {
	b, err := proto.Marshal(closeResponse(k.id, ""))
	if err == nil && c.sendMu.TryLock() {
		sent := k.mute || c.client.TrySend(b, nil)
		k.mute = k.mute || sent
		c.sendMu.Unlock()
		if sent {
			return
		}
	}
	c.work.Go(func() { _ = c.sayClosed(k, "") })
}

func dialRefused(random int64, why string) *konnectivity.Packet {
	return dialResponse(&konnectivity.DialResponse{Random: random, Error: why})
}

func dialResponse(r *konnectivity.DialResponse) *konnectivity.Packet {
	return &konnectivity.Packet{Type: konnectivity.PacketType_DIAL_RSP, Payload: &konnectivity.Packet_DialResponse{DialResponse: r}}
}

func closeResponse(id int64, why string) *konnectivity.Packet {
	return &konnectivity.Packet{Type: konnectivity.PacketType_CLOSE_RSP, Payload: &konnectivity.Packet_CloseResponse{
		CloseResponse: &konnectivity.CloseResponse{ConnectID: id, Error: why},
	}}
}

// closeGrace is how long a connection that its client closed has for what is still to be written to the node.
const closeGrace = 10 * time.Second
