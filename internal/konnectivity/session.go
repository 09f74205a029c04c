package konnectivity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Transport is what sessions of this kind are called in metrics, logs and spans.
const Transport tunnel.Transport = "konnectivity"

// packets is the stream of one agent: grpc.BidiStreamingServer of packets.
type packets interface {
	Send(*client.Packet) error
	Recv() (*client.Packet, error)
}

// Session is one stream of an agent that was let in. It is a way to its node. Safe for concurrent use.
type Session struct {
	cfg          *Config
	log          *slog.Logger
	tenant, node string
	id           Identity
	remote       net.Addr
	since        time.Time
	where        *whereabouts

	ctx    context.Context // ends with the session; its cause says why
	cancel context.CancelCauseFunc

	out  chan *client.Packet // unbuffered: what is handed over goes before what is handed over later
	wake chan struct{}       // holds one: there is something urgent

	queued            atomic.Int64 // bytes that wait to be read, of all connections
	bytesIn, bytesOut atomic.Uint64

	mu       sync.Mutex // guards the following
	conns    map[int64]*conn
	dials    map[int64]*dial // by the number that names it
	lastDial int64
	opened   uint64
	urgent   []*client.Packet // goes before what else is sent; one for each connection at most
	draining bool
}

func newSession(cfg *Config, tenant string, id Identity, remote net.Addr) *Session {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Session{
		cfg: cfg, tenant: tenant, node: id.Node, id: id, remote: remote, since: time.Now(),
		log:   cfg.Logger.With("tenant", tenant, "node", id.Node, "transport", string(Transport), "remote", remote.String()),
		where: &whereabouts{look: func(ctx context.Context) (Whereabouts, error) { return cfg.Nodes.Whereabouts(ctx, tenant, id) }},
		ctx:   ctx, cancel: cancel, out: make(chan *client.Packet), wake: make(chan struct{}, 1),
		conns: map[int64]*conn{}, dials: map[int64]*dial{},
	}
}

// Still asks whether the agent is still whom it was let in as.
func (s *Session) Still() error {
	if s.id.Still == nil {
		return nil
	}
	return s.id.Still()
}

// Tenant is whose it is.
func (s *Session) Tenant() string { return s.tenant }

// Node is the node that it is a way to.
func (s *Session) Node() string { return s.node }

// Transport implements switchboard.Way.
func (s *Session) Transport() tunnel.Transport { return Transport }

// RemoteAddr is where the agent connects from.
func (s *Session) RemoteAddr() net.Addr { return s.remote }

// Addresses are the node's, as its Node object says.
func (s *Session) Addresses() []netip.Addr { return s.where.known().Addresses }

// Draining tells that the agent is about to end: what is open goes on, and nothing new is taken.
func (s *Session) Draining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// Stats are as a tunnel session's; there is no round-trip time.
func (s *Session) Stats() tunnel.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return tunnel.Stats{OpenStreams: len(s.conns), Opened: s.opened, BytesIn: s.bytesIn.Load(), BytesOut: s.bytesOut.Load(), Since: s.since}
}

// Close ends the session and all its connections. The agent sees its connection break, and is told why when it comes again.
func (s *Session) Close(code wire.Code, message string) {
	s.cancel(&tunnel.ClosedError{Code: code, Message: message})
}

// Err is why it ended; nil if it has not.
func (s *Session) Err() error { return context.Cause(s.ctx) }

// run serves the stream until it ends, the session is closed, or ctx ends. cut has to end the stream's calls.
func (s *Session) run(ctx context.Context, stream packets, cut func()) error {
	defer context.AfterFunc(ctx, func() { s.Close(wire.Shutdown, "this broker is stopping") })()
	defer context.AfterFunc(s.ctx, cut)()
	var work sync.WaitGroup
	work.Go(func() { s.cancel(s.sendAll(stream)) })
	work.Go(func() { s.recheck() })
	s.cancel(s.receiveAll(stream))
	work.Wait()
	s.finish()
	return s.Err()
}

// finish ends what is open.
func (s *Session) finish() {
	s.mu.Lock()
	var open []*conn
	for _, c := range s.conns {
		open = append(open, c)
	}
	s.mu.Unlock()
	for _, c := range open {
		c.ended(s.Err())
	}
}

// errLeft is that the agent ended its stream in the ordinary way.
var errLeft = errors.New("the agent left")

// receiveAll takes what the agent sends.
func (s *Session) receiveAll(stream packets) error {
	for {
		p, err := stream.Recv()
		switch {
		case err == io.EOF:
			return &tunnel.ClosedError{Code: wire.OK, Message: "the agent left", Remote: true, Err: errLeft}
		case status.Code(err) == codes.Canceled:
			return &tunnel.ClosedError{Code: wire.Unavailable, Message: "the agent's connection ended", Remote: true, Err: err}
		case err != nil:
			return &tunnel.ClosedError{Code: wire.Unavailable, Message: "the agent's connection broke", Err: err}
		}
		if err := s.receive(p); err != nil {
			return &tunnel.ClosedError{Code: wire.BadRequest, Message: err.Error()}
		}
	}
}

