package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/internal/version"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Broker is what the server shows and changes. All exported fields but Audit are needed.
type Broker struct {
	Tenants *tenant.Registry
	Tokens  *enroll.Tokens
	Nodes   *enroll.Nodes
	Claims  *enroll.Claims
	// Provision makes the broker's own account at a tenant with an administrator's access, and returns the tenant with
	// that account's; enroll.ErrUnavailable if the API server did not do it.
	Provision func(ctx context.Context, admin tenant.Tenant) (tenant.Tenant, error)
	// Purge removes a tenant's tokens and node records; tenant.ErrExists while it is there.
	Purge func(ctx context.Context, tenant string) error
	Board *switchboard.Board
	// Konnectivity says that agents of konnectivity are taken.
	Konnectivity bool
	CA           Authority
	// Holders says what the nodes of the live sessions hold of the CA.
	Holders     func() []Holder
	EgressCerts EgressCerts
	// Sidecars counts the sessions of API servers' sidecars.
	Sidecars   interface{ Count() int }
	Bootstraps Bootstraps
	Health     *health.Tracker
	// PublicEndpoint goes into join bundles, EgressEndpoint into egress configurations.
	PublicEndpoint, EgressEndpoint string
	// ProxyToUpstreams is whether tenants that are added are dialled with a PROXY header, if the request does not say.
	ProxyToUpstreams bool
	Started          time.Time
	Logger           *slog.Logger
	// Audit takes a line for each change; nil drops them.
	Audit *audit.Log

	tenantChange sync.Mutex // held while a tenant is added or removed
}

// maxRequest bounds a request's body, in bytes; the largest is a kubeconfig.
const maxRequest = 2 << 20

// Handler serves the API that Client speaks.
func (b *Broker) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", serve(b.status))
	mux.HandleFunc("GET /v1/tenants", serve(b.listTenants))
	mux.HandleFunc("POST /v1/tenants", serve(b.addTenant))
	mux.HandleFunc("GET /v1/tenants/{tenant}", serve(b.showTenant))
	mux.HandleFunc("PUT /v1/tenants/{tenant}", serve(b.updateTenant))
	mux.HandleFunc("DELETE /v1/tenants/{tenant}", serve(b.removeTenant))
	mux.HandleFunc("GET /v1/tokens", serve(b.listTokens))
	mux.HandleFunc("POST /v1/tokens", serve(b.createToken))
	mux.HandleFunc("DELETE /v1/tokens/{id}", serve(b.revokeToken))
	mux.HandleFunc("GET /v1/nodes", serve(b.listNodes))
	mux.HandleFunc("GET /v1/nodes/{tenant}/{node}", serve(b.showNode))
	mux.HandleFunc("DELETE /v1/nodes/{tenant}/{node}", serve(b.removeNode))
	mux.HandleFunc("POST /v1/nodes/{tenant}/{node}/revoke", serve(b.revokeNode))
	mux.HandleFunc("POST /v1/nodes/{tenant}/{node}/replace", serve(b.replaceNode))
	mux.HandleFunc("POST /v1/nodes/{tenant}/{node}/resolve", serve(b.resolveNode))
	mux.HandleFunc("GET /v1/ca", serve(b.showCA))
	mux.HandleFunc("POST /v1/ca/{step}", serve(b.stepCA))
	mux.HandleFunc("POST /v1/egress", serve(b.issueEgress))
	b.enrolmentRoutes(mux)
	return mux
}

// serve wraps a call that answers with a value or an error.
func serve(fn func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		v, err := fn(r)
		if err != nil {
			e, ok := errors.AsType[*Error](err)
			if !ok {
				e = &Error{http.StatusInternalServerError, err.Error()}
			}
			writeJSON(w, e.Status, e)
			return
		}
		writeJSON(w, http.StatusOK, v)
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// read decodes a request's body strictly: the client is of the same build, or says what it means.
func read[T any](r *http.Request) (v T, err error) {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return v, &Error{http.StatusBadRequest, fmt.Sprintf("malformed request (is this command of the broker's version?): %v", err)}
	}
	return v, nil
}

