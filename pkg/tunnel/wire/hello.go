package wire

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
)

// Bounds of a hello.
const (
	MaxFeatures     = 64
	MaxAddresses    = 64
	MaxAncestors    = 8
	InstanceLen     = 16
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
	// Instance names the life of the box that this session begins: new and random for each session that
	// was accepted, InstanceLen digits of lower case hex, on the node's disk before it is sent. It is used
	// again until a session with it was accepted. Empty: the sender keeps no lineage.
	Instance string `json:"instance,omitempty"`
	// Ancestors are the instances before, newest first, at most MaxAncestors, as the node's disk has them.
	// Two boxes whose lines part are two boxes with one disk's past: a clone.
	Ancestors []string `json:"ancestors,omitempty"`
	// Volatile says that Instance could not be put on disk: the line may not go on from it.
	Volatile bool `json:"volatile,omitempty"`
	// Handover says that the box still has an older session, and moves to this one: the older opens no more
	// streams, but those that it has go on.
	Handover bool `json:"handover,omitempty"`
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
	if err := h.validateLineage(); err != nil {
		return err
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

// validateLineage checks Instance and Ancestors. None may come twice: a line does not cross itself.
func (h Hello) validateLineage() error {
	switch {
	case h.Instance != "" && !validInstance(h.Instance):
		return fmt.Errorf("hello: instance %.80q: want %d digits of lower case hex", h.Instance, InstanceLen)
	case h.Instance == "" && len(h.Ancestors) > 0:
		return fmt.Errorf("hello: %d ancestors of no instance", len(h.Ancestors))
	case len(h.Ancestors) > MaxAncestors:
		return fmt.Errorf("hello: %d ancestors, at most %d", len(h.Ancestors), MaxAncestors)
	}
	for i, a := range h.Ancestors {
		if !validInstance(a) {
			return fmt.Errorf("hello: ancestor %.80q: want %d digits of lower case hex", a, InstanceLen)
		}
		if a == h.Instance || slices.Contains(h.Ancestors[:i], a) {
			return fmt.Errorf("hello: instance %s comes twice", a)
		}
	}
	return nil
}

func validInstance(s string) bool {
	if len(s) != InstanceLen {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
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
