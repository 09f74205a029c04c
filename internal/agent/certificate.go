package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/join"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// slowPace is how long a box waits, more or less, that the broker has turned away for a reason that only an
// operator can remove.
const slowPace = time.Minute

// keepCertificate has the node's certificate renewed when that is due, until ctx ends.
func (a *Agent) keepCertificate(ctx context.Context) error {
	return a.joiner.KeepCertificate(ctx, a.nudges, func(id *join.Identity) {
		id = a.changed(id)
		if s := a.session.Load(); s != nil {
			a.sendStatus(s, id)
		}
		a.client.Wake() // the broker is there, and what it refused may have been the old certificate
	})
}

// changed makes the identity known that is in use now: id, or what a renewal or a bundle has made of it since.
func (a *Agent) changed(id *join.Identity) *join.Identity {
	a.changing.Lock()
	defer a.changing.Unlock()
	if now, err := a.joiner.LoadIdentity(); err == nil {
		id = now
	}
	if was := a.identity.Load(); was != nil && was.SPIFFE() != id.SPIFFE() {
		a.wakeKubelet() // it is another node's
	}
	a.enrolled(id)
	return id
}

// nudge has the certificate renewed before its time. One nudge at a time is enough.
func (a *Agent) nudge(n join.Nudge) {
	select {
	case a.nudges <- n:
	default:
	}
}

// bundleOf is a CA bundle and the session that it came by.
type bundleOf struct {
	session *tunnel.Session
	bundle  wire.Bundle
}

// onBundle takes a bundle off the tunnel's own loop, which must not wait for a disk. Only the latest counts.
func (a *Agent) onBundle(s *tunnel.Session, b wire.Bundle) {
	for {
		select {
		case a.bundles <- bundleOf{s, b}:
			return
		default:
		}
		select {
		case <-a.bundles:
		default:
		}
	}
}

// takeBundles keeps each bundle and answers with what the node holds then, until ctx ends.
func (a *Agent) takeBundles(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-a.bundles:
			// A broker sends its bundle to the sessions that it has let in.
			a.lineage.accepted()
			id, err := a.joiner.SaveBundle(b.bundle.CABundle)
			if err != nil {
				a.logger.Error("the CA bundle that the broker sent is not taken", "err", err)
				continue
			}
			id = a.changed(id)
			a.sendStatus(b.session, id)
			if id.Issuer() != b.bundle.Issuer {
				a.nudge(join.NudgeIssuer)
			}
		}
	}
}

func (a *Agent) sendStatus(s *tunnel.Session, id *join.Identity) {
	st := wire.Status{CertificateIssuer: id.Issuer(), CertificateNotAfter: id.NotAfter().UTC()}
	if a.joiner.Kept() {
		st.Trusts = id.Trusts() // what is in memory only is gone with the next power cut
	}
	if err := s.SendStatus(st); err != nil {
		a.logger.Debug("the broker can't be told of the node's certificate", "err", err)
	}
}

// certificateState is the condition of a certificate that there is no trouble with, or an expired one.
func (a *Agent) certificateState(id *join.Identity) {
	a.metrics.expiry.Set(float64(id.NotAfter().Unix()))
	expires := id.NotAfter().UTC().Format(time.RFC3339)
	if id.Expired(a.joiner.Clock().Now()) {
		a.health.Set(condCertificate, health.False, "Expired", "the node's certificate expired on "+expires+"; the broker renews it by the node's key as soon as it is reached")
		return
	}
	a.health.Set(condCertificate, health.True, "Valid", "certificate good until "+expires)
}

// turnedAway is the broker's reason for ending a session, if it is one that an operator has to remove.
func turnedAway(err error) (wire.Code, bool) {
	var closed *tunnel.ClosedError
	if errors.As(err, &closed) && closed.Remote && (closed.Code == wire.Quarantined || closed.Code == wire.Revoked) {
		return closed.Code, true
	}
	return 0, false
}

// pace is how long the tunnel waits at least after err.
func (a *Agent) pace(err error) time.Duration {
	if _, ok := turnedAway(err); !ok {
		return 0
	}
	return slowPace - slowPace/5 + rand.N(2*slowPace/5)
}

// whyDown is the tunnel's condition for err.
func (a *Agent) whyDown(err error) (reason, message string) {
	who := "this node"
	if id := a.identity.Load(); id != nil {
		who = id.Tenant + "/" + id.Node
	}
	switch code, _ := turnedAway(err); code {
	case wire.Quarantined:
		return "Quarantined", fmt.Sprintf("two boxes have the identity of %s (a cloned disk?): the broker keeps both out until an operator says which one stays: "+
			"`broker node resolve %s --keep ID`; then run `edge-agent reset` on the other and enrol it with a token of its own (%v)", who, who, err)
	case wire.Revoked:
		return "Revoked", fmt.Sprintf("the broker does not accept the identity of %s any more (removed, or revoked): %v; "+
			"if it was removed, a join bundle with a new token lets it in again", who, err)
	}
	message = fmt.Sprintf("no connection to %s, trying again", a.endpoint())
	if err != nil {
		message += ": " + err.Error()
	}
	return "Down", message
}
