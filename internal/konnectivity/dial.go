package konnectivity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// lateAnswer is how long the answer to a dial that nobody waits for counts as one that is to come. Agents dial for 5 s at most.
const lateAnswer = 30 * time.Second

// dial is one that the agent has not answered.
type dial struct {
	target string
	answer chan dialAnswer // holds one
	left   time.Time       // when its caller gave it up; zero: it waits
}

type dialAnswer struct {
	conn *conn
	err  error
}

// Open implements switchboard.Way: it has the agent dial, under the bounds of the configuration. addr is the node's name, one of its
// addresses, or one of a pod or a Service, and a port. Agents dial what they are told: so of the node itself, no other port is asked for
// than its kubelet's.
func (s *Session) Open(ctx context.Context, addr string) (net.Conn, error) {
	target, err := s.target(ctx, addr)
	if err != nil {
		return nil, err
	}
	random, d, err := s.begin(target)
	if err != nil {
		return nil, err
	}
	request := &client.Packet{Type: client.PacketType_DIAL_REQ, Payload: &client.Packet_DialRequest{
		DialRequest: &client.DialRequest{Protocol: "tcp", Address: target, Random: random},
	}}
	select {
	case s.out <- request:
	case <-s.ctx.Done():
		return nil, s.Err()
	case <-ctx.Done():
		s.unsay(random) // it was not asked for
		return nil, context.Cause(ctx)
	}
	select {
	case a := <-d.answer:
		if a.err != nil {
			return nil, a.err
		}
		return a.conn, nil
	case <-s.ctx.Done():
		return nil, s.Err()
	case <-ctx.Done():
		s.giveUp(random, d)
		return nil, context.Cause(ctx)
	}
}

// target is what the agent is to dial. It knows no names of nodes.
func (s *Session) target(ctx context.Context, addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 {
		return "", refusal(wire.BadRequest, "not an address to dial: %.80q (want host:port)", addr)
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil && !strings.EqualFold(host, s.node):
		return "", refusal(wire.BadRequest, "not an address to dial by way of node %s: %.80q", s.node, addr)
	case err == nil && ip.Zone() != "":
		return "", refusal(wire.BadRequest, "not an address to dial: %.80q has a zone", addr)
	}
	w, lookErr := s.where.get(ctx)
	if err != nil {
		if len(w.Addresses) == 0 {
			return "", refusal(wire.Unavailable, "the Node %s has no InternalIP by which its konnectivity agent could dial it: %v", s.node, lookErr)
		}
		ip = w.Addresses[0]
	}
	ip = ip.Unmap()
	if w.has(ip) && uint16(n) != w.KubeletPort {
		return "", refusal(wire.Denied, "of node %s itself, by its konnectivity agent, only the kubelet's port %d is dialled, not %d", s.node, w.KubeletPort, n)
	}
	if !w.has(ip) && (ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast()) {
		return "", refusal(wire.Denied, "%s is no address of a pod or a Service", ip)
	}
	return netip.AddrPortFrom(ip, uint16(n)).String(), nil
}

// begin notes a dial that is about to be asked for.
func (s *Session) begin(target string) (random int64, d *dial, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, d := range s.dials {
		if !d.left.IsZero() && time.Since(d.left) > lateAnswer {
			delete(s.dials, r)
		}
	}
	switch {
	case s.ctx.Err() != nil:
		return 0, nil, s.Err()
	case s.draining:
		return 0, nil, refusal(wire.Draining, "the konnectivity agent of node %s is about to end", s.node)
	case len(s.dials) >= s.cfg.MaxPending:
		return 0, nil, refusal(wire.Overloaded, "%d dials wait for the konnectivity agent of node %s", len(s.dials), s.node)
	case len(s.conns) >= s.cfg.MaxStreams:
		return 0, nil, refusal(wire.Overloaded, "%d connections are open through the konnectivity agent of node %s", len(s.conns), s.node)
	}
	s.lastDial++
	d = &dial{target: target, answer: make(chan dialAnswer, 1)}
	s.dials[s.lastDial] = d
	return s.lastDial, d, nil
}

