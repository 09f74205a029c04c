package konnectivity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// nodeAddress is that of edge-1, as its Node object says.
var nodeAddress = netip.MustParseAddr("192.0.2.7")

// directory is a Nodes: tokens are names of nodes.
type directory struct {
	mu   sync.Mutex // guards the following
	gone bool
}

func (d *directory) ByCertificate(_ context.Context, tenant string, cs tls.ConnectionState) (Identity, error) {
	id, err := pki.PeerIdentity(cs)
	if err == nil && id.Tenant != tenant {
		err = refused(errors.New("another tenant's"))
	}
	return Identity{Node: id.Name, By: "certificate"}, err
}

func (d *directory) ByToken(_ context.Context, tenant, token string) (Identity, error) {
	if token == "unavailable" {
		return Identity{}, errors.New("the API server is silent")
	}
	return Identity{Node: token, By: "token"}, nil
}

func (d *directory) Whereabouts(context.Context, string, Identity) (Whereabouts, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return Whereabouts{}, ErrNoNode
	}
	return Whereabouts{Addresses: []netip.Addr{nodeAddress}, KubeletPort: 10250}, nil
}

// pipe is a stream whose agent is the test.
type pipe struct {
	toAgent, toBroker chan *client.Packet
	cut               chan struct{}
	once              sync.Once
	full              atomic.Bool // the agent takes nothing
}

func newPipe() *pipe {
	return &pipe{toAgent: make(chan *client.Packet, 64), toBroker: make(chan *client.Packet), cut: make(chan struct{})}
}

func (p *pipe) end() { p.once.Do(func() { close(p.cut) }) }

func (p *pipe) Send(pkt *client.Packet) error {
	if p.full.Load() {
		<-p.cut
		return io.ErrClosedPipe
	}
	select {
	case p.toAgent <- pkt:
		return nil
	case <-p.cut:
		return io.ErrClosedPipe
	}
}

func (p *pipe) Recv() (*client.Packet, error) {
	select {
	case pkt, ok := <-p.toBroker:
		if !ok {
			return nil, io.EOF
		}
		return pkt, nil
	case <-p.cut:
		return nil, io.ErrClosedPipe
	}
}

// say is the agent's; it returns when the broker has begun to look at the packet.
func (p *pipe) say(t *testing.T, pkt *client.Packet) {
	t.Helper()
	select {
	case p.toBroker <- pkt:
	case <-p.cut:
		t.Fatal("the broker cut the agent off")
	case <-time.After(20 * time.Second):
		t.Fatal("the broker reads nothing")
	}
}

// hear is the next packet for the agent that is not a nudge.
func (p *pipe) hear(t *testing.T) *client.Packet {
	t.Helper()
	for {
		select {
		case pkt := <-p.toAgent:
			if pkt.Type != client.PacketType_DIAL_CLS {
				return pkt
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the broker says nothing")
		}
	}
}

func dialed(random, id int64, text string) *client.Packet {
	return &client.Packet{Type: client.PacketType_DIAL_RSP, Payload: &client.Packet_DialResponse{
		DialResponse: &client.DialResponse{Random: random, ConnectID: id, Error: text},
	}}
}

func data(id int64, p []byte) *client.Packet {
	return &client.Packet{Type: client.PacketType_DATA, Payload: &client.Packet_Data{Data: &client.Data{ConnectID: id, Data: p}}}
}

func closeResponse(id int64) *client.Packet {
	return &client.Packet{Type: client.PacketType_CLOSE_RSP, Payload: &client.Packet_CloseResponse{CloseResponse: &client.CloseResponse{ConnectID: id}}}
}

// serve runs a session of edge-1 over a pipe, until the test ends.
func serve(t *testing.T, change ...func(*Config)) (*Session, *pipe) {
	t.Helper()
	cfg := Config{Nodes: &directory{}}
	for _, c := range change {
		c(&cfg)
	}
	srv := New(cfg)
	s := newSession(&srv.cfg, "acme", Identity{Node: "edge-1"}, address("192.0.2.200:1"))
	p := newPipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.run(t.Context(), p, p.end)
	}()
	t.Cleanup(func() {
		s.Close(wire.Shutdown, "the test ends")
		<-done
	})
	return s, p
}

// open opens a connection, which the agent gives the number id.
func open(t *testing.T, s *Session, p *pipe, id int64) net.Conn {
	t.Helper()
	type result struct {
		c   net.Conn
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := s.Open(t.Context(), "10.244.0.9:80")
		got <- result{c, err}
	}()
	pkt := p.hear(t)
	if pkt.Type != client.PacketType_DIAL_REQ {
		t.Fatalf("the agent was asked %v, want DIAL_REQ", pkt)
	}
	p.say(t, dialed(pkt.GetDialRequest().Random, id, ""))
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.c
}

func wantCode(t *testing.T, err error, want wire.Code) {
	t.Helper()
	var refused *tunnel.RefusedError
	if !errors.As(err, &refused) || refused.Code != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// identities are a broker's TLS and what agents have.
type identities struct {
	ring   *pki.Keyring
	server *tls.Config
	roots  *x509.CertPool
}

const zone = "konnectivity.edge.example"

func newIdentities(t *testing.T) identities {
	t.Helper()
	ring, err := pki.NewKeyring("test.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ring.IssueBroker("b", []string{"*." + zone}, nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	verify := pki.VerifyPeer(ring.Pool, x509.ExtKeyUsageClientAuth, time.Now, func(id pki.Identity) error {
		if id.Role != pki.RoleNode {
			return fmt.Errorf("%s is no node", id)
		}
		return nil
	})
	server := pki.ServerTLS(func() (*tls.Certificate, error) { return &cert, nil }, verify, pki.ServerOptions{Clients: pki.ClientOptional, NextProtos: []string{"h2"}})
	return identities{ring, server, ring.Pool()}
}
