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
	// PathRenew gives an enrolled node a new certificate for the key that it is pinned to. Needs the node's client
	// certificate, which may have run out or be of a CA that is no longer trusted: the key is what counts.
	PathRenew = "/v1/renew"
)

const (
	// MaxBody limits a request's body, in bytes.
	MaxBody = 64 << 10
	// MaxAnswer limits an answer's body, in bytes.
	MaxAnswer = 1 << 20
	// MaxSerial limits EnrolRequest.Serial, in bytes; a node sends a longer one as empty.
	MaxSerial = 128
)

// EnrolRequest is the body of a POST to PathEnrol.
type EnrolRequest struct {
	// Token is the enrolment token, "id.secret".
	Token string `json:"token"`
	// Tenant is the tenant that the box was told it belongs to; it must be the token's. Empty with a token of no
	// tenant: a claim or an operator says where the box belongs then.
	Tenant string `json:"tenant"`
	// CSR is a PEM certificate request. Only its public key is used: the name is the token's to give.
	CSR string `json:"csr"`
	// Hostname names the node where the token does not fix a name.
	Hostname string `json:"hostname"`
	// Serial is the box's serial number as its firmware (SMBIOS, device tree) gives it, at most MaxSerial bytes; empty
	// if it has none. It is the box's word: it finds a claim, and proves nothing.
	Serial string `json:"serial,omitempty"`
	// Version of the agent, for the operator's eyes.
	Version string `json:"version,omitempty"`
}

// RenewRequest is the body of a POST to PathRenew. The answer is an EnrolResponse.
type RenewRequest struct {
	// CSR is a PEM certificate request, of the key in the client certificate.
	CSR string `json:"csr"`
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
	// Time is the broker's clock when it answered: a box with no clock of its own starts from it.
	Time time.Time `json:"time,omitzero"`
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
	// CodePending means that the box was noted and an operator has to decide on it. The node asks again about each
	// Error.RetryAfter seconds, with the same key; Error.Message holds that key's fingerprint.
	CodePending ErrorCode = "pending"
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

// Retryable tells whether the same request may go through later with nobody doing anything. CodePending is not: it
// waits for a person.
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
	// RetryAfter is how long to wait before the next try, in seconds; 0 = the node's own choice.
	RetryAfter int `json:"retryAfter,omitempty"`
}

// Error gives the message, which says what to do.
func (e *Error) Error() string { return e.Message }

// HTTPStatus is the one mapping of codes to statuses.
func (c ErrorCode) HTTPStatus() int {
	switch c {
	case CodePending:
		return 202
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