// receive takes one packet. An error is one of the protocol: with who makes it, nothing else can be relied on.
func (s *Session) receive(p *client.Packet) error {
	switch p.GetType() {
	case client.PacketType_DIAL_RSP:
		return s.answered(p.GetDialResponse())
	case client.PacketType_DATA:
		s.take(p.GetData().GetConnectID(), p.GetData().GetData())
	case client.PacketType_CLOSE_RSP:
		why := io.EOF
		if text := p.GetCloseResponse().GetError(); text != "" {
			why = fmt.Errorf("the konnectivity agent ended the connection: %.200s", text)
		}
		s.closed(p.GetCloseResponse().GetConnectID(), why)
	case client.PacketType_CLOSE_REQ:
		s.closed(p.GetCloseRequest().GetConnectID(), io.EOF)
	case client.PacketType_DRAIN:
		s.mu.Lock()
		was := s.draining
		s.draining = true
		open := len(s.conns)
		s.mu.Unlock()
		if !was {
			s.log.Info("konnectivity agent is about to end: it is asked for no more", "open", open)
		}
	case client.PacketType_DIAL_REQ:
		return errors.New("an agent dials nothing through the broker")
	} // and what this broker does not know is passed over
	return nil
}

// take gives a connection what came for it. What comes for none was on its way when that ended.
func (s *Session) take(id int64, data []byte) {
	s.mu.Lock()
	c := s.conns[id]
	s.mu.Unlock()
	if c == nil || len(data) == 0 {
		return
	}
	s.bytesIn.Add(uint64(len(data)))
	added, err := c.in.push(data, s.ctx.Done())
	if err != nil {
		s.log.Warn("a connection through a konnectivity agent is closed", "target", c.target, "err", err)
		c.end(err)
		return
	}
	if s.queued.Add(int64(added)) > maxInboxes {
		s.shed()
	}
}

// shed closes the connection of which the most waits to be read.
func (s *Session) shed() {
	s.mu.Lock()
	var most *conn
	for _, c := range s.conns {
		if most == nil || c.in.waiting() > most.in.waiting() {
			most = c
		}
	}
	s.mu.Unlock()
	if most != nil {
		s.log.Warn("a connection through a konnectivity agent is closed", "target", most.target, "err", errFull)
		most.end(errFull)
	}
}

func (s *Session) closed(id int64, why error) {
	s.mu.Lock()
	c := s.conns[id]
	s.mu.Unlock()
	if c != nil {
		c.ended(why)
	}
}

func (s *Session) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[c.id] == c {
		delete(s.conns, c.id)
	}
}

// sendAll gives the agent what is to be sent. An agent that takes nothing for as long as a dead one is given is given up, whatever
// its keepalive says: one connection that its node does not read stops all that an agent does.
func (s *Session) sendAll(stream packets) error {
	stuck := time.AfterFunc(s.cfg.HeartbeatTimeout, func() {
		s.Close(wire.HeartbeatLost, fmt.Sprintf("the agent has taken nothing for %s", s.cfg.HeartbeatTimeout))
	})
	stuck.Stop() // it runs while something is being sent
	nudge := time.NewTicker(s.cfg.HeartbeatInterval)
	defer nudge.Stop()
	for {
		p := s.nextUrgent()
		if p == nil {
			select {
			case p = <-s.out:
			case <-s.wake:
				continue
			case <-nudge.C:
				// An agent that is told to end looks for that when it has received something, and says so then.
				p = &client.Packet{Type: client.PacketType_DIAL_CLS, Payload: &client.Packet_CloseDial{CloseDial: &client.CloseDial{}}}
			case <-s.ctx.Done():
				return s.Err()
			}
		}
		stuck.Reset(s.cfg.HeartbeatTimeout)
		err := stream.Send(p)
		stuck.Stop()
		if err != nil {
			return &tunnel.ClosedError{Code: wire.Unavailable, Message: "the agent's connection broke", Err: err}
		}
	}
}

// urge sends a packet before others, without waiting.
func (s *Session) urge(p *client.Packet) {
	s.mu.Lock()
	s.urgent = append(s.urgent, p)
	s.mu.Unlock()
	signal(s.wake)
}

func (s *Session) nextUrgent() *client.Packet {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.urgent) == 0 {
		s.urgent = nil
		return nil
	}
	p := s.urgent[0]
	s.urgent = s.urgent[1:]
	return p
}

func closeRequest(id int64) *client.Packet {
	return &client.Packet{Type: client.PacketType_CLOSE_REQ, Payload: &client.Packet_CloseRequest{CloseRequest: &client.CloseRequest{ConnectID: id}}}
}

// recheck asks from time to time whether the agent may still be here.
func (s *Session) recheck() {
	tick := time.NewTicker(s.cfg.RecheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			ctx, cancel := context.WithTimeout(s.ctx, s.cfg.AuthTimeout)
			err := s.where.refresh(ctx)
			cancel()
			if errors.Is(err, ErrNoNode) {
				s.log.Warn("konnectivity agent is cut: its node is no more", "err", err)
				s.Close(wire.Revoked, "the node of this agent is not there any more")
			}
		case <-s.ctx.Done():
			return
		}
	}
}
