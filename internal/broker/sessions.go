package broker

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// authorize is the one place where a session's certificate becomes a node: the certificate was
// verified in the handshake; here the node's record must still be there with the same key.
func (b *broker) authorize(ctx context.Context, s *tunnel.Session) (pki.Identity, error) {
	cs := s.ConnectionState()
	id, err := pki.PeerIdentity(cs)
	if err != nil {
		return id, err
	}
	return id, b.nodes.Authorize(ctx, id, cs.PeerCertificates[0])
}

// serveSession lets a node's session live on the switchboard.
func (b *broker) serveSession(ctx context.Context, s *tunnel.Session) {
	id, err := b.authorize(ctx, s)
	if err != nil {
		b.log.Warn("session refused", "tenant", id.Tenant, "node", id.Name,
			"remote", s.RemoteAddr().String(), "err", err)
		code, told := refusal(err)
		s.Close(code, told.Error())
		return
	}
	defer b.holders.enter(s, id)()
	b.board.Serve(s, id.Tenant, id.Name, func() (wire.Code, error) {
		if _, err := b.authorize(ctx, s); err != nil {
			return refusal(err)
		}
		return wire.OK, nil
	})
}

var (
	errNotKnown   = errors.New("this node is not known here (removed?): enrol it again with a new token")
	errNotChecked = errors.New("the broker can't look this node up for now: try again")
)

// refusal is what a node is told that authorize did not pass. Only a record that is not there, or is
// another key's, is the node's own matter.
func refusal(err error) (wire.Code, error) {
	if errors.Is(err, enroll.ErrNotAuthorized) {
		return wire.Revoked, errNotKnown
	}
	return wire.Unavailable, errNotChecked
}

// serveStream answers what a node opens: a connection to its own tenant's API server, nothing else.
// The session may be so young that serveSession has not looked at it yet, so this looks for itself.
func (b *broker) serveStream(ctx context.Context, s *tunnel.Session, r *tunnel.Request) {
	if r.Kind != wire.KindAPI {
		r.Refuse(wire.BadRequest, "a node may open streams to its API server only")
		return
	}
	id, err := b.authorize(ctx, s)
	if err != nil {
		code, told := refusal(err)
		if code == wire.Revoked {
			code = wire.Denied // of this stream; serveSession ends the session
		}
		r.Refuse(code, told.Error())
		return
	}
	log := b.log.With("tenant", id.Tenant, "node", id.Name)
	dialCtx, cancel := context.WithTimeout(ctx, apiDialTimeout)
	defer cancel()
	api, err := b.tenants.DialAPI(dialCtx, id.Tenant)
	if err != nil {
		log.Warn("tenant's API server can't be reached for its node", "err", err)
		r.Refuse(wire.Unavailable, "the tenant's API server can't be reached from the broker")
		return
	}
	stream, err := r.Accept()
	if err != nil {
		api.Close()
		return
	}
	up, down, err := splice.Splice(stream, api)
	log.Debug("API connection ended", "up", up, "down", down, "err", err)
}

// authorizeEgress lets an API server's certificate speak for its tenant only if it was issued to this
// tenant, and not to another that had the name before.
func (b *broker) authorizeEgress(id pki.Identity, cert *x509.Certificate) error {
	t, ok := b.tenants.Get(id.Tenant)
	if !ok {
		return fmt.Errorf("%w: %s", tenant.ErrNotFound, id.Tenant)
	}
	if !issuedTo(t, cert) {
		return fmt.Errorf("the certificate of %s is older than its tenant: issue another with `broker egress issue --tenant %s`", id, id.Tenant)
	}
	return nil
}

// issuedTo tells whether a certificate was issued since the tenant was added. Certificates count in
// seconds.
func issuedTo(t tenant.Tenant, cert *x509.Certificate) bool {
	return !cert.NotBefore.Add(pki.Backdate).Before(t.CreatedAt.Truncate(time.Second))
}
