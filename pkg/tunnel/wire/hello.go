package wire

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// Bounds of a hello.
const (
	MaxFeatures     = 64
	MaxAddresses    = 64
	maxNameLen      = 253
	maxVersionLen   = 128
	maxFeatureLen   = 64
	maxHelloPayload = 32 << 10
)

// Hello is the first frame in both directions of the control stream, as JSON.
// Fields that are not known are ignored. Nothing in it is an identity: that is
// only what the certificate says.
type Hello struct {
	// Version is the software's version, for people; the protocol's is in ALPN.
	Version string `json:"version"`
	// Features are the names of what the sender can do beyond the first protocol.
	Features []string `json:"features,omitempty"`
	// Node is the name that the node goes by; the broker goes by its certificate.
	Node string `json:"node,omitempty"`
	// Addresses are the node's own, as it sees them.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Generation rises with each session of one identity: two that count apart are two boxes.
	Generation uint64 `json:"generation,omitempty"`
	// KubeletPort is where the node's kubelet listens; 0 = not said.
	KubeletPort uint16 `json:"kubeletPort,omitempty"`
}

// Validate checks the bounds.
func (h Hello) Validate() error {
	switch {
	case len(h.Version) > maxVersionLen:
		return fmt.Errorf("hello: version of %d bytes, at most %d", len(h.Version), maxVersionLen)
	case len(h.Node) > maxNameLen:
		return fmt.Errorf("hello: node name of %d bytes, at most %d", len(h.Node), maxNameLen)
	case len(h.Features) > MaxFeatures:
		return fmt.Errorf("hello: %d features, at most %d", len(h.Features), MaxFeatures)
	case len(h.Addresses) > MaxAddresses:
		return fmt.Errorf("hello: %d addresses, at most %d", len(h.Addresses), MaxAddresses)
	}
	for _, f := range h.Features {
		if f == "" || len(f) > maxFeatureLen {
			return fmt.Errorf("hello: feature %.80q: 1 to %d bytes", f, maxFeatureLen)
		}
	}
	for _, a := range h.Addresses {
		if !a.IsValid() || a.Zone() != "" {
			return fmt.Errorf("hello: address %.80q: want an IP address without a zone", a.String())
		}
	}
	return nil
}

// AppendHello appends a whole frame.
func AppendHello(b []byte, h Hello) ([]byte, error) {
	if err := h.Validate(); err != nil {
		return b, err
	}
	p, err := json.Marshal(h)
	if err != nil {
		return b, fmt.Errorf("hello: %w", err)
	}
	if len(p) > maxHelloPayload {
		return b, fmt.Errorf("hello: %d bytes, at most %d", len(p), maxHelloPayload)
	}
	return AppendFrame(b, Frame{Type: FrameHello, Payload: p})
}

// ParseHello parses the payload of a hello.
func ParseHello(p []byte) (Hello, error) {
	if len(p) > maxHelloPayload {
		return Hello{}, fmt.Errorf("hello: %w: %d bytes, at most %d", ErrMalformed, len(p), maxHelloPayload)
	}
	var h Hello
	if err := json.Unmarshal(p, &h); err != nil {
		return Hello{}, fmt.Errorf("%w: hello: %w", ErrMalformed, err)
	}
	if err := h.Validate(); err != nil {
		return Hello{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return h, nil
}
