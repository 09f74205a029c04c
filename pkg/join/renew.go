package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

// Renew asks once for a new certificate, by the node's certificate, which may have expired: what counts is
// the key. If the broker refuses and there is a join bundle with another token than the one that was
// enrolled with, it enrols with that. Safe for use beside Bootstrap.
func (j *Joiner) Renew(ctx context.Context) (*Identity, error) {
	old, err := j.inUse()
	if err != nil {
		return nil, err
	}
	id, err := j.renewOnce(ctx, old)
	if err == nil {
		j.cfg.Metrics.outcome(StepRenew, nil)
		j.cfg.Logger.Info("the node's certificate is renewed", "tenant", id.Tenant, "node", id.Node, "expires", id.NotAfter())
		return id, nil
	}
	if !refused(err) {
		return nil, err
	}
	if j.hasOtherToken(old) {
		j.cfg.Logger.Warn("the broker does not renew the node's certificate: enrolling with the token of the new join bundle", "err", err)
		if id, err = j.enrolOnce(ctx); err != nil && refused(err) {
			err = fmt.Errorf("%w; a key that was revoked is never let in again: `edge-agent reset` makes another", err)
		}
		return id, err
	}
	return nil, needsHand(fmt.Errorf("the broker does not renew the certificate of node %s of tenant %s (removed, or revoked?): %w; "+
		"`broker node list` says which; a join bundle with a new token lets a removed node in again", old.Node, old.Tenant, err))
}

// hasOtherToken tells whether there is a join bundle with a token that id was not made with.
func (j *Joiner) hasOtherToken(id *Identity) bool {
	b, err := j.cfg.Bundle()
	if err != nil {
		return false
	}
	token, err := enrollapi.ParseToken(b.Token)
	return err == nil && token.ID != id.TokenID
}

func (j *Joiner) renewOnce(ctx context.Context, old *Identity) (*Identity, error) {
	key, err := old.key()
	if err != nil {
		return nil, err
	}
	csr, err := pki.MakeCSR(key, j.cfg.Hostname)
	if err != nil {
		return nil, err
	}
	endpoint := j.endpoint(old.Endpoint)
	j.cfg.Report(Progress{Step: StepRenew, Doing: "asking " + endpoint + " for a new certificate"})
	broker := client{endpoint, j.cfg.Proxy, j.TLS(), j.cfg.RequestTimeout, j.clock}
	var answer enrollapi.EnrolResponse
	cs, err := broker.post(ctx, enrollapi.PathRenew, enrollapi.RenewRequest{CSR: string(csr), Version: j.cfg.Version}, &answer)
	if err != nil {
		return nil, err
	}
	if err := j.reached(renewAnswered); err != nil {
		return nil, err
	}
	id, err := j.identityOf(&answer, key, cs)
	if err != nil {
		return nil, fmt.Errorf("broker %s: %w", endpoint, err)
	}
	if id.SPIFFE() != old.SPIFFE() {
		return nil, fmt.Errorf("broker %s renewed the certificate of %s as %s", endpoint, old.SPIFFE(), id.SPIFFE())
	}
	id.Endpoint, id.TokenID, id.EnrolledAt = old.Endpoint, old.TokenID, old.EnrolledAt
	j.identityMu.Lock()
	defer j.identityMu.Unlock()
	// CAs that have come over the tunnel since the request went out are newer than the answer's.
	if now, err := j.inUseLocked(); err == nil && now.CABundle != old.CABundle && now.SPIFFE() == id.SPIFFE() {
		id.CABundle, id.cas = now.CABundle, now.cas
	}
	return id, j.keepLocked(id)
}

// identityOf makes an identity of an answer, if it will serve: else the next start would find a bad one
// and know no better. cs is the connection that the answer came over.
func (j *Joiner) identityOf(answer *enrollapi.EnrolResponse, key *ecdsa.PrivateKey, cs *tls.ConnectionState) (*Identity, error) {
	id := &Identity{
		Tenant: answer.Tenant, Node: answer.Node, TrustDomain: answer.TrustDomain,
		Certificate: answer.Certificate, CABundle: answer.CABundle,
	}
	err := id.complete(key)
	if err == nil {
		err = id.issuedByBundle()
	}
	if err != nil {
		return nil, fmt.Errorf("it gave an identity that does not hold together: %w", err)
	}
	// Whoever gave it must be a broker by it too: else the box would have locked itself out.
	verify := j.clock.verify(func(now func() time.Time) pki.Verify {
		return pki.VerifyPeer(func() *x509.CertPool { return id.cas }, x509.ExtKeyUsageServerAuth, now, id.isBroker)
	})
	if err := verify(*cs); err != nil {
		return nil, fmt.Errorf("it gave a CA bundle that it is not verified by itself: %w", err)
	}
	j.clock.learnSaid(answer.Time, cs)
	j.clock.Learn(id.leaf.NotBefore)
	return id, nil
}

// keep makes id the node's identity. Where the disk does not take it, it serves from memory and goes to
// disk when that can be written to again: a node whose disk has failed is still better off connected.
func (j *Joiner) keep(id *Identity) error {
	j.identityMu.Lock()
	defer j.identityMu.Unlock()
	return j.keepLocked(id)
}

func (j *Joiner) keepLocked(id *Identity) error {
	j.last = id
	err := j.saveIdentity(id)
	if err != nil {
		j.unsaved = id
		j.cfg.Logger.Error("the node's identity is renewed, but in memory only: it does not last beyond this process", "err", err)
		return nil
	}
	j.unsaved = nil
	return j.reached(identityWritten)
}

// Flush puts on disk what could not be kept so far; it tells whether there was something, and now is.
func (j *Joiner) Flush() bool {
	j.identityMu.Lock()
	defer j.identityMu.Unlock()
	if j.unsaved == nil || j.saveIdentity(j.unsaved) != nil {
		return false
	}
	j.unsaved = nil
	return true
}

// Kept tells whether the identity in use is on disk.
func (j *Joiner) Kept() bool {
	j.identityMu.Lock()
	defer j.identityMu.Unlock()
	return j.unsaved == nil
}
