package enroll

import (
	"context"
	"errors"
	"net/http"

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
	if errors.Is(err, errStore) {
		log.Error("join failed", "err", err)
		return nil, "error", errInternal()
	}
	if err != nil {
		log.Warn("join refused", "err", err)
		return nil, "refused", errRefused()
	}
	log = log.With("tenant", id.Tenant, "node", id.Name, "kubelet", forLog(req.KubeletVersion))
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
	return resp, "joined", nil
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
