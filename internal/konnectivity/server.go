package konnectivity

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

const (
	// maxPacket bounds what an agent sends at once. Agents send 4 KiB.
	maxPacket = 256 << 10
	// ioBuffer is what a connection has to read and to write; strangers have it too.
	ioBuffer = 8 << 10
	// maxPerNode bounds the streams of one node's agents. An agent has one, and while it is replaced there are two agents.
	maxPerNode = 8
	// maxReviews bounds the identities of one tenant that are looked up at a time.
	maxReviews = 16
)

// Identity is an agent's, as it was verified.
type Identity struct {
	// Node is the name of the node that it runs on.
	Node string
	// UID is that of the Node object; empty: of whichever has the name.
	UID string
	// By says how that is known, for the log.
	By string
	// Still tells whether it is so later on; an error that is enough to end a session says why not. nil: always.
	Still func() error
}

// Nodes knows who an agent is, and where its node is. What a *tunnel.RefusedError says is told to the agent; of other errors
// it learns that it can't be looked up for now.
type Nodes interface {
	// ByCertificate names the node whose certificate was verified in the handshake.
	ByCertificate(ctx context.Context, tenant string, cs tls.ConnectionState) (Identity, error)
	// ByToken asks the tenant's API server whose token it is.
	ByToken(ctx context.Context, tenant, token string) (Identity, error)
	// Whereabouts reads the Node object. ErrNoNode: there is none.
	Whereabouts(ctx context.Context, tenant string, id Identity) (Whereabouts, error)
}

// Config is what a Server is made of.
type Config struct {
	// TLS is the broker's side, which has to verify client certificates if there are any.
	TLS *tls.Config
	// Tenant returns the tenant for which a server name is; false if there is none.
	Tenant func(serverName string) (string, bool)
	Nodes  Nodes
	// OnSession takes up a session that was let in; leave is called when it has ended. An error refuses it.
	OnSession func(*Session) (leave func(), err error)
	// HeartbeatInterval is after how long without a sign of life an agent is asked for one. Default 25 s.
	HeartbeatInterval time.Duration
	// HeartbeatTimeout ends a session that has been silent, or has taken nothing, for so long. Default 60 s.
	HeartbeatTimeout time.Duration
	// RecheckInterval is how often it is looked whether an agent's node is still there. Default 5 min.
	RecheckInterval time.Duration
	// AuthTimeout bounds the time from a connection's begin until it is known whose it is. Default 20 s.
	AuthTimeout time.Duration
	// MaxStreams is how many connections may be open through one agent. Default 1000.
	MaxStreams int
	// MaxPending is how many dials of one agent may wait for an answer. Default 100.
	MaxPending int
	Logger     *slog.Logger
}

// Server takes agents. Make it with New.
type Server struct {
	cfg Config
	// id is what agents are told that they are connected to; another in each process, so that an agent which is to have a
	// connection to each of several brokers sees that they are several.
	id     string
	ctx    context.Context // of Serve
	census census

	mu      sync.Mutex // guards the following
	reviews map[string]chan struct{}
}

// New makes a Server; it starts nothing.
func New(cfg Config) *Server {
	cfg.HeartbeatInterval = cmp.Or(cfg.HeartbeatInterval, 25*time.Second)
	cfg.HeartbeatTimeout = cmp.Or(cfg.HeartbeatTimeout, 60*time.Second)
	cfg.RecheckInterval = cmp.Or(cfg.RecheckInterval, 5*time.Minute)
	cfg.AuthTimeout = cmp.Or(cfg.AuthTimeout, 20*time.Second)
	cfg.MaxStreams = cmp.Or(cfg.MaxStreams, 1000)
	cfg.MaxPending = cmp.Or(cfg.MaxPending, 100)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, id: rand.Text(), census: census{n: map[[2]string]int{}}, reviews: map[string]chan struct{}{}}
}

// service is upstream's AgentService, whose own package would bring its whole server.
var service = grpc.ServiceDesc{
	ServiceName: "AgentService",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{
		StreamName: "Connect", ServerStreams: true, ClientStreams: true,
		Handler: func(srv any, stream grpc.ServerStream) error { return srv.(*Server).connect(stream) },
	}},
}

