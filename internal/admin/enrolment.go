package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// ClaimRequest files claims: one, or a file of many.
type ClaimRequest struct {
	Serial      string            `json:"serial,omitempty"`
	Tenant      string            `json:"tenant,omitempty"`
	NodeName    string            `json:"nodeName,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Taints      []enrollapi.Taint `json:"taints,omitempty"`
	Fingerprint string            `json:"fingerprint,omitempty"`
	// Approval is "auto" or "manual"; with CSV, of all claims in it.
	Approval string `json:"approval,omitempty"`
	// CSV is a file of claims; all above but Approval is empty then.
	CSV string `json:"csv,omitempty"`
}

// ClaimResponse says how many claims were filed, and how many were there already.
type ClaimResponse struct {
	Created   int `json:"created"`
	Unchanged int `json:"unchanged"`
}

// Claim is where a box belongs that may not have come yet.
type Claim struct {
	Serial      string            `json:"serial"`
	Tenant      string            `json:"tenant"`
	NodeName    string            `json:"nodeName,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Taints      []enrollapi.Taint `json:"taints,omitempty"`
	Approval    string            `json:"approval"`
	Fingerprint string            `json:"fingerprint,omitempty"`
	CreatedAt   time.Time         `json:"createdAt"`
	// Node, KeyHash and ConsumedAt are of the box that consumed it; empty while none did.
	Node       string     `json:"node,omitempty"`
	KeyHash    string     `json:"keyHash,omitempty"`
	ConsumedAt *time.Time `json:"consumedAt,omitempty"`
}

// PendingBox is a box that waits for an operator, or was denied by one.
type PendingBox struct {
	Fingerprint string    `json:"fingerprint"`
	State       string    `json:"state"` // pending or denied
	Hostname    string    `json:"hostname"`
	Serial      string    `json:"serial"`
	RemoteAddr  string    `json:"remoteAddr"`
	Version     string    `json:"version,omitempty"`
	Tenant      string    `json:"tenant"`
	TokenID     string    `json:"tokenID"`
	Reason      string    `json:"reason"`
	FirstSeen   time.Time `json:"firstSeen"`
	LastSeen    time.Time `json:"lastSeen"`
}

// ApproveRequest lets a box in that waits. Tenant and NodeName may be empty.
type ApproveRequest struct {
	Fingerprint string `json:"fingerprint"`
	Tenant      string `json:"tenant,omitempty"`
	NodeName    string `json:"nodeName,omitempty"`
}

// ApproveResponse names the node that the box became.
type ApproveResponse struct {
	Tenant      string `json:"tenant"`
	Node        string `json:"node"`
	Fingerprint string `json:"fingerprint"`
}

func (b *Broker) enrolmentRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/claims", serve(b.listClaims))
	mux.HandleFunc("POST /v1/claims", serve(b.createClaims))
	mux.HandleFunc("DELETE /v1/claims", serve(b.deleteClaim)) // a serial number may hold anything, so no path
	mux.HandleFunc("GET /v1/pending", serve(b.listPending))
	mux.HandleFunc("POST /v1/pending/approve", serve(b.approveBox))
	mux.HandleFunc("POST /v1/pending/deny", serve(b.denyBox))
	mux.HandleFunc("POST /v1/pending/forget", serve(b.forgetBox))
}

// refused gives an error of enrolment its status.
func refused(err error) error {
	status := http.StatusBadRequest
	switch {
	case errors.Is(err, tenant.ErrNotFound), errors.Is(err, enroll.ErrPendingNotFound), errors.Is(err, enroll.ErrClaimNotFound):
		status = http.StatusNotFound
	case errors.Is(err, enroll.ErrNameTaken), errors.Is(err, enroll.ErrClaimExists), errors.Is(err, enroll.ErrDenied), errors.Is(err, enroll.ErrTokenEnded):
		status = http.StatusConflict
	}
	return &Error{status, err.Error()}
}

func (b *Broker) record(r *http.Request, event, action, tenant, node string, detail map[string]string) {
	if detail == nil {
		detail = map[string]string{}
	}
	detail["action"] = action
	b.Audit.Record(audit.Event{Event: event, Outcome: audit.OK, Actor: Actor(r.Context()), Tenant: tenant, Node: node, Detail: detail})
}

func (b *Broker) createClaims(r *http.Request) (any, error) {
	req, err := read[ClaimRequest](r)
	if err != nil {
		return nil, err
	}
	if req.CSV == "" {
		rec, err := b.Claims.Create(r.Context(), enroll.ClaimSpec{
			Serial: req.Serial, Tenant: req.Tenant, NodeName: req.NodeName, Labels: req.Labels, Taints: req.Taints,
			Approval: req.Approval, Fingerprint: req.Fingerprint,
		})
		if err != nil {
			return nil, refused(err)
		}
		b.record(r, "claim", "create", rec.Tenant, rec.NodeName, map[string]string{"serial": rec.Serial, "fingerprint": rec.Fingerprint, "approval": rec.Approval})
		return ClaimResponse{Created: 1}, nil
	}
	filed, err := b.Claims.CreateCSV(r.Context(), []byte(req.CSV), req.Approval)
	for _, rec := range filed.Created {
		b.record(r, "claim", "create", rec.Tenant, rec.NodeName, map[string]string{"serial": rec.Serial, "approval": rec.Approval})
	}
	if err != nil {
		if len(filed.Created) == 0 {
			return nil, &Error{http.StatusBadRequest, "nothing was filed:\n" + err.Error()}
		}
		return nil, err
	}
	return ClaimResponse{Created: len(filed.Created), Unchanged: filed.Unchanged}, nil
}

