package wire

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// Bounds of a network.
const (
	MaxServiceCIDRs   = 16
	MaxAPIServers     = 16
	maxNetworkPayload = 8 << 10
)

// Network is the payload of FrameNetwork, as JSON: the broker tells the agent of its tenant's cluster what it has
// learned from the API server. Each one replaces the one before. It grants nothing: what of it is taken is the
// agent's to decide. Fields that are not known are ignored.
type Network struct {
	// ServiceCIDRs are the ranges that the addresses of Services are taken from, at most MaxServiceCIDRs.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs,omitempty"`
	// APIServers are where the control plane says that pods find it, the endpoints of default/kubernetes; at most
	// MaxAPIServers.
	APIServers []netip.AddrPort `json:"apiServers,omitempty"`
}

// Validate checks the bounds, and that each value is in the one form that it has.
func (n Network) Validate() error {
	if len(n.ServiceCIDRs) > MaxServiceCIDRs {
		return fmt.Errorf("network: %d service CIDRs, at most %d", len(n.ServiceCIDRs), MaxServiceCIDRs)
	}
	if len(n.APIServers) > MaxAPIServers {
		return fmt.Errorf("network: %d API servers, at most %d", len(n.APIServers), MaxAPIServers)
	}
	for _, p := range n.ServiceCIDRs {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("network: service CIDR %.80q: want a prefix with no bits behind it", p.String())
		}
	}
	for _, a := range n.APIServers {
		if !a.IsValid() || a.Port() == 0 || a.Addr().Is4In6() || a.Addr().Zone() != "" {
			return fmt.Errorf("network: API server %.80q: want ip:port", a.String())
		}
	}
	return nil
}

// AppendNetwork appends a whole frame.
func AppendNetwork(b []byte, n Network) ([]byte, error) {
	if err := n.Validate(); err != nil {
		return b, err
	}
	p, err := json.Marshal(n)
	if err != nil {
		return b, fmt.Errorf("network: %w", err)
	}
	return AppendFrame(b, Frame{Type: FrameNetwork, Payload: p})
}

// ParseNetwork parses the payload of a network.
func ParseNetwork(p []byte) (Network, error) {
	var n Network
	err := parseJSON("network", p, maxNetworkPayload, &n)
	if err == nil {
		err = malformed(n.Validate())
	}
	return n, err
}
