package konnectivity

import (
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// maxToken bounds a ServiceAccount token. Real ones have one to two KiB.
	maxToken = 16 << 10
	// maxHeaders bounds all headers of a request, as HTTP/2 counts them.
	maxHeaders = 32 << 10
	// lastWord is how long a connection lasts once its stream has ended, so that the agent reads why.
	lastWord = time.Second
)

// handshakes does TLS, and gives each connection the time until which its peer has to be known.
type handshakes struct {
	credentials.TransportCredentials
	patience time.Duration
}

// ServerHandshake implements credentials.TransportCredentials.
func (h handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	deadline := time.AfterFunc(h.patience, func() { raw.Close() })
	c, info, err := h.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		deadline.Stop()
		return nil, nil, err
	}
	state, ok := info.(credentials.TLSInfo)
	if !ok {
		deadline.Stop()
		c.Close()
		return nil, nil, errors.New("no TLS")
	}
	return c, &peerInfo{TLSInfo: state, raw: raw, deadline: deadline}, nil
}

// Clone implements credentials.TransportCredentials.
func (h handshakes) Clone() credentials.TransportCredentials {
	return handshakes{h.TransportCredentials.Clone(), h.patience}
}

// peerInfo is what is known of a connection.
type peerInfo struct {
	credentials.TLSInfo
	raw      net.Conn
	deadline *time.Timer
	used     atomic.Bool // it had its stream
}

// admitted says that the peer is known.
func (p *peerInfo) admitted() {
	p.deadline.Stop()
	if a, ok := p.raw.(interface{ Admitted() }); ok {
		a.Admitted()
	}
}

// leave closes the connection once the peer could read the last word.
func (p *peerInfo) leave() { time.AfterFunc(lastWord, func() { p.raw.Close() }) }

var (
	errNoToken  = errors.New("neither a client certificate of this broker nor a ServiceAccount token: start the agent with --service-account-token-path, or --agent-cert and --agent-key")
	errBadToken = errors.New("the authorization header is not one of one bearer token")
)

// bearer reads the token that an agent sends.
func bearer(md metadata.MD) (string, error) {
	values := md.Get("authorization")
	if len(values) == 0 {
		return "", errNoToken
	}
	token, ok := strings.CutPrefix(values[0], "Bearer ")
	token = strings.TrimSpace(token)
	if !ok || len(values) > 1 || token == "" || len(token) > maxToken || strings.ContainsFunc(token, unlikeToken) {
		return "", errBadToken
	}
	return token, nil
}

// unlikeToken finds what is in no JWT.
func unlikeToken(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
}

// said is what an agent says of itself, for the log only.
func said(md metadata.MD, key string) string {
	if v := md.Get(key); len(v) > 0 {
		return v[0][:min(len(v[0]), 200)]
	}
	return ""
}

// census counts the sessions of each node.
type census struct {
	mu sync.Mutex // guards the following
	n  map[[2]string]int
}

// enter counts one more; false: there are max already.
func (c *census) enter(tenant, node string, max int) (leave func(), ok bool) {
	key := [2]string{tenant, node}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[key] >= max {
		return nil, false
	}
	c.n[key]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.n[key]--; c.n[key] == 0 {
			delete(c.n, key)
		}
	}, true
}

// refused is an error that is told to the agent.
func refused(why error) error { return refusal(wire.Denied, "%v", why) }

// told is what an agent is told of an error. Agents try again whatever it is.
func told(err error) error {
	var r *tunnel.RefusedError
	var c *tunnel.ClosedError
	switch {
	case errors.As(err, &r):
		return status.Error(codes.Unauthenticated, r.Error())
	case errors.Is(err, ErrNoNode):
		return status.Error(codes.Unauthenticated, "the API server knows no such Node, or another of that name by now")
	case errors.As(err, &c):
		return status.Error(codes.Unavailable, c.Code.String())
	}
	return status.Error(codes.Unavailable, "the broker can't look this agent up for now: try again")
}
