package admin

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/internal/tenant"
)

func (b *Broker) createToken(r *http.Request) (any, error) {
	req, err := read[TokenRequest](r)
	if err != nil {
		return nil, err
	}
	token, rec, err := b.Tokens.Create(r.Context(), enroll.TokenSpec{
		Tenant: req.Tenant, TTL: req.TTL.Duration, Uses: req.Uses, NodeName: req.NodeName, Approval: req.Approval,
		Labels: req.Labels, Taints: req.Taints, Description: req.Description,
	})
	if errors.Is(err, tenant.ErrNotFound) {
		return nil, &Error{http.StatusNotFound, fmt.Sprintf("no tenant %q: see `broker tenant list`", req.Tenant)}
	}
	if err != nil {
		return nil, &Error{http.StatusBadRequest, err.Error()}
	}
	b.record(r, "token", "create", rec.Tenant, "", map[string]string{
		"token": rec.ID, "uses": strconv.Itoa(rec.Uses), "expires": rec.ExpiresAt.Format(time.RFC3339), "approval": rec.Approval, "nodeName": rec.NodeName,
	})
	return TokenResponse{
		Bundle: config.JoinBundle{
			TypeMeta: config.TypeMeta{APIVersion: config.APIVersion, Kind: config.KindJoinBundle},
			Endpoint: b.PublicEndpoint, Tenant: rec.Tenant, Token: token.String(),
			CACertHashes: b.CA.Keyring().Pins(),
		},
		Expires: rec.ExpiresAt, Uses: rec.Uses, Approval: rec.Approval,
	}, nil
}

func (b *Broker) listTokens(r *http.Request) (any, error) {
	recs, err := b.Tokens.List(r.Context(), r.URL.Query().Get("tenant"))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	out := []Token{}
	for _, rec := range recs {
		t := Token{
			ID: rec.ID, Tenant: rec.Tenant, Description: rec.Description,
			CreatedAt: rec.CreatedAt, Expires: rec.ExpiresAt, Uses: rec.Uses, UsedBy: []string{},
			State: rec.Status(now), NodeName: rec.NodeName, Approval: cmp.Or(rec.Approval, enroll.ApprovalAuto), Labels: rec.Labels, Taints: rec.Taints,
		}
		for _, u := range rec.Used {
			if u.Tenant != "" { // of a token that has none
				u.Node = u.Tenant + "/" + u.Node
			}
			t.UsedBy = append(t.UsedBy, u.Node)
		}
		out = append(out, t)
	}
	return out, nil
}

func (b *Broker) revokeToken(r *http.Request) (any, error) {
	id := r.PathValue("id")
	if err := b.Tokens.Revoke(r.Context(), id); errors.Is(err, enroll.ErrTokenNotFound) {
		return nil, &Error{http.StatusNotFound, fmt.Sprintf("no token %q: see `broker token list`", id)}
	} else if err != nil {
		return nil, err
	}
	b.record(r, "token", "revoke", "", "", map[string]string{"token": id})
	return struct{}{}, nil
}

func (b *Broker) listNodes(r *http.Request) (any, error) {
	recs, err := b.Nodes.List(r.Context(), r.URL.Query().Get("tenant"))
	if err != nil {
		return nil, err
	}
	quarantines, err := b.Nodes.Quarantines(r.Context())
	if err != nil {
		return nil, err
	}
	out := []Node{}
	for _, rec := range recs {
		out = append(out, b.node(rec, quarantines[rec.Tenant+"/"+rec.Name]))
	}
	return b.withAgents(out, r.URL.Query().Get("tenant")), nil
}

// withAgents adds the nodes that never enrolled, and are here by an agent of konnectivity.
func (b *Broker) withAgents(nodes []Node, tenant string) []Node {
	enrolled := map[string]bool{}
	for _, n := range nodes {
		enrolled[n.Tenant+"/"+n.Name] = true
	}
	for _, a := range b.Board.Agents() {
		if (tenant == "" || a.Tenant == tenant) && !enrolled[a.Tenant+"/"+a.Node] {
			nodes = append(nodes, Node{Tenant: a.Tenant, Name: a.Node, State: StateAgent, Connected: true, Session: session(a)})
		}
	}
	slices.SortStableFunc(nodes, func(a, b Node) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Name, b.Name))
	})
	return nodes
}

func (b *Broker) showNode(r *http.Request) (any, error) {
	tenant, name := r.PathValue("tenant"), r.PathValue("node")
	rec, err := b.Nodes.Get(r.Context(), tenant, name)
	if errors.Is(err, enroll.ErrNodeNotFound) {
		return nil, noNode(tenant, name)
	}
	if err != nil {
		return nil, err
	}
	lines, err := b.Nodes.Quarantine(r.Context(), tenant, name)
	if err != nil {
		return nil, err
	}
	return b.node(rec, lines), nil
}

func (b *Broker) removeNode(r *http.Request) (any, error) {
	tenant, name := r.PathValue("tenant"), r.PathValue("node")
	if err := b.Nodes.Remove(r.Context(), tenant, name); errors.Is(err, enroll.ErrNodeNotFound) {
		return nil, noNode(tenant, name)
	} else if err != nil {
		return nil, err
	}
	b.cutNode(tenant, name)
	b.Audit.Record(b.event(r, "remove", tenant, name))
	return struct{}{}, nil
}

func noNode(tenant, name string) error {
	return &Error{http.StatusNotFound, fmt.Sprintf("no node %s/%s: see `broker node list`", tenant, name)}
}

// node describes a node; lines are the boxes in quarantine.
func (b *Broker) node(rec enroll.NodeRecord, lines []enroll.Line) Node {
	n := Node{
		Tenant: rec.Tenant, Name: rec.Name, KeyHash: rec.SPKI, TokenID: rec.TokenID,
		EnrolledAt: rec.EnrolledAt, CertificateNotAfter: rec.CertificateNotAfter,
	}
	n.State, n.RevokedAt, n.RevokedReason, n.ReplaceUntil = StateActive, rec.RevokedAt, rec.RevokedReason, rec.ReplaceUntil
	for _, l := range lines {
		n.State, n.Boxes = StateQuarantined, append(n.Boxes, box(l))
	}
	if rec.RevokedAt != nil {
		n.State = StateRevoked
	}
	n.Connected = b.Board.Connected(rec.Tenant, rec.Name)
	if s, ok := b.Board.Session(rec.Tenant, rec.Name); ok {
		n.Connected = true // also if it came in between
		n.Session = session(s)
	}
	return n
}

func session(s switchboard.Info) *Session {
	out := &Session{
		Transport: string(s.Transport), RemoteAddr: s.RemoteAddr, Addresses: []string{}, AgentVersion: s.AgentVersion,
		Since: s.Stats.Since, RTTMillis: float64(s.Stats.RTT) / float64(time.Millisecond),
		Streams: int(s.Stats.OpenStreams), BytesIn: uint64(s.Stats.BytesIn), BytesOut: uint64(s.Stats.BytesOut),
	}
	for _, a := range s.Addresses {
		out.Addresses = append(out.Addresses, a.String())
	}
	return out
}
