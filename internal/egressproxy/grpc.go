package egressproxy

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/status"
	konnectivity "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/mooring-edge/mooring/internal/listen"
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
	// callWindow is what a client may send ahead on one gRPC stream, in bytes.
	callWindow = 256 << 10
	// maxHeader bounds the headers of a gRPC stream, in bytes.
	maxHeader = 8 << 10
)

// serveGRPC serves konnectivity's ProxyService until ctx ends, and returns when its calls have.
func (p *Proxy) serveGRPC(ctx context.Context, l *listen.Handed) {
	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxPacket),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.InitialWindowSize(callWindow),
		grpc.ConnectionTimeout(firstBytes),
		grpc.WaitForHandlers(true),
		grpc.ForceServerCodecV2(codec{}),
		experimental.BufferPool(dirty),
	)
	konnectivity.RegisterProxyServiceServer(srv, service{p})
	defer context.AfterFunc(ctx, srv.Stop)()
	_ = srv.Serve(l) // ends by Stop alone
	srv.Stop()       // returns once the handlers have ended
}

type service struct{ p *Proxy }

// Proxy is konnectivity's one method: packets both ways.
func (s service) Proxy(stream konnectivity.ProxyService_ProxyServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	c := &call{p: s.p, ctx: ctx, stream: stream, pending: map[int64]context.CancelFunc{}, conns: map[int64]*conn{}}
	defer c.work.Wait()
	defer c.abandon()
	defer cancel()
	for {
		var r received
		err := stream.RecvMsg(&r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if r.packet == nil {
			c.takeData(r)
			continue
		}
		if err := c.take(r.packet); err != nil {
			return err
		}
	}
}

// call is one gRPC stream: one dial and its connection as kube-apiserver uses it, several if somebody likes.
//
// One goroutine reads it. Each connection has two of its own, and a queue for what the client sends, so that a node that is slow to
// take it holds up that connection alone, until the queue is full. From there on gRPC's flow control stops the client, all of
// the stream: see conn.put for what others on it may expect.
type call struct {
	p      *Proxy
	ctx    context.Context // ends with the stream
	stream konnectivity.ProxyService_ProxyServer
	work   sync.WaitGroup // dials and connections

	sendMu sync.Mutex // held through each send; guards conn.mute

	mu      sync.Mutex                   // guards the following
	pending map[int64]context.CancelFunc // dials by their random number
	conns   map[int64]*conn              // by connection id
	last    int64                        // connection id that was given
}

// take does what one packet asks for. An error ends the stream.
func (c *call) take(pkt *konnectivity.Packet) error {
	switch pkt.GetType() {
	case konnectivity.PacketType_DIAL_REQ:
		return c.dialRequest(pkt.GetDialRequest())
	case konnectivity.PacketType_DATA: // one that is written in an uncommon way
		c.takeData(received{id: pkt.GetData().GetConnectID(), data: held{bytes: pkt.GetData().GetData()}})
	case konnectivity.PacketType_CLOSE_REQ:
		id := pkt.GetCloseRequest().GetConnectID()
		k := c.conn(id)
		if k == nil {
			return c.send(closeResponse(id, "no such connection"))
		}
		k.finish()
		return c.sayClosed(k, "")
	case konnectivity.PacketType_DIAL_CLS:
		c.dialClosed(pkt.GetCloseDial().GetRandom())
	}
	// DRAIN is for servers with agents behind them, and what is not known is passed over.
	return nil
}

// takeData hands data on. What comes for a connection that has ended crossed the word of that.
func (c *call) takeData(r received) {
	if k := c.conn(r.id); k != nil {
		k.put(r.data)
		return
	}
	r.data.free()
}

func (c *call) conn(id int64) *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns[id]
}

// dialRequest begins a dial. What is refused at once is answered by the reading goroutine: who does not read its answers is
// not read either.
func (c *call) dialRequest(r *konnectivity.DialRequest) error {
	random := r.GetRandom()
	if r.GetProtocol() != "tcp" {
		return c.send(dialRefused(random, "only tcp is carried, not "+wire.Printable(cut(r.GetProtocol(), 20))))
	}
	if len(r.GetAddress()) > wire.MaxTarget {
		return c.send(dialRefused(random, "the address is too long"))
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
		return c.send(dialRefused(random, "too many connections on one stream"))
	}
	c.work.Go(func() {
		defer cancel()
		c.dial(ctx, random, r.GetAddress())
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
		_ = c.send(dialRefused(random, refused.text)) // an error says that the client is gone
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

func (c *call) send(pkt *konnectivity.Packet) error {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	return c.stream.Send(pkt)
}

// sendData sends the first n bytes of a buffer, which it takes, of a connection that has not been said to be closed.
func (c *call) sendData(k *conn, buf *[]byte, n int) error {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if k.mute {
		dirty.Put(buf)
		return errMute
	}
	if n <= chunk/4 { // gRPC keeps it until the client takes it
		small := dirty.Get(n)
		copy(*small, *buf)
		dirty.Put(buf)
		buf = small
	}
	return c.stream.SendMsg(&sending{id: k.id, buf: buf, n: n})
}

var errMute = errors.New("the connection was closed by its client")

// sayClosed sends the last packet of a connection, once. why is empty for an end in the ordinary way.
func (c *call) sayClosed(k *conn, why string) error {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if k.mute {
		return nil
	}
	k.mute = true
	return c.stream.Send(closeResponse(k.id, why))
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
