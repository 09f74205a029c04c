package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// maxMessage bounds a request's or answer's body, in bytes. An answer lists up to all nodes.
const maxMessage = 64 << 20

// Client talks to the running broker. Safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client; it connects with the first call.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}}
}

// Status asks how the broker is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// AddTenant adds a tenant. The broker waits for its API server, up to 45 s.
func (c *Client) AddTenant(ctx context.Context, r TenantRequest) (Tenant, error) {
	return call[Tenant](ctx, c, http.MethodPost, "/v1/tenants", r)
}

// UpdateTenant gives a tenant a new access, address and CA.
func (c *Client) UpdateTenant(ctx context.Context, r TenantRequest) (Tenant, error) {
	return call[Tenant](ctx, c, http.MethodPut, "/v1/tenants/"+url.PathEscape(r.Name), r)
}

// Tenants lists all tenants.
func (c *Client) Tenants(ctx context.Context) ([]Tenant, error) {
	return call[[]Tenant](ctx, c, http.MethodGet, "/v1/tenants", nil)
}

// Tenant shows one tenant.
func (c *Client) Tenant(ctx context.Context, name string) (Tenant, error) {
	return call[Tenant](ctx, c, http.MethodGet, "/v1/tenants/"+url.PathEscape(name), nil)
}

// RemoveTenant removes a tenant and cuts its nodes' sessions.
func (c *Client) RemoveTenant(ctx context.Context, name string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, "/v1/tenants/"+url.PathEscape(name), nil)
	return err
}

// CreateToken creates an enrolment token.
func (c *Client) CreateToken(ctx context.Context, r TokenRequest) (TokenResponse, error) {
	return call[TokenResponse](ctx, c, http.MethodPost, "/v1/tokens", r)
}

// Tokens lists a tenant's tokens, or all with an empty name.
func (c *Client) Tokens(ctx context.Context, tenant string) ([]Token, error) {
	return call[[]Token](ctx, c, http.MethodGet, "/v1/tokens?tenant="+url.QueryEscape(tenant), nil)
}

// RevokeToken makes a token useless.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil)
	return err
}

// Nodes lists a tenant's nodes, or all with an empty name.
func (c *Client) Nodes(ctx context.Context, tenant string) ([]Node, error) {
	return call[[]Node](ctx, c, http.MethodGet, "/v1/nodes?tenant="+url.QueryEscape(tenant), nil)
}

// Node shows one node.
func (c *Client) Node(ctx context.Context, tenant, name string) (Node, error) {
	return call[Node](ctx, c, http.MethodGet, "/v1/nodes/"+url.PathEscape(tenant)+"/"+url.PathEscape(name), nil)
}

// RemoveNode forgets a node's identity and cuts its session.
func (c *Client) RemoveNode(ctx context.Context, tenant, name string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, "/v1/nodes/"+url.PathEscape(tenant)+"/"+url.PathEscape(name), nil)
	return err
}

// IssueEgress issues a client certificate to a tenant's API servers.
func (c *Client) IssueEgress(ctx context.Context, r EgressRequest) (EgressResponse, error) {
	return call[EgressResponse](ctx, c, http.MethodPost, "/v1/egress", r)
}

// call is one request and its answer. What the broker refuses comes back as an *Error.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (out T, err error) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return out, err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://broker"+path, in)
	if err != nil {
		return out, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return out, c.explain(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err != nil {
		return out, fmt.Errorf("read the broker's answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		e := &Error{Status: resp.StatusCode}
		if json.Unmarshal(data, e) != nil || e.Message == "" {
			e.Message = "the broker answered " + resp.Status
		}
		return out, e
	}
	if len(data) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(data, &out); err != nil {
		return out, fmt.Errorf("understand the broker's answer (is it of another version?): %w", err)
	}
	return out, nil
}

func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no broker is running at %s: start `broker serve`, or name its socket with --socket", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not allowed to open %s: run this as the user that runs the broker (root?)", c.socket)
	}
	return fmt.Errorf("ask the broker at %s: %w", c.socket, err)
}
