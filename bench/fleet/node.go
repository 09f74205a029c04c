package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// kubeletPort is what a node says its kubelet listens on.
	kubeletPort = 10250
	// tickInterval is the agent's.
	tickInterval = 10 * time.Second
)

// node is one node's end of the tunnel. It says hello, answers a CA bundle with a status and comes back after a
// loss as the agent does; a connection that the broker opens is echoed.
type node struct {
	fleet     *fleet
	id        *identity
	transport tunnel.Transport
	address   netip.Addr // which it attests, of a site's network

	mu   sync.Mutex      // guards the following
	live *tunnel.Session // the one that the broker has let in; nil: none
	run  *runner         // nil: the node is off
}

// runner is a node's client at work.
type runner struct {
	client *tunnel.Client
	cancel context.CancelFunc
	done   chan struct{} // closed once all of it has ended
	status sync.WaitGroup
}

// start has the node keep a session. It must be off, or be superseding itself.
func (n *node) start() *runner {
	ctx, cancel := context.WithCancel(context.Background())
	r := &runner{cancel: cancel, done: make(chan struct{})}
	dialer := &tunnel.Dialer{
		Endpoint: n.fleet.endpoint, Transport: n.transport, TLS: n.tls(),
		Config: tunnel.Config{
			Hello: n.hello, Handler: echo, HeartbeatInterval: n.fleet.heartbeat, HeartbeatTimeout: n.fleet.silence,
			OnBundle: func(s *tunnel.Session, b wire.Bundle) { n.letIn(r, s, b) },
		},
	}
	r.client = tunnel.NewClient(tunnel.ClientConfig{
		Dialer: func() *tunnel.Dialer { return dialer },
		OnDown: func(err error) { n.down(r, err) }, TickInterval: tickInterval,
	})
	n.mu.Lock()
	n.run = r
	n.mu.Unlock()
	go func() {
		defer close(r.done)
		_ = r.client.Run(ctx)
		r.status.Wait()
	}()
	return r
}

// stop ends the node's session with a goodbye, and returns when nothing of it runs.
func (n *node) stop() {
	n.mu.Lock()
	r := n.run
	n.run = nil
	n.mu.Unlock()
	if r != nil {
		r.cancel()
		<-r.done
	}
}

func (n *node) tls() *tls.Config {
	id := n.id
	return pki.ClientTLS(func() (*tls.Certificate, error) { return &id.cert, nil },
		pki.VerifyPeer(func() *x509.CertPool { return id.roots }, x509.ExtKeyUsageServerAuth, time.Now, func(peer pki.Identity) error {
			if peer.Role != pki.RoleBroker || peer.TrustDomain != id.TrustDomain {
				return fmt.Errorf("not a broker of trust domain %s", id.TrustDomain)
			}
			return nil
		}))
}

func (n *node) hello() wire.Hello {
	h := wire.Hello{Version: "bench", Node: n.id.Node, Addresses: []netip.Addr{n.address}, KubeletPort: kubeletPort}
	n.id.past.next(&h)
	return h
}

// letIn is called with a session's CA bundle, which the broker sends to those that it has let in.
func (n *node) letIn(r *runner, s *tunnel.Session, b wire.Bundle) {
	n.id.past.accepted()
	r.status.Go(func() {
		_ = s.SendStatus(wire.Status{Trusts: n.id.trusts, CertificateIssuer: b.Issuer, CertificateNotAfter: n.id.cert.Leaf.NotAfter})
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.Err() != nil { // down may have been before
		return
	}
	was := n.live
	n.live = s
	n.fleet.letIn(n, was == nil)
}

// down is called when the node's session has ended, or could not be made.
func (n *node) down(r *runner, err error) {
	n.fleet.ended(err)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.run != r && n.run != nil {
		r.cancel() // another of this node took over: this one is not to come back
	}
	if n.live != nil && n.live.Err() != nil {
		n.live = nil
		n.fleet.out()
	}
}

// session is the node's live one, or nil.
func (n *node) session() *tunnel.Session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.live
}

// echo is what a node does with a connection that the broker opens: it answers each byte with itself.
func echo(_ context.Context, _ *tunnel.Session, r *tunnel.Request) {
	if r.Kind != wire.KindDial {
		_ = r.Refuse(wire.BadRequest, "a node takes requests to dial only")
		return
	}
	s, err := r.Accept()
	if err != nil {
		return
	}
	if _, err := io.Copy(s, s); err != nil {
		_ = s.Reset(wire.Canceled)
		return
	}
	_ = s.Close()
}

// hashesOf returns the hashes of a bundle's CAs.
func hashesOf(bundle []byte) (out []string, err error) {
	for len(bundle) > 0 {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			break
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("CA bundle: %w", err)
		}
		out = append(out, pki.SPKIHash(ca.PublicKey))
	}
	return out, nil
}

// reason puts what ended a session, or kept it from being made, in few words.
func reason(err error) string {
	var closed *tunnel.ClosedError
	switch {
	case errors.As(err, &closed):
		return "session ended: " + closed.Code.String()
	case errors.Is(err, syscall.ECONNREFUSED):
		return "not made: nobody there"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "not made: turned away"
	case isTimeout(err), strings.Contains(err.Error(), "no answer within"):
		return "not made: no answer in time"
	}
	return "not made: other"
}