// Serve takes connections from ln until ctx ends; then it ends all of them, closes ln and returns nil. It is called once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.ctx = ctx
	srv := grpc.NewServer(
		grpc.Creds(handshakes{credentials.NewTLS(s.cfg.TLS), s.cfg.AuthTimeout}),
		grpc.ConnectionTimeout(s.cfg.AuthTimeout),
		grpc.MaxConcurrentStreams(1), grpc.MaxRecvMsgSize(maxPacket), grpc.MaxHeaderListSize(maxHeaders),
		grpc.ReadBufferSize(ioBuffer), grpc.WriteBufferSize(ioBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: s.cfg.HeartbeatInterval, Timeout: max(time.Second, s.cfg.HeartbeatTimeout-s.cfg.HeartbeatInterval),
		}),
		// How often agents ask is their operator's choice (--keepalive-time), and cheap.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	srv.RegisterService(&service, s)
	defer context.AfterFunc(ctx, srv.Stop)()
	err := srv.Serve(ln)
	if ctx.Err() != nil {
		return nil
	}
	srv.Stop()
	return fmt.Errorf("konnectivity agents: %w", err)
}

// connect serves one stream.
func (s *Server) connect(stream grpc.ServerStream) error {
	p, _ := peer.FromContext(stream.Context())
	info, ok := p.AuthInfo.(*peerInfo)
	if !ok {
		return status.Error(codes.Internal, "no TLS")
	}
	defer info.leave()
	if info.used.Swap(true) {
		return status.Error(codes.ResourceExhausted, "one stream a connection")
	}
	tenant, ok := s.cfg.Tenant(info.State.ServerName)
	if !ok {
		return status.Error(codes.Unauthenticated, "no such name")
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	session, err := s.admit(stream.Context(), tenant, info, md, p.Addr)
	if err != nil {
		s.cfg.Logger.Warn("konnectivity agent refused", "tenant", tenant, "remote", p.Addr.String(), "saysID", said(md, "agentID"),
			"saysIdentifiers", said(md, "agentIdentifiers"), "err", err)
		return told(err)
	}
	release, ok := s.census.enter(tenant, session.node, maxPerNode)
	if !ok {
		return status.Errorf(codes.ResourceExhausted, "node %s has %d konnectivity streams already", session.node, maxPerNode)
	}
	defer release()
	if err := stream.SendHeader(metadata.Pairs("serverID", s.id, "serverCount", "1")); err != nil {
		return err
	}
	info.admitted()
	leave, err := s.cfg.OnSession(session)
	if err != nil {
		session.Close(0, err.Error())
		return told(err)
	}
	defer leave()
	packets := &grpc.GenericServerStream[client.Packet, client.Packet]{ServerStream: stream}
	err = session.run(s.ctx, packets, func() { info.raw.Close() })
	session.log.Info("konnectivity agent's session ended", "after", time.Since(session.since).Round(time.Millisecond), "err", err)
	if errors.Is(err, errLeft) {
		return nil
	}
	return told(err)
}

// admit finds out whose agent it is.
func (s *Server) admit(ctx context.Context, tenant string, info *peerInfo, md metadata.MD, remote net.Addr) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AuthTimeout)
	defer cancel()
	leave, err := s.review(ctx, tenant)
	if err != nil {
		return nil, err
	}
	defer leave()
	id, err := s.identify(ctx, tenant, info, md)
	if err != nil {
		return nil, err
	}
	session := newSession(&s.cfg, tenant, id, remote)
	err = session.where.refresh(ctx)
	if err != nil {
		session.cancel(err)
		return nil, fmt.Errorf("node %s: %w", id.Node, err)
	}
	session.log.Info("konnectivity agent connected", "by", id.By, "saysID", said(md, "agentID"), "saysIdentifiers", said(md, "agentIdentifiers"))
	return session, nil
}

func (s *Server) identify(ctx context.Context, tenant string, info *peerInfo, md metadata.MD) (Identity, error) {
	if len(info.State.PeerCertificates) > 0 {
		return s.cfg.Nodes.ByCertificate(ctx, tenant, info.State)
	}
	token, err := bearer(md)
	if err != nil {
		return Identity{}, refused(err)
	}
	return s.cfg.Nodes.ByToken(ctx, tenant, token)
}

// review waits for one of a tenant's places for look-ups.
func (s *Server) review(ctx context.Context, tenant string) (leave func(), err error) {
	s.mu.Lock()
	places := s.reviews[tenant]
	if places == nil {
		places = make(chan struct{}, maxReviews)
		s.reviews[tenant] = places
	}
	s.mu.Unlock()
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for other agents of tenant %s to be looked up: %w", tenant, ctx.Err())
	}
}

// Forget forgets what is kept of a tenant that was removed.
func (s *Server) Forget(tenant string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.reviews, tenant)
}
