// Package enrollapi is the vocabulary of the enrolment protocol: what an edge node and the broker
// say to each other over HTTPS before and beside the tunnel.
//
// It holds types, limits and the token's form; it does no I/O and knows nothing of certificates or
// the store. The node's half is pkg/join, the broker's internal/enroll.
package enrollapi

import (
	"encoding/json"
	"time"
)

// ALPN is offered by a node that wants to enrol. The front routes by it; over TLS the protocol is
// plain HTTP/1.1.
const ALPN = "mooring-enroll/1"

const (
	// PathEnrol trades a token and a CSR for a node identity. No client certificate.
	PathEnrol = "/v1/enrol"
	// PathJoin gives an enrolled node what its kubelet needs, with a freshly minted bootstrap token.
	// Needs the node's client certificate. May be asked again at any time.
	PathJoin = "/v1/join"
)

const (
	// MaxBody limits a request's body, in bytes.
	MaxBody = 64 << 10
	// MaxAnswer limits an answer's body, in bytes.
	MaxAnswer = 1 << 20
)

// EnrolRequest is the body of a POST to PathEnrol.
type EnrolRequest struct {
	// Token is the enrolment token, "id.secret".
	Token string `json:"token"`
	// Tenant is the tenant that the box was told it belongs to; it must be the token's.
	Tenant string `json:"tenant"`
	// CSR is a PEM certificate request. Only its public key is used: the name is the token's to give.
	CSR string `json:"csr"`
	// Hostname names the node where the token does not fix a name.
	Hostname string `json:"hostname"`
	// Version of the agent, for the operator's eyes.
	Version string `json:"version,omitempty"`
}

// EnrolResponse is the identity that the broker gave. Asking again with the same key gives the same
// node, without a further use of the token.
type EnrolResponse struct {
	Tenant      string `json:"tenant"`
	Node        string `json:"node"`
	TrustDomain string `json:"trustDomain"`
	// Certificate is the node's certificate chain, PEM, leaf first.
	Certificate string `json:"certificate"`
	// CABundle holds the broker's CA certificates, PEM.
	CABundle string `json:"caBundle"`
}

// JoinRequest is the body of a POST to PathJoin.
type JoinRequest struct {
	KubeletVersion string `json:"kubeletVersion,omitempty"`
}

// Taint is a Kubernetes taint that the node registers with.
type Taint struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect"`
}

// JoinResponse is all that a kubelet's TLS bootstrap needs.
type JoinResponse struct {
	// APIServerCA is the PEM bundle that the tenant's API server is verified by.
	APIServerCA string `json:"apiServerCA"`
	// APIServerName is the name in the API server's certificate to verify.
	APIServerName string `json:"apiServerName"`
	// BootstrapToken is a Kubernetes bootstrap token ("abcdef.0123456789abcdef") for this node alone.
	BootstrapToken   string    `json:"bootstrapToken"`
	BootstrapExpires time.Time `json:"bootstrapExpires"`
	// KubeletConfiguration is a kubelet.config.k8s.io/v1beta1 object.
	KubeletConfiguration json.RawMessage   `json:"kubeletConfiguration"`
	Labels               map[string]string `json:"labels,omitempty"`
	Taints               []Taint           `json:"taints,omitempty"`
}

// ErrorCode tells a node what to do about a refusal.
type ErrorCode string

const (
	// CodeRefused covers every reason for which a token or identity is not taken: the box is not told
	// which, so that it can't be used to find out what exists. The broker's log says which.
	CodeRefused ErrorCode = "refused"
	// CodeNameTaken means that another key already holds the node's name.
	CodeNameTaken ErrorCode = "nameTaken"
	// CodeBadRequest means that the request itself is malformed; trying again won't help.
	CodeBadRequest ErrorCode = "badRequest"
	// CodeUnavailable means that something the broker needs (the tenant's API server, say) is away.
	CodeUnavailable ErrorCode = "unavailable"
	// CodeOverloaded means that the broker is at a limit.
	CodeOverloaded ErrorCode = "overloaded"
	// CodeInternal is a fault of the broker's own.
	CodeInternal ErrorCode = "internal"
)

// Retryable tells whether the same request may go through later with nobody doing anything.
func (c ErrorCode) Retryable() bool {
	switch c {
	case CodeUnavailable, CodeOverloaded, CodeInternal:
		return true
	}
	return false
}

// Error is the body of every answer that is not 200.
type Error struct {
	Code    ErrorCode `json:"code"`
	Message string    `json:"message"`
}

// Error gives the message, which says what to do.
func (e *Error) Error() string { return e.Message }

// HTTPStatus is the one mapping of codes to statuses.
func (c ErrorCode) HTTPStatus() int {
	switch c {
	case CodeRefused:
		return 403
	case CodeNameTaken:
		return 409
	case CodeBadRequest:
		return 400
	case CodeUnavailable:
		return 503
	case CodeOverloaded:
		return 429
	}
	return 500
}
