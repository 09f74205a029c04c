package enroll

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

// enrolKey is the limiter's key of enrolments; no tenant can be called so.
const enrolKey = "*enrol"

const maxLogged = 64

// forLog cuts what a stranger sent; slog's handlers escape the rest.
func forLog(s string) string {
	if len(s) > maxLogged {
		return s[:maxLogged] + "…"
	}
	return s
}

func (s *Server) serveEnrol(w http.ResponseWriter, r *http.Request) {
	var req enrollapi.EnrolRequest
	if !read(w, r, &req) {
		s.cfg.Metrics.enrolments.WithLabelValues("bad request").Inc()
		return
	}
	leave, ok := s.limit.enter(enrolKey, s.cfg.MaxEnrolments)
	if !ok {
		s.cfg.Metrics.enrolments.WithLabelValues("overloaded").Inc()
		answer(w, nil, errOverloaded())
		return
	}
	defer leave()
	resp, outcome, err := s.enrol(r.Context(), req, r.RemoteAddr)
	s.cfg.Metrics.enrolments.WithLabelValues(outcome).Inc()
	answer(w, resp, err)
}

func (s *Server) enrol(ctx context.Context, req enrollapi.EnrolRequest, remote string) (*enrollapi.EnrolResponse, string, *enrollapi.Error) {
	log := s.cfg.Logger.With("tenant", forLog(req.Tenant), "remote", remote, "hostname", forLog(req.Hostname), "version", forLog(req.Version))
	csr, err := pki.ParseCSR([]byte(req.CSR), maxCSRPEM)
	if err != nil {
		log.Warn("enrolment: the request's CSR can't be used", "err", err)
		return nil, "bad request", badRequest("csr: " + err.Error())
	}
	tok, err := enrollapi.ParseToken(strings.TrimSpace(req.Token))
	if err != nil {
		log.Warn("enrolment token refused", "reason", string(ReasonMalformed))
		return nil, string(ReasonMalformed), errRefused()
	}
	now := s.cfg.Now()
	ca := s.cfg.Issuer()
	spki := pki.SPKIHash(csr.PublicKey)
	node, again, err := s.cfg.Tokens.Claim(ctx, Claim{
		Token: tok, Tenant: req.Tenant, Hostname: req.Hostname, SPKI: spki, NotAfter: now.Add(s.cfg.CertificateTTL).UTC(),
		Issuer: ca.Hash(),
	})
	log = log.With("token", tok.ID, "key", spki)
	if err != nil {
		outcome, answer := claimFailed(err)
		if outcome == "error" {
			log.Error("enrolment failed", "err", err)
		} else {
			log.Warn("enrolment refused", "reason", outcome, "err", err)
		}
		return nil, outcome, answer
	}
	id := pki.Identity{TrustDomain: ca.TrustDomain(), Role: pki.RoleNode, Tenant: node.Tenant, Name: node.Name}
	chain, err := ca.IssueNode(csr, id, now, s.cfg.CertificateTTL)
	if err != nil {
		log.Error("enrolment failed: the use of the token is taken, the box may ask again", "node", node.Name, "err", err)
		return nil, "error", errInternal()
	}
	outcome := "enrolled"
	if again {
		outcome = "again"
	}
	log.Info("node "+outcome, "node", node.Name)
	return &enrollapi.EnrolResponse{
		Tenant: node.Tenant, Node: node.Name, TrustDomain: id.TrustDomain,
		Certificate: string(chain), CABundle: string(ca.BundlePEM()),
	}, outcome, nil
}

// claimFailed maps what Claim returns to the metric's outcome and to the answer.
func claimFailed(err error) (string, *enrollapi.Error) {
	var refused *RefusedError
	var taken *NameTakenError
	switch {
	case errors.As(err, &refused):
		return string(refused.Reason), errRefused()
	case errors.As(err, &taken):
		return "name taken", &enrollapi.Error{Code: enrollapi.CodeNameTaken, Message: taken.Error()}
	case errors.Is(err, ErrBadName):
		return "bad name", badRequest(err.Error())
	}
	return "error", errInternal()
}
