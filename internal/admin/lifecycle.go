package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enroll"
)

// Bootstraps ends what a node could still ask its tenant for.
type Bootstraps interface {
	// EndBootstrap deletes the node's bootstrap tokens at its tenant.
	EndBootstrap(ctx context.Context, tenant, node string) error
}

// RevokeRequest revokes a node.
type RevokeRequest struct {
	// Reason is for people, at most enroll.MaxReason bytes.
	Reason string `json:"reason,omitempty"`
}

// RevokeResponse says what was done.
type RevokeResponse struct {
	Node Node `json:"node"`
	// Cut tells whether the node had a live session here.
	Cut bool `json:"cut"`
	// BootstrapError is why its bootstrap tokens could not be deleted at the tenant; empty if they were.
	BootstrapError string `json:"bootstrapError,omitempty"`
}

// ReplaceRequest lets another box take a node's name.
type ReplaceRequest struct {
	// TTL is for how long, from a minute to 30 days.
	TTL config.Duration `json:"ttl"`
}

// ResolveRequest ends a quarantine.
type ResolveRequest struct {
	// Keep is the ID of the box that is let in again.
	Keep string `json:"keep"`
}

// Box is one of several that use a node's identity.
type Box struct {
	ID         string    `json:"id"`
	RemoteAddr string    `json:"remoteAddr"`
	Since      time.Time `json:"since"`
	LastSeen   time.Time `json:"lastSeen"`
}

// The states of a node.
const (
	StateActive      = "active"
	StateRevoked     = "revoked"
	StateQuarantined = "quarantined"
	StateAgent       = "agent" // not enrolled, and here by an agent of konnectivity
)

func nodePath(tenant, name, what string) string {
	return "/v1/nodes/" + url.PathEscape(tenant) + "/" + url.PathEscape(name) + "/" + what
}

// RevokeNode ends a node's identity for good and cuts its session.
func (c *Client) RevokeNode(ctx context.Context, tenant, name string, r RevokeRequest) (RevokeResponse, error) {
	return call[RevokeResponse](ctx, c, http.MethodPost, nodePath(tenant, name, "revoke"), r)
}

// ReplaceNode lets another box take a node's name, once.
func (c *Client) ReplaceNode(ctx context.Context, tenant, name string, r ReplaceRequest) (Node, error) {
	return call[Node](ctx, c, http.MethodPost, nodePath(tenant, name, "replace"), r)
}

// ResolveNode ends a node's quarantine in favour of one box.
func (c *Client) ResolveNode(ctx context.Context, tenant, name string, r ResolveRequest) (Box, error) {
	return call[Box](ctx, c, http.MethodPost, nodePath(tenant, name, "resolve"), r)
}

// bootstrapTimeout bounds what is asked of a tenant's API server while an operator waits.
const bootstrapTimeout = 10 * time.Second

func (b *Broker) revokeNode(r *http.Request) (any, error) {
	tenant, name := r.PathValue("tenant"), r.PathValue("node")
	req, err := read[RevokeRequest](r)
	if err != nil {
		return nil, err
	}
	if len(req.Reason) > enroll.MaxReason {
		return nil, &Error{http.StatusBadRequest, fmt.Sprintf("the reason has %d bytes, at most %d are kept", len(req.Reason), enroll.MaxReason)}
	}
	ev := b.event(r, "revoke", tenant, name)
	ev.Reason = req.Reason
	var out RevokeResponse
	_, out.Cut = b.Board.Session(tenant, name) // before: the watch of the records may be faster than what follows
	rec, err := b.Nodes.Revoke(r.Context(), tenant, name, req.Reason, time.Now())
	if err != nil {
		return nil, b.lifecycleFailed(ev, err)
	}
	b.Board.Recheck(tenant, name) // the watch of the records does so too, on every broker; this one answers when it is done
	ctx, cancel := context.WithTimeout(r.Context(), bootstrapTimeout)
	defer cancel()
	if err := b.Bootstraps.EndBootstrap(ctx, tenant, name); err != nil {
		out.BootstrapError = err.Error()
	}
	ev.Detail = map[string]string{"key": rec.SPKI, "bootstrap": out.BootstrapError}
	b.Audit.Record(ev)
	out.Node = b.node(rec, nil)
	return out, nil
}

func (b *Broker) replaceNode(r *http.Request) (any, error) {
	tenant, name := r.PathValue("tenant"), r.PathValue("node")
	req, err := read[ReplaceRequest](r)
	if err != nil {
		return nil, err
	}
	const low, high = time.Minute, 30 * 24 * time.Hour
	if req.TTL.Duration < low || req.TTL.Duration > high {
		return nil, &Error{http.StatusBadRequest, fmt.Sprintf("ttl %s: want %s to %s", req.TTL, low, high)}
	}
	ev := b.event(r, "replace", tenant, name)
	rec, err := b.Nodes.Replace(r.Context(), tenant, name, time.Now().Add(req.TTL.Duration))
	if err != nil {
		return nil, b.lifecycleFailed(ev, err)
	}
	ev.Detail = map[string]string{"until": rec.ReplaceUntil.Format(time.RFC3339), "key": rec.SPKI}
	b.Audit.Record(ev)
	lines, err := b.Nodes.Quarantine(r.Context(), tenant, name)
	if err != nil {
		return nil, err
	}
	return b.node(rec, lines), nil
}

func (b *Broker) resolveNode(r *http.Request) (any, error) {
	tenant, name := r.PathValue("tenant"), r.PathValue("node")
	req, err := read[ResolveRequest](r)
	if err != nil {
		return nil, err
	}
	ev := b.event(r, "resolve", tenant, name)
	ev.Detail = map[string]string{"kept": req.Keep}
	kept, err := b.Nodes.Resolve(r.Context(), tenant, name, req.Keep)
	if err != nil {
		return nil, b.lifecycleFailed(ev, err)
	}
	ev.Detail["source"] = kept.Remote
	b.Audit.Record(ev)
	return box(kept), nil
}

func (b *Broker) event(r *http.Request, what, tenant, node string) audit.Event {
	return audit.Event{Event: what, Outcome: audit.OK, Actor: Actor(r.Context()), Tenant: tenant, Node: node}
}

// lifecycleFailed records a change that was not made, and says why.
func (b *Broker) lifecycleFailed(ev audit.Event, err error) error {
	ev.Outcome, ev.Reason = audit.Refused, err.Error()
	var unfit *enroll.NoSuchBoxError
	switch {
	case errors.Is(err, enroll.ErrNodeNotFound):
		err = noNode(ev.Tenant, ev.Node)
	case errors.Is(err, enroll.ErrNotQuarantined):
		err = &Error{http.StatusConflict, err.Error() + ": see `broker node show " + ev.Tenant + "/" + ev.Node + "`"}
	case errors.As(err, &unfit):
		err = &Error{http.StatusBadRequest, err.Error()}
	default:
		ev.Outcome = audit.Failed
	}
	b.Audit.Record(ev)
	return err
}

func box(l enroll.Line) Box {
	return Box{ID: l.ID, RemoteAddr: l.Remote, Since: l.Since, LastSeen: l.LastSeen}
}