func (b *Broker) status(r *http.Request) (any, error) {
	nodes, err := b.Nodes.List(r.Context(), "")
	if err != nil {
		return nil, err
	}
	connected := 0
	for _, n := range nodes {
		if b.Board.Connected(n.Tenant, n.Name) {
			connected++
		}
	}
	s := Status{
		Version: version.Get().String(), Since: b.Started,
		TrustDomain: b.CA.Keyring().TrustDomain(), CACertHash: b.CA.Keyring().Hash(),
		PublicEndpoint: b.PublicEndpoint, EgressEndpoint: b.EgressEndpoint,
		Tenants: len(b.Tenants.List()), Nodes: len(nodes), Connected: connected, Sidecars: b.Sidecars.Count(), Agents: len(b.Board.Agents()),
		Conditions: []Condition{},
	}
	for _, c := range b.Health.Conditions() {
		s.Conditions = append(s.Conditions, Condition{c.Type, string(c.Status), c.Reason, c.Message, c.Since})
	}
	return s, nil
}

func (b *Broker) issueEgress(r *http.Request) (any, error) {
	req, err := read[EgressRequest](r)
	if err != nil {
		return nil, err
	}
	if _, err := b.tenant(req.Tenant); err != nil {
		return nil, err
	}
	const low, high = 10 * time.Minute, 10 * 365 * 24 * time.Hour
	if req.TTL.Duration < low || req.TTL.Duration > high {
		return nil, &Error{http.StatusBadRequest, fmt.Sprintf("ttl %s: want %s to %s", req.TTL, low, high)}
	}
	return b.IssueAPIServer(r.Context(), req)
}

// IssueAPIServer issues a client identity for a tenant's API server, and remembers until when one is in use.
func (b *Broker) IssueAPIServer(ctx context.Context, req EgressRequest) (EgressResponse, error) {
	now := time.Now()
	ring := b.CA.Keyring()
	cert, key, err := ring.IssueAPIServer(req.Tenant, now, req.TTL.Duration)
	if err != nil {
		return EgressResponse{}, err
	}
	if err := b.EgressCerts.Put(ctx, req.Tenant, EgressCert{CAHash: ring.Hash(), NotAfter: now.Add(req.TTL.Duration).UTC()}); err != nil {
		return EgressResponse{}, err
	}
	b.Logger.Info("egress certificate issued", "tenant", req.Tenant, "notAfter", now.Add(req.TTL.Duration))
	b.Audit.Record(audit.Event{
		Event: "issue", Outcome: audit.OK, Actor: Actor(ctx), Tenant: req.Tenant,
		Detail: map[string]string{"what": "egress certificate", "notAfter": now.Add(req.TTL.Duration).UTC().Format(time.RFC3339)},
	})
	return EgressResponse{
		Certificate: string(cert), Key: string(key), CA: string(ring.BundlePEM()),
		Endpoint: b.EgressEndpoint, Broker: b.PublicEndpoint, NotAfter: now.Add(req.TTL.Duration),
	}, nil
}

// tenant finds a tenant or says how to see which there are.
func (b *Broker) tenant(name string) (tenant.Tenant, error) {
	t, ok := b.Tenants.Get(name)
	if !ok {
		return t, &Error{http.StatusNotFound, fmt.Sprintf("no tenant %q: see `broker tenant list`", name)}
	}
	return t, nil
}

// cutNode closes a node's session after its record is gone.
func (b *Broker) cutNode(tenant, node string) {
	b.Board.Cut(tenant, node, wire.Revoked, "this node was removed by an operator")
}

// counts are the enrolled and connected nodes of each tenant.
func (b *Broker) counts(ctx context.Context) (nodes, connected map[string]int, err error) {
	all, err := b.Nodes.List(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	nodes, connected = map[string]int{}, map[string]int{}
	for _, n := range all {
		nodes[n.Tenant]++
		if b.Board.Connected(n.Tenant, n.Name) {
			connected[n.Tenant]++
		}
	}
	return nodes, connected, nil
}
