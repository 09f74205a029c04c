package join

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

// Enrol returns the node's identity with a certificate that has not expired. It asks the broker for one by
// the token if there is none on disk, and for a new certificate by the node's key if the one there has run
// out. It goes on until it has one, ctx ends, or (with StopOnRefusal) the broker refuses.
func (j *Joiner) Enrol(ctx context.Context) (*Identity, error) {
	id, err := j.LoadIdentity()
	if err == nil && id.Expired(j.clock.Now()) {
		j.cfg.Logger.Warn("the node's certificate has expired: asking for a new one by its key", "tenant", id.Tenant, "node", id.Node, "expired", id.NotAfter())
		err = j.retry(ctx, StepRenew, func(ctx context.Context) (err error) {
			id, err = j.Renew(ctx)
			return err
		})
		return id, err
	}
	err = j.retry(ctx, StepEnrol, func(ctx context.Context) error {
		var err error
		if id, err = j.LoadIdentity(); err == nil {
			return nil
		}
		switch {
		case errors.Is(err, ErrKeyDamaged):
			return needsHand(err)
		case !errors.Is(err, ErrNotEnrolled):
			if dirErr := j.prepareStateDir(); dirErr != nil {
				err = dirErr // says more
			}
			return needsHand(err)
		case err != ErrNotEnrolled:
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

// enrolOnce sends the token and the key's request, and keeps the answer. The broker gives the same key
// the same node however often it asks, so being killed after the answer costs nothing.
func (j *Joiner) enrolOnce(ctx context.Context) (*Identity, error) {
	if err := j.prepareStateDir(); err != nil {
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
	if err := j.keep(id); err != nil {
		return nil, err
	}
	j.cfg.Metrics.outcome(StepEnrol, nil)
	j.cfg.Logger.Info("enrolled; the node's certificate is renewed by its key from now on", "tenant", id.Tenant, "node", id.Node, "expires", id.NotAfter())
	return id, nil
}

// ask makes one enrolment request and checks the answer.
func (j *Joiner) ask(ctx context.Context, b Bundle, key *ecdsa.PrivateKey) (*Identity, error) {
	csr, err := pki.MakeCSR(key, j.cfg.Hostname)
	if err != nil {
		return nil, err
	}
	endpoint := j.endpoint(b.Endpoint)
	j.cfg.Report(Progress{Step: StepEnrol, Doing: "enrolling " + inTenant(b.Tenant) + "at " + endpoint})
	broker := client{endpoint, j.cfg.Proxy, pki.ClientTLS(nil, j.clock.verify(func(now func() time.Time) pki.Verify {
		return pki.VerifyPinned(b.CACertHashes, now, nil)
	})), j.cfg.RequestTimeout, j.clock}
	var answer enrollapi.EnrolResponse
	cs, err := broker.post(ctx, enrollapi.PathEnrol, enrollapi.EnrolRequest{
		Token: b.Token, Tenant: b.Tenant, CSR: string(csr), Hostname: j.cfg.Hostname, Serial: j.cfg.Serial, Version: j.cfg.Version,
	}, &answer)
	if err != nil {
		return nil, err
	}
	id, err := j.identityOf(&answer, key, cs)
	if err != nil {
		return nil, fmt.Errorf("broker %s: %w", endpoint, err)
	}
	// A bundle of no tenant leaves it to the broker.
	if b.Tenant != "" && id.Tenant != b.Tenant {
		return nil, fmt.Errorf("broker %s enrolled the node in tenant %q, but the join bundle says %q", endpoint, id.Tenant, b.Tenant)
	}
	token, _ := enrollapi.ParseToken(b.Token)
	id.Endpoint, id.TokenID, id.EnrolledAt = b.Endpoint, token.ID, j.clock.Now().UTC()
	return id, nil
}

func inTenant(tenant string) string {
	if tenant == "" {
		return ""
	}
	return "in tenant " + tenant + " "
}

// endpoint is the broker's address: the configured one, or else the given.
func (j *Joiner) endpoint(given string) string {
	if j.cfg.Endpoint != "" {
		return j.cfg.Endpoint
	}
	return given
}
