// Package admin is how the broker's subcommands talk to the running broker: HTTP and JSON over a unix
// socket that only its owner may open. It holds both halves and the types between them.
//
// Whoever can open the socket may do everything; it is never served on a network.
package admin

import (
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enroll"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// Error is the body of every answer that is not 2xx.
type Error struct {
	Status  int    `json:"-"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Status is what `broker status` shows.
type Status struct {
	Version        string      `json:"version"`
	Since          time.Time   `json:"since"`
	TrustDomain    string      `json:"trustDomain"`
	CACertHash     string      `json:"caCertHash"`
	PublicEndpoint string      `json:"publicEndpoint"`
	EgressEndpoint string      `json:"egressEndpoint"`
	Tenants        int         `json:"tenants"`
	Nodes          int         `json:"nodes"`
	Connected      int         `json:"connected"`
	Sidecars       int         `json:"sidecars"`
	Agents         int         `json:"agents"` // nodes with an agent of konnectivity at this broker
	Conditions     []Condition `json:"conditions"`
}

// Condition is a health condition as a person reads it.
type Condition struct {
	Type    string    `json:"type"`
	Status  string    `json:"status"`
	Reason  string    `json:"reason,omitempty"`
	Message string    `json:"message,omitempty"`
	Since   time.Time `json:"since"`
}

// TenantRequest adds a tenant, or gives it a new access.
type TenantRequest struct {
	Name string `json:"name"`
	// Kubeconfig of an administrator of the tenant, self-contained. It is used once and not kept.
	// With an update it may be empty: the access stays as it is.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// Upstreams, Hosts and ProxyProtocol are the tenant's of those names; nil = as they are, or for a new tenant the default.
	Upstreams     *[]string `json:"upstreams,omitempty"`
	Hosts         *[]string `json:"hosts,omitempty"`
	ProxyProtocol *bool     `json:"proxyProtocol,omitempty"`
	// ServiceCIDRs are the ranges of the tenant's Services. None: as they were set before; LearnServiceCIDRs alone: the
	// API server's word.
	ServiceCIDRs []string `json:"serviceCIDRs,omitempty"`
	// Owner is for callers within the broker: the object that the tenant is made for.
	Owner tenant.Owner `json:"-"`
}

// Upstream is one address of a tenant's API server.
type Upstream struct {
	Address string `json:"address"`
	// Up is false since a connection there failed.
	Up bool `json:"up"`
	// Error is why it failed.
	Error string `json:"error,omitempty"`
}

// LearnServiceCIDRs in place of ranges takes back what was set.
const LearnServiceCIDRs = "learn"

// Tenant is a hosted control plane.
type Tenant struct {
	Name       string    `json:"name"`
	Address    string    `json:"address"`
	ServerName string    `json:"serverName"`
	CreatedAt  time.Time `json:"createdAt"`
	Nodes      int       `json:"nodes"`
	Connected  int       `json:"connected"`
	Access     Access    `json:"access"`
	// Front is the URL by which clients reach the API server through the broker's port; empty where front.domain is.
	Front string `json:"front,omitempty"`
	// Hosts lead there too, by SNI.
	Hosts []string `json:"hosts,omitempty"`
	// Upstreams are all addresses, in the order in which they are dialled.
	Upstreams     []Upstream `json:"upstreams"`
	ProxyProtocol bool       `json:"proxyProtocol,omitempty"`
	// Warnings say what was found to be wrong when the tenant was added or changed.
	Warnings []string `json:"warnings,omitempty"`
	// ServiceCIDRs are the ranges of its Services, if an operator set them.
	ServiceCIDRs []string `json:"serviceCIDRs,omitempty"`
	// Owner is the object that it was made for, as "TenantControlPlane namespace/name"; empty if an operator added it.
	Owner string `json:"owner,omitempty"`
}

// Access is what the broker acts with at a tenant.
type Access struct {
	// Account is the user name that the tenant knows the broker by; empty where it is an administrator's.
	Account string `json:"account"`
	// Expires is when its token ends; it is renewed at a third of its life.
	Expires time.Time `json:"expires,omitzero"`
	// Warnings say which bounds the tenant's API server does not keep.
	Warnings []string `json:"warnings,omitempty"`
	// Rights are all that the account was given.
	Rights []enroll.Right `json:"rights,omitempty"`
}

// TokenRequest creates an enrolment token.
type TokenRequest struct {
	// Tenant of its nodes; "" = of no tenant: claims or an operator place the boxes.
	Tenant      string            `json:"tenant"`
	TTL         config.Duration   `json:"ttl"`
	Uses        int               `json:"uses"`
	NodeName    string            `json:"nodeName,omitempty"`
	Approval    string            `json:"approval,omitempty"` // auto (also "") or manual
	Labels      map[string]string `json:"labels,omitempty"`
	Taints      []enrollapi.Taint `json:"taints,omitempty"`
	Description string            `json:"description,omitempty"`
}

// TokenResponse is the one time that the token's secret is seen.
type TokenResponse struct {
	Bundle  config.JoinBundle `json:"bundle"`
	Expires time.Time         `json:"expires"`
	Uses    int               `json:"uses"`
	// Approval is auto or manual.
	Approval string `json:"approval"`
}

// Token is an enrolment token without its secret.
type Token struct {
	ID          string            `json:"id"`
	Tenant      string            `json:"tenant"`
	Description string            `json:"description,omitempty"`
	CreatedAt   time.Time         `json:"createdAt"`
	Expires     time.Time         `json:"expires"`
	Uses        int               `json:"uses"`
	UsedBy      []string          `json:"usedBy"`
	State       string            `json:"state"` // active, expired, used up or revoked
	NodeName    string            `json:"nodeName,omitempty"`
	Approval    string            `json:"approval"` // auto or manual
	Labels      map[string]string `json:"labels,omitempty"`
	Taints      []enrollapi.Taint `json:"taints,omitempty"`
}

// Node is an enrolled node, with its session if it has one.
type Node struct {
	Tenant              string    `json:"tenant"`
	Name                string    `json:"name"`
	KeyHash             string    `json:"keyHash"`
	TokenID             string    `json:"tokenID"`
	EnrolledAt          time.Time `json:"enrolledAt"`
	CertificateNotAfter time.Time `json:"certificateNotAfter,omitzero"` // zero: approved, and has not asked since
	// State is active, revoked or quarantined.
	State         string     `json:"state"`
	RevokedAt     *time.Time `json:"revokedAt,omitempty"`
	RevokedReason string     `json:"revokedReason,omitempty"`
	// ReplaceUntil is until when another box may take the name.
	ReplaceUntil *time.Time `json:"replaceUntil,omitempty"`
	// Boxes are those that use the identity of a node in quarantine.
	Boxes     []Box    `json:"boxes,omitempty"`
	Connected bool     `json:"connected"`
	Session   *Session `json:"session,omitempty"`
}

// Session is a node's live tunnel session.
type Session struct {
	Transport    string    `json:"transport"`
	RemoteAddr   string    `json:"remoteAddr"`
	Addresses    []string  `json:"addresses"`
	AgentVersion string    `json:"agentVersion"`
	Since        time.Time `json:"since"`
	RTTMillis    float64   `json:"rttMillis"`
	Streams      int       `json:"streams"`
	BytesIn      uint64    `json:"bytesIn"`
	BytesOut     uint64    `json:"bytesOut"`
}

// EgressRequest issues a client certificate to a tenant's API servers.
type EgressRequest struct {
	Tenant string          `json:"tenant"`
	TTL    config.Duration `json:"ttl"`
}

// EgressResponse holds what an API server's egress selector or its sidecar needs; certificates and key as PEM.
type EgressResponse struct {
	Certificate string    `json:"certificate"`
	Key         string    `json:"key"`
	CA          string    `json:"ca"`
	Endpoint    string    `json:"endpoint"` // https://host:port, for HTTP CONNECT over mTLS
	Broker      string    `json:"broker"`   // host:port, for a sidecar
	NotAfter    time.Time `json:"notAfter"`
}
