package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// renewKey is the limiter's key of renewals; no tenant can be called so.
const renewKey = "*renew"

func (s *Server) serveRenew(w http.ResponseWriter, r *http.Request) {
	var req enrollapi.RenewRequest
	if !read(w, r, &req) {
		s.cfg.Metrics.renewals.WithLabelValues("bad request").Inc()
		return
	}
	leave, ok := s.limit.enter(renewKey, s.cfg.MaxEnrolments)
	if !ok {
		s.cfg.Metrics.renewals.WithLabelValues("overloaded").Inc()
		answer(w, nil, errOverloaded())
		return
	}
	defer leave()
	resp, outcome, err := s.renew(r, req)
	s.cfg.Metrics.renewals.WithLabelValues(outcome).Inc()
	answer(w, resp, err)
}

// errNoNode is what is wrong with a certificate that can't be a node's.
var errNoNode = errors.New("the certificate is no node's of here")

// renew gives a node with the pinned key a new certificate. The client certificate states who asks; TLS proved that
// the box holds its key, and that key, pinned when the node enrolled, is the node's identity. So neither the dates
// nor the issuer of the certificate matter: a box that was in a warehouse for a year has an expired one, maybe of a
// CA that is retired. What an unknown CA signed for the pinned key is as good, as the signature adds nothing to the
// proof; what any CA signed for another key is worth nothing.
func (s *Server) renew(r *http.Request, req enrollapi.RenewRequest) (*enrollapi.EnrolResponse, string, *enrollapi.Error) {
	log := s.cfg.Logger.With("remote", r.RemoteAddr, "version", forLog(req.Version))
	ev := audit.Event{Event: "renew", Outcome: audit.Refused, Source: r.RemoteAddr}
	csr, err := pki.ParseCSR([]byte(req.CSR), maxCSRPEM)
	if err != nil {
		log.Warn("renewal: the request's CSR can't be used", "err", err)
		return nil, "bad request", badRequest("csr: " + err.Error())
	}
	id, spki, err := s.stated(r, csr)
	ev.Actor, ev.Tenant, ev.Node = actorOf(spki), id.Tenant, id.Name
	log = log.With("tenant", id.Tenant, "node", id.Name, "key", spki)
	if err != nil {
		return nil, "refused", s.refuseRenewal(log, ev, err)
	}
	now, ca := s.cfg.Now(), s.cfg.Issuer()
	if !s.paces.allow(spki, now) {
		log.Debug("renewal put off", "err", ErrTooOften)
		return nil, "too often", errOverloaded()
	}
	notAfter := now.Add(s.cfg.CertificateTTL).UTC()
	rec, err := s.cfg.Nodes.Renew(r.Context(), id.Tenant, id.Name, RenewedCertificate{
		SPKI: spki, NotAfter: notAfter, Issuer: ca.Hash(), Grace: s.cfg.ExpiredGrace, Now: now,
	})
	switch {
	case errors.Is(err, ErrNotAuthorized), errors.Is(err, tenant.ErrNotFound):
		return nil, renewalOutcome(err), s.refuseRenewal(log, ev, err)
	case err != nil:
		return nil, "error", s.failRenewal(log, ev, err)
	}
	chain, err := ca.IssueNode(csr, id, now, s.cfg.CertificateTTL)
	if err != nil {
		return nil, "error", s.failRenewal(log, ev, err)
	}
	log.Info("node's certificate renewed", "notAfter", notAfter)
	ev.Outcome, ev.Detail = audit.OK, map[string]string{"notAfter": notAfter.Format(time.RFC3339), "issuer": rec.CertificateIssuer}
	s.cfg.Audit.Record(ev)
	return &enrollapi.EnrolResponse{
		Tenant: id.Tenant, Node: id.Name, TrustDomain: id.TrustDomain,
		Certificate: string(chain), CABundle: string(ca.BundlePEM()), Time: now.UTC(),
	}, "renewed", nil
}

// stated reads who the client says to be, and checks what can be without the record: a node of this trust domain, and
// the same key in the certificate and the request. The hash is that of the key which TLS proved, if there is one.
func (s *Server) stated(r *http.Request, csr *x509.CertificateRequest) (id pki.Identity, spki string, err error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return id, "", fmt.Errorf("%w: none was presented", errNoNode)
	}
	leaf := r.TLS.PeerCertificates[0]
	spki = pki.SPKIHash(leaf.PublicKey)
	id, err = pki.ParseIdentity(leaf)
	switch {
	case err != nil:
		return pki.Identity{}, spki, fmt.Errorf("%w: %w", errNoNode, err)
	case id.Role != pki.RoleNode || id.TrustDomain != s.cfg.Issuer().TrustDomain():
		return id, spki, fmt.Errorf("%w: it says %s", errNoNode, id)
	case spki == "" || pki.SPKIHash(csr.PublicKey) != spki:
		return id, spki, fmt.Errorf("%w: the request is for another key than the certificate's", errNoNode)
	}
	return id, spki, nil
}

// actorOf names a box by the key that it has proven.
func actorOf(spki string) string {
	if spki == "" {
		return "unknown"
	}
	return "key " + spki
}

// renewalOutcome is the metric's label.
func renewalOutcome(err error) string {
	switch {
	case errors.Is(err, ErrRevoked):
		return "revoked"
	case errors.Is(err, ErrBeyondGrace):
		return "beyond grace"
	}
	return "refused"
}

func (s *Server) refuseRenewal(log *slog.Logger, ev audit.Event, err error) *enrollapi.Error {
	log.Warn("renewal refused", "err", err)
	ev.Reason = err.Error()
	s.cfg.Audit.Record(ev)
	return errRefused()
}

func (s *Server) failRenewal(log *slog.Logger, ev audit.Event, err error) *enrollapi.Error {
	if errors.Is(err, context.Canceled) {
		log.Info("renewal given up by the node", "err", err)
	} else {
		log.Error("renewal failed, the node may ask again", "err", err)
	}
	ev.Outcome, ev.Reason = audit.Failed, err.Error()
	s.cfg.Audit.Record(ev)
	return errInternal()
}