func (b *Broker) listClaims(r *http.Request) (any, error) {
	recs, err := b.Claims.List(r.Context(), r.URL.Query().Get("tenant"))
	if err != nil {
		return nil, err
	}
	out := []Claim{}
	for _, rec := range recs {
		c := Claim{
			Serial: rec.Serial, Tenant: rec.Tenant, NodeName: rec.NodeName, Labels: rec.Labels, Taints: rec.Taints,
			Approval: rec.Approval, Fingerprint: rec.Fingerprint, CreatedAt: rec.CreatedAt,
		}
		if u := rec.Consumed; u != nil {
			c.Node, c.KeyHash, c.ConsumedAt = u.Node, u.SPKI, &u.At
		}
		out = append(out, c)
	}
	return out, nil
}

func (b *Broker) deleteClaim(r *http.Request) (any, error) {
	rec, err := b.Claims.Delete(r.Context(), r.URL.Query().Get("serial"))
	if errors.Is(err, enroll.ErrClaimNotFound) {
		return nil, &Error{http.StatusNotFound, fmt.Sprintf("%v: see `broker claim list`", err)}
	}
	if err != nil {
		return nil, err
	}
	b.record(r, "claim", "delete", rec.Tenant, "", map[string]string{"serial": rec.Serial})
	return struct{}{}, nil
}

func (b *Broker) listPending(r *http.Request) (any, error) {
	recs, err := b.Tokens.Pending(r.Context())
	if err != nil {
		return nil, err
	}
	out := []PendingBox{}
	for _, rec := range recs {
		out = append(out, pendingBox(rec))
	}
	return out, nil
}

func pendingBox(rec enroll.PendingRecord) PendingBox {
	p := PendingBox{
		Fingerprint: rec.SPKI, State: "pending", Hostname: rec.Hostname, Serial: rec.Serial, RemoteAddr: rec.Remote, Version: rec.Version,
		Tenant: rec.Tenant, TokenID: rec.TokenID, Reason: rec.Reason, FirstSeen: rec.FirstSeen, LastSeen: rec.LastSeen,
	}
	if rec.DeniedAt != nil {
		p.State = "denied"
	}
	return p
}

func (b *Broker) approveBox(r *http.Request) (any, error) {
	req, err := read[ApproveRequest](r)
	if err != nil {
		return nil, err
	}
	node, box, err := b.Tokens.Approve(r.Context(), enroll.Approval{Fingerprint: req.Fingerprint, Tenant: req.Tenant, NodeName: req.NodeName})
	if err != nil {
		return nil, b.notDecided(r, "approve", "", req, err)
	}
	b.record(r, "approve", "", node.Tenant, node.Name, boxDetail(box))
	return ApproveResponse{Tenant: node.Tenant, Node: node.Name, Fingerprint: node.SPKI}, nil
}

func (b *Broker) denyBox(r *http.Request) (any, error) { return b.decideBox(r, b.Tokens.Deny, "") }

func (b *Broker) forgetBox(r *http.Request) (any, error) {
	return b.decideBox(r, b.Tokens.Forget, "forget")
}

func (b *Broker) decideBox(r *http.Request, decide func(context.Context, string) (enroll.PendingRecord, error), action string) (any, error) {
	req, err := read[ApproveRequest](r)
	if err != nil {
		return nil, err
	}
	box, err := decide(r.Context(), req.Fingerprint)
	if err != nil {
		return nil, b.notDecided(r, "deny", action, req, err)
	}
	b.record(r, "deny", action, box.Tenant, "", boxDetail(box))
	return pendingBox(box), nil
}

// notDecided records a decision on a waiting box that an operator asked for and that was not made, and says why.
func (b *Broker) notDecided(r *http.Request, event, action string, req ApproveRequest, err error) error {
	ev := b.event(r, event, req.Tenant, req.NodeName)
	ev.Outcome, ev.Reason = audit.Refused, err.Error()
	ev.Detail = map[string]string{"fingerprint": req.Fingerprint, "action": action}
	b.Audit.Record(ev)
	return refused(err)
}

func boxDetail(box enroll.PendingRecord) map[string]string {
	return map[string]string{"fingerprint": box.SPKI, "token": box.TokenID, "serial": box.Serial, "hostname": box.Hostname, "remote": box.Remote, "waitedFor": box.Reason}
}

// CreateClaims files one claim or many.
func (c *Client) CreateClaims(ctx context.Context, r ClaimRequest) (ClaimResponse, error) {
	return call[ClaimResponse](ctx, c, http.MethodPost, "/v1/claims", r)
}

// Claims lists the claims for a tenant, or all with an empty name.
func (c *Client) Claims(ctx context.Context, tenant string) ([]Claim, error) {
	return call[[]Claim](ctx, c, http.MethodGet, "/v1/claims?tenant="+url.QueryEscape(tenant), nil)
}

// DeleteClaim takes a claim back.
func (c *Client) DeleteClaim(ctx context.Context, serial string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, "/v1/claims?serial="+url.QueryEscape(serial), nil)
	return err
}

// Pending lists the boxes that wait or were denied.
func (c *Client) Pending(ctx context.Context) ([]PendingBox, error) {
	return call[[]PendingBox](ctx, c, http.MethodGet, "/v1/pending", nil)
}

// Approve lets a box in.
func (c *Client) Approve(ctx context.Context, r ApproveRequest) (ApproveResponse, error) {
	return call[ApproveResponse](ctx, c, http.MethodPost, "/v1/pending/approve", r)
}

// Deny refuses a box until it is forgotten; forget forgets it.
func (c *Client) Deny(ctx context.Context, fingerprint string, forget bool) (PendingBox, error) {
	path := "/v1/pending/deny"
	if forget {
		path = "/v1/pending/forget"
	}
	return call[PendingBox](ctx, c, http.MethodPost, path, ApproveRequest{Fingerprint: fingerprint})
}
