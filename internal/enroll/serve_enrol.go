package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
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
	log := s.cfg.Logger.With("tenant", forLog(req.Tenant), "remote", remote, "hostname", forLog(req.Hostname), "serial", forLog(req.Serial), "version", forLog(req.Version))
	ev := audit.Event{Event: "enrol", Outcome: audit.Refused, Tenant: printable(req.Tenant), Source: remote, Actor: "unknown"}
	csr, err := pki.ParseCSR([]byte(req.CSR), maxCSRPEM)
	if err != nil {
		log.Warn("enrolment: the request's CSR can't be used", "err", err)
		return nil, "bad request", badRequest("csr: " + err.Error())
	}
	if len(req.Serial) > enrollapi.MaxSerial {
		return nil, "bad request", badRequest(fmt.Sprintf("serial: %d bytes, at most %d are taken", len(req.Serial), enrollapi.MaxSerial))
	}
	spki := pki.SPKIHash(csr.PublicKey)
	ev.Actor = actorOf(spki)
	if !s.paces.allow(spki, s.cfg.Now()) {
		log.Debug("enrolment put off", "key", spki, "err", ErrTooOften)
		return nil, "too often", errOverloaded()
	}
	tok, err := enrollapi.ParseToken(strings.TrimSpace(req.Token))
	if err != nil {
		log.Warn("enrolment token refused", "reason", string(ReasonMalformed), "key", spki)
		ev.Reason = string(ReasonMalformed)
		s.cfg.Audit.Record(ev)
		return nil, string(ReasonMalformed), errRefused()
	}
	now, ca := s.cfg.Now(), s.cfg.Issuer()
	ev.Detail = map[string]string{"token": tok.ID, "serial": printable(req.Serial), "hostname": printable(req.Hostname)}
	node, again, err := s.cfg.Tokens.Claim(ctx, Claim{
		Token: tok, Tenant: req.Tenant, Hostname: req.Hostname, Serial: req.Serial, Version: req.Version, Remote: remote,
		SPKI: spki, NotAfter: now.Add(s.cfg.CertificateTTL).UTC(), Issuer: ca.Hash(),
	})
	log = log.With("token", tok.ID, "key", spki)
	if err != nil {
		return s.notEnrolled(log, ev, err)
	}
	log, ev.Tenant, ev.Node = log.With("node", node.Name, "placed", node.Tenant), node.Tenant, node.Name
	id := pki.Identity{TrustDomain: ca.TrustDomain(), Role: pki.RoleNode, Tenant: node.Tenant, Name: node.Name}
	chain, err := s.issue(ca, csr, id, now, s.cfg.CertificateTTL)
	if err != nil {
		log.Error("enrolment failed: the use of the token is taken, the box may ask again", "err", err)
		ev.Outcome, ev.Reason = audit.Failed, err.Error()
		s.cfg.Audit.Record(ev)
		return nil, "error", errInternal()
	}
	outcome := "enrolled"
	if again {
		outcome = "again"
	}
	log.Info("node " + outcome)
	ev.Outcome, ev.Reason, ev.Detail["notAfter"] = audit.OK, outcome, now.Add(s.cfg.CertificateTTL).UTC().Format(time.RFC3339)
	s.cfg.Audit.Record(ev)
	return &enrollapi.EnrolResponse{
		Tenant: node.Tenant, Node: node.Name, TrustDomain: id.TrustDomain,
		Certificate: string(chain), CABundle: string(ca.BundlePEM()), Time: now.UTC(),
	}, outcome, nil
}

// notEnrolled logs, records and answers what Claim returned. A box that waits asks each half minute: that is told
// once.
func (s *Server) notEnrolled(log *slog.Logger, ev audit.Event, err error) (*enrollapi.EnrolResponse, string, *enrollapi.Error) {
	outcome, answer := claimFailed(err)
	ev.Reason = outcome
	pending, waits := errors.AsType[*PendingError](err)
	switch {
	case waits && !pending.New:
		log.Debug("box still waits for approval", "reason", pending.Reason)
		return nil, outcome, answer
	case waits:
		log.Warn("box waits for approval: see `broker node pending`", "reason", pending.Reason)
		ev.Outcome, ev.Reason = audit.Pending, pending.Reason
	case outcome == "error":
		log.Error("enrolment failed", "err", err)
		ev.Outcome, ev.Reason = audit.Failed, err.Error()
	default:
		log.Warn("enrolment refused", "reason", outcome, "err", err)
	}
	s.cfg.Audit.Record(ev)
	return nil, outcome, answer
}

// claimFailed maps what Claim returns to the metric's outcome and to the answer.
func claimFailed(err error) (string, *enrollapi.Error) {
	var refused *RefusedError
	var taken *NameTakenError
	var pending *PendingError
	switch {
	case errors.As(err, &pending):
		return "pending", &enrollapi.Error{
			Code: enrollapi.CodePending, RetryAfter: int(pendingRetry / time.Second),
			Message: fmt.Sprintf("this box waits for approval by whoever runs the broker; its key is %s (there: broker node approve %.16s)", pending.Fingerprint, hexOf(pending.Fingerprint)),
		}
	case errors.As(err, &refused):
		return string(refused.Reason), errRefused()
	case errors.As(err, &taken):
		return "name taken", &enrollapi.Error{Code: enrollapi.CodeNameTaken, Message: taken.Error()}
	case errors.Is(err, ErrBadName):
		return "bad name", badRequest(err.Error())
	case errors.Is(err, ErrPendingFull):
		return "too many pending", errOverloaded()
	}
	return "error", errInternal()
}