func (s *Session) unsay(random int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dials, random)
}

// giveUp says that nobody waits for the answer any more. An agent can't be told to stop dialling.
func (s *Session) giveUp(random int64, d *dial) {
	s.mu.Lock()
	_, open := s.dials[random]
	if open {
		d.left = time.Now()
	}
	s.mu.Unlock()
	if open {
		return
	}
	select { // it was taken off, so its answer is there, or about to be
	case a := <-d.answer:
		if a.conn != nil {
			a.conn.Close()
		}
	case <-s.ctx.Done():
	}
}

// answered takes the answer to a dial. What has no one waiting is closed again.
func (s *Session) answered(r *client.DialResponse) error {
	s.mu.Lock()
	d := s.dials[r.GetRandom()]
	delete(s.dials, r.GetRandom())
	id := r.GetConnectID()
	_, taken := s.conns[id]
	ok := r.GetError() == ""
	wanted := d != nil && d.left.IsZero()
	var c *conn
	if ok && wanted && id != 0 && !taken {
		c = newConn(s, id, d.target)
		s.conns[id] = c
		s.opened++
	}
	s.mu.Unlock()
	switch {
	case ok && (id == 0 || taken):
		return fmt.Errorf("a connection was given the number %d, which is none or another's", id)
	case ok && !wanted:
		s.urge(closeRequest(id))
	case wanted && ok:
		d.answer <- dialAnswer{conn: c}
	case wanted:
		d.answer <- dialAnswer{err: dialError(r.GetError())}
	}
	return nil
}

// dialError reads why an agent could not dial. It says so in the words of its Go runtime and in no other way.
func dialError(text string) error {
	code := wire.Unavailable
	switch {
	case strings.Contains(text, "connection refused"):
		code = wire.DialRefused
	case strings.Contains(text, "timeout"), strings.Contains(text, "timed out"):
		code = wire.DialTimeout
	}
	return refusal(code, "konnectivity agent: %.200s", text)
}

func refusal(code wire.Code, format string, args ...any) error {
	return &tunnel.RefusedError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// ErrNoNode says that an agent's node is none: there is no Node of that name, or it is another by now.
var ErrNoNode = errors.New("no such Node")

// Whereabouts are where a node is, as its Node object says.
type Whereabouts struct {
	// Addresses are its InternalIPs.
	Addresses []netip.Addr
	// KubeletPort is the kubelet's.
	KubeletPort uint16
}

func (w Whereabouts) has(ip netip.Addr) bool {
	for _, a := range w.Addresses {
		if a == ip {
			return true
		}
	}
	return false
}

// whereabouts keeps those of one node, and looks again when they are needed and old.
type whereabouts struct {
	look func(context.Context) (Whereabouts, error)

	mu   sync.Mutex // guards the following
	w    Whereabouts
	read time.Time // zero: never
}

const (
	// freshness is for how long they are taken to be so.
	freshness = time.Minute
	// lookTimeout bounds what a dial may lose by their being read anew.
	lookTimeout = 2 * time.Second
)

func (k *whereabouts) known() Whereabouts {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.w
}

// get returns what is known, read anew if it is old: by one of those who ask, the others go on with what there is. With an error
// it may still be what was known before.
func (k *whereabouts) get(ctx context.Context) (Whereabouts, error) {
	k.mu.Lock()
	w, old := k.w, time.Since(k.read) >= freshness
	if old {
		k.read = time.Now()
	}
	k.mu.Unlock()
	if !old {
		return w, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	err := k.refresh(ctx)
	return k.known(), err
}

func (k *whereabouts) refresh(ctx context.Context) error {
	w, err := k.look(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.w, k.read = w, time.Now()
	return nil
}
