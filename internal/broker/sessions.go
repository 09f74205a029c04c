package broker

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

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

// serveStream answers what a node opens: a connection to its own tenant's API server, nothing else.
// It is not before serveSession has let the session in: a cloned box gets no stream by being quick.
func (b *broker) serveStream(ctx context.Context, s *tunnel.Session, r *tunnel.Request) {
	if r.Kind != wire.KindAPI {
		r.Refuse(wire.BadRequest, "a node may open streams to its API server only")
		return
	}
	started := time.Now()
	id, err := b.authorize(ctx, s)
	if err == nil {
		err = b.gate.wait(ctx, s)
	}
	if err != nil {
		code, told := refusal(err)
		if code == wire.Revoked || code == wire.Quarantined || code == wire.Superseded {
			code = wire.Denied // of this stream; serveSession ends the session
		}
		r.Refuse(code, told)
		return
	}
	log := b.log.With("tenant", id.Tenant, "node", id.Name, "dial", r.Trace.String())
	dialCtx, cancel := context.WithTimeout(ctx, apiDialTimeout)
	defer cancel()
	api, err := b.tenants.DialAPIFor(dialCtx, id.Tenant, s.RemoteAddr())
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
	log.Debug("API connection ended", "up", up, "down", down, "after", time.Since(started), "err", err)
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
