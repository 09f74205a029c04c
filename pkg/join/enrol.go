package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

// Enrol returns the node's identity, asking the broker for it if there is none on disk or its certificate
// has expired. It goes on until it has one, ctx ends, or (with StopOnRefusal) the broker refuses.
func (j *Joiner) Enrol(ctx context.Context) (*Identity, error) {
	var id *Identity
	err := j.retry(ctx, StepEnrol, func(ctx context.Context) error {
		var err error
		if id, err = j.LoadIdentity(); err == nil && !id.Expired(j.cfg.now()) {
			return nil
		}
		switch {
		case errors.Is(err, ErrKeyDamaged):
			return needsHand(err)
		case err != nil && !errors.Is(err, ErrNotEnrolled):
			if dirErr := PrepareStateDir(j.cfg.StateDir); dirErr != nil {
				err = dirErr // says more
			}
			return needsHand(err)
		case err != nil && err != ErrNotEnrolled:
			j.cfg.Logger.Warn("enrolling again with the node's key, which gives the same node", "err", err)
		}
		id, err = j.enrolOnce(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return id, nil
}

// Renew asks for a new certificate once, whatever the state of the present one.
func (j *Joiner) Renew(ctx context.Context) (*Identity, error) {
	id, err := j.enrolOnce(ctx)
	if err != nil {
		j.cfg.Metrics.outcome(StepEnrol, err)
	}
	return id, err
}

// enrolOnce sends the token and the key's request, and keeps the answer. The broker gives the same key
// the same node however often it asks, so being killed after the answer costs nothing.
func (j *Joiner) enrolOnce(ctx context.Context) (*Identity, error) {
	if err := PrepareStateDir(j.cfg.StateDir); err != nil {
		return nil, needsHand(err)
	}
	key, err := j.nodeKey()
	if errors.Is(err, ErrKeyDamaged) {
		return nil, needsHand(err)
	}
	if err != nil {
		return nil, err
	}
	if err := j.reached(keyWritten); err != nil {
		return nil, err
	}
	bundle, err := j.cfg.Bundle()
	if err != nil {
		return nil, needsHand(err)
	}
	id, err := j.ask(ctx, bundle, key)
	if err != nil {
		return nil, err
	}
	if err := j.reached(enrolAnswered); err != nil {
		return nil, err
	}
	if err := j.saveIdentity(id); err != nil {
		return nil, err
	}
	if err := j.reached(identityWritten); err != nil {
		return nil, err
	}
	j.cfg.Metrics.outcome(StepEnrol, nil)
	j.cfg.Logger.Info("enrolled; keep the join bundle, the node's certificate is renewed with it", "tenant", id.Tenant, "node", id.Node, "expires", id.NotAfter())
	return id, nil
}

// ask makes one enrolment request and checks the answer.
func (j *Joiner) ask(ctx context.Context, b Bundle, key *ecdsa.PrivateKey) (*Identity, error) {
	csr, err := pki.MakeCSR(key, j.cfg.Hostname)
	if err != nil {
		return nil, err
	}
	endpoint := j.endpoint(b.Endpoint)
	j.cfg.Report(Progress{Step: StepEnrol, Doing: fmt.Sprintf("enrolling in tenant %s at %s", b.Tenant, endpoint)})
	broker := client{endpoint, pki.ClientTLS(nil, pki.VerifyPinned(b.CACertHashes, j.cfg.now, nil)), j.cfg.RequestTimeout}
	var answer enrollapi.EnrolResponse
	err = broker.post(ctx, enrollapi.PathEnrol, enrollapi.EnrolRequest{
		Token: b.Token, Tenant: b.Tenant, CSR: string(csr), Hostname: j.cfg.Hostname, Version: j.cfg.Version,
	}, &answer)
	if err != nil {
		return nil, err
	}
	token, _ := enrollapi.ParseToken(b.Token)
	id := &Identity{
		Endpoint: b.Endpoint, Tenant: answer.Tenant, Node: answer.Node, TrustDomain: answer.TrustDomain,
		Certificate: answer.Certificate, CABundle: answer.CABundle, TokenID: token.ID, EnrolledAt: j.cfg.now().UTC(),
	}
	// Saved is only what will serve: else the next start would find a bad identity and know no better.
	if err := id.complete(key); err != nil {
		return nil, fmt.Errorf("broker %s gave an identity that does not hold together: %w", endpoint, err)
	}
	if id.Tenant != b.Tenant {
		return nil, fmt.Errorf("broker %s enrolled the node in tenant %q, but the join bundle says %q", endpoint, id.Tenant, b.Tenant)
	}
	if !holdsPinned(id.CABundle, b.CACertHashes) {
		return nil, fmt.Errorf("broker %s gave a CA bundle without the CA that the join bundle pins", endpoint)
	}
	return id, nil
}

// endpoint is the broker's address: the configured one, or else the given.
func (j *Joiner) endpoint(given string) string {
	if j.cfg.Endpoint != "" {
		return j.cfg.Endpoint
	}
	return given
}

func holdsPinned(bundle string, hashes []string) bool {
	for rest := []byte(bundle); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return false
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err == nil && slices.Contains(hashes, pki.SPKIHash(cert.PublicKey)) {
			return true
		}
	}
}
