package agent

import (
	"net/netip"
	"time"

	"github.com/mooring-edge/mooring/internal/version"
	"github.com/mooring-edge/mooring/pkg/health"
)

// Status is what `edge-agent status` shows.
type Status struct {
	Version string `json:"version"`
	Ready   bool   `json:"ready"`
	// Summary is the state in one line.
	Summary string `json:"summary"`
	// Fingerprint is of the node's key, by which an operator knows a box that waits for approval. Empty: there
	// is no key yet.
	Fingerprint string `json:"fingerprint,omitempty"`
	// Serial is the machine's serial number; empty if its firmware has none.
	Serial     string             `json:"serial,omitempty"`
	Identity   *IdentityStatus    `json:"identity,omitempty"` // absent: not enrolled
	Tunnel     TunnelStatus       `json:"tunnel"`
	Kubelet    KubeletStatus      `json:"kubelet"`
	Conditions []health.Condition `json:"conditions"`
}

// IdentityStatus is who the node is.
type IdentityStatus struct {
	Tenant             string    `json:"tenant"`
	Node               string    `json:"node"`
	SPIFFE             string    `json:"spiffe"`
	Fingerprint        string    `json:"fingerprint"` // of the node's key
	CertificateExpires time.Time `json:"certificateExpires"`
}

// TunnelStatus is how the node is connected.
type TunnelStatus struct {
	Connected bool         `json:"connected"`
	Endpoint  string       `json:"endpoint,omitempty"`
	Transport string       `json:"transport,omitempty"`
	Remote    string       `json:"remote,omitempty"`
	RTT       string       `json:"rtt,omitempty"`
	Since     *time.Time   `json:"since,omitempty"`
	Streams   int          `json:"streams"`
	BytesIn   uint64       `json:"bytesIn"`
	BytesOut  uint64       `json:"bytesOut"`
	Addresses []netip.Addr `json:"addresses,omitempty"` // that the node attests as its own
}

// KubeletStatus is how the kubelet is.
type KubeletStatus struct {
	Mode    string     `json:"mode"`
	Running bool       `json:"running"`
	PID     int        `json:"pid,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
	Message string     `json:"message,omitempty"`
}

// Status tells how things are.
func (a *Agent) Status() *Status {
	s := &Status{
		Version: version.Version, Ready: len(a.health.NotReady()) == 0, Summary: a.health.Line(),
		Tunnel: TunnelStatus{Endpoint: a.endpoint()}, Kubelet: KubeletStatus{Mode: kubeletMode(a.cfg)}, Conditions: a.health.Conditions(),
	}
	s.Serial = a.serial
	s.Fingerprint, _ = a.joiner.Fingerprint()
	if id := a.identity.Load(); id != nil {
		s.Identity = &IdentityStatus{
			Tenant: id.Tenant, Node: id.Node, SPIFFE: id.SPIFFE().String(), Fingerprint: id.Fingerprint(), CertificateExpires: id.NotAfter(),
		}
	}
	if l := a.addresses.Load(); l != nil {
		s.Tunnel.Addresses = *l
	}
	if sess := a.session.Load(); sess != nil {
		st := sess.Stats()
		s.Tunnel.Connected, s.Tunnel.Transport, s.Tunnel.Remote = true, string(sess.Transport()), sess.RemoteAddr().String()
		s.Tunnel.Since, s.Tunnel.Streams, s.Tunnel.BytesIn, s.Tunnel.BytesOut = &st.Since, st.OpenStreams, st.BytesIn, st.BytesOut
		if st.RTT > 0 {
			s.Tunnel.RTT = st.RTT.Round(10 * time.Microsecond).String()
		}
	}
	if k := a.kubelet.Load(); k != nil {
		s.Kubelet.Running, s.Kubelet.PID, s.Kubelet.Message = k.Running, k.PID, k.Message
		if !k.Since.IsZero() {
			s.Kubelet.Since = &k.Since
		}
	}
	return s
}
