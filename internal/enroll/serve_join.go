package enroll

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
)

func (s *Server) serveJoin(w http.ResponseWriter, r *http.Request) {
	var req enrollapi.JoinRequest
	if !read(w, r, &req) {
		s.cfg.Metrics.joins.WithLabelValues("bad request").Inc()
		return
	}
	resp, outcome, err := s.join(r, req)
	s.cfg.Metrics.joins.WithLabelValues(outcome).Inc()
	answer(w, resp, err)
}

func (s *Server) join(r *http.Request, req enrollapi.JoinRequest) (*enrollapi.JoinResponse, string, *enrollapi.Error) {
	log := s.cfg.Logger.With("remote", r.RemoteAddr)
	id, err := s.authenticate(r)
	spki := keyOf(r)
	ev := audit.Event{Event: "join", Outcome: audit.Refused, Actor: actorOf(spki), Tenant: id.Tenant, Node: id.Name, Source: r.RemoteAddr}
	log = log.With("tenant", id.Tenant, "node", id.Name, "kubelet", forLog(req.KubeletVersion))
	switch {
	case errors.Is(err, errStore):
		log.Error("join failed", "err", err)
		return nil, "error", errInternal()
	case err != nil:
		log.Warn("join refused", "key", spki, "err", err)
		ev.Reason = err.Error()
		s.cfg.Audit.Record(ev)
		return nil, "refused", errRefused()
	case !s.paces.allow(spki, s.cfg.Now()):
		log.Debug("join put off", "err", ErrTooOften)
		return nil, "too often", errOverloaded()
	}
	if lines, err := s.cfg.Nodes.Quarantine(r.Context(), id.Tenant, id.Name); err != nil {
		log.Error("join failed", "err", err)
		return nil, "error", errInternal()
	} else if len(lines) > 0 { // nobody knows whether this is the right box
		log.Warn("join has to wait: the node is in quarantine", "boxes", len(lines))
		ev.Reason = reasonClone
		s.cfg.Audit.Record(ev)
		return nil, "quarantined", &enrollapi.Error{Code: enrollapi.CodeUnavailable, Message: "two boxes use this node's identity (a cloned disk?): neither is given anything until an operator says which one keeps it (broker node show, broker node resolve)"}
	}
	leave, ok := s.limit.enter(id.Tenant, s.cfg.MaxJoinsPerTenant)
	if !ok {
		return nil, "overloaded", errOverloaded()
	}
	defer leave()
	resp, err := s.material(r.Context(), id)
	switch {
	case errors.Is(err, ErrUnavailable), errors.Is(err, tenant.ErrNotFound):
		log.Warn("join has to wait", "err", err)
		return nil, "unavailable", &enrollapi.Error{Code: enrollapi.CodeUnavailable, Message: "the tenant's API server can't be asked for what the kubelet needs; the broker's log says why; try again"}
	case err != nil:
		log.Error("join failed", "err", err)
		return nil, "error", errInternal()
	}
	log.Info("node joins: bootstrap token minted", "expires", resp.BootstrapExpires)
	tokenID, _, _ := strings.Cut(resp.BootstrapToken, ".")
	ev.Outcome, ev.Detail = audit.OK, map[string]string{"bootstrapToken": tokenID, "notAfter": resp.BootstrapExpires.UTC().Format(time.RFC3339)}
	s.cfg.Audit.Record(ev)
	return resp, "joined", nil
}

// keyOf is the hash of the key that the client has proven; "" if it presented none.
func keyOf(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	return pki.SPKIHash(r.TLS.PeerCertificates[0].PublicKey)
}

// errStore marks failures that say nothing about the node.
var errStore = errors.New("identity could not be checked")

// authenticate verifies the client's certificate and wants the record of its node.
func (s *Server) authenticate(r *http.Request) (pki.Identity, error) {
	if r.TLS == nil {
		return pki.Identity{}, errors.New("not on TLS")
	}
	if err := s.verify(*r.TLS); err != nil {
		return pki.Identity{}, err
	}
	id, err := pki.PeerIdentity(*r.TLS)
	if err != nil {
		return pki.Identity{}, err
	}
	err = s.cfg.Nodes.Authorize(r.Context(), id, r.TLS.PeerCertificates[0])
	if err != nil && !errors.Is(err, ErrNotAuthorized) {
		err = errors.Join(errStore, err)
	}
	return id, err
}

// material gathers what the node's kubelet needs. The token comes last, when nothing else can fail.
func (s *Server) material(ctx context.Context, id pki.Identity) (*enrollapi.JoinResponse, error) {
	rec, err := s.cfg.Nodes.Get(ctx, id.Tenant, id.Name)
	if err != nil {
		return nil, err
	}
	t, ok := s.cfg.Tenants.Get(id.Tenant)
	if !ok {
		return nil, tenant.ErrNotFound
	}
	cfg, err := kubeletConfiguration(ctx, s.cfg.Clients, id.Tenant, s.cfg.KubeletConfig)
	if err != nil {
		return nil, err
	}
	token, expires, err := s.cfg.Minter.Mint(ctx, id.Tenant, id.Name)
	if err != nil {
		return nil, err
	}
	return &enrollapi.JoinResponse{
		APIServerCA: string(t.CA), APIServerName: t.ServerName,
		BootstrapToken: token, BootstrapExpires: expires, KubeletConfiguration: cfg,
		Labels: rec.Labels, Taints: rec.Taints,
	}, nil
}
