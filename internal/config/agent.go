package config

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
)

// DefaultAgentPath is where the agent looks for its configuration.
const DefaultAgentPath = "/etc/mooring/agent.yaml"

// Agent configures edge-agent. Every field has a default, so an empty file (or none) is a complete
// configuration for a box that has a join bundle.
type Agent struct {
	TypeMeta
	// JoinFile is the JoinBundle to enrol with. Default /etc/mooring/join.yaml. Once the box is enrolled it
	// is not needed any more; one with another token lets a node in again that was removed at the broker.
	JoinFile string `json:"joinFile"`
	// StateDir keeps the node's key and identity. Default /var/lib/mooring, mode 0700.
	StateDir string `json:"stateDir"`
	// Socket is where `edge-agent status` finds the running agent. Default /run/mooring/agent.sock.
	Socket string `json:"socket"`
	// HealthAddress serves /livez, /readyz and /metrics. Default 127.0.0.1:9640; empty turns it off.
	HealthAddress string `json:"healthAddress"`
	// APIAddress is where the node finds its API server. Default 127.0.0.1:6443; loopback only.
	APIAddress string       `json:"apiAddress"`
	Tunnel     AgentTunnel  `json:"tunnel"`
	Node       AgentNode    `json:"node"`
	Kubelet    AgentKubelet `json:"kubelet"`
	Dial       AgentDial    `json:"dial"`
	API        AgentAPI     `json:"api"`
	Log        Log          `json:"log"`
}

// AgentTunnel is the agent's end of the tunnel.
type AgentTunnel struct {
	// Endpoint overrides the join bundle's broker address, host:port. Default empty.
	Endpoint string `json:"endpoint"`
	// Transport is auto (QUIC, else TCP), quic or tcp. Default auto.
	Transport string `json:"transport"`
	// Proxy is the HTTP proxy by which the broker is reached, http://[user:password@]host:port or https://...; then there is TCP
	// only. none: directly, whatever the environment says. Default empty: HTTPS_PROXY and NO_PROXY of the environment.
	Proxy string `json:"proxy"`
	// ProbeInterval is how long a session on TCP lives before QUIC is tried again, with transport auto; doubled each
	// time that it comes to nothing, up to 30 times. Default 1m.
	ProbeInterval Duration `json:"probeInterval"`
	// HeartbeatInterval is how often the broker is asked for a sign of life. Default 25s.
	HeartbeatInterval Duration `json:"heartbeatInterval"`
	// HeartbeatTimeout is how long silence may last before the session is given up. Default 60s.
	HeartbeatTimeout Duration `json:"heartbeatTimeout"`
}

// AgentNode is what the node says of itself.
type AgentNode struct {
	// Name asks for a node name; the token may fix another. Default: the host name.
	Name string `json:"name"`
	// Addresses that the node's kubelet serves on. Default: the source address of the route to the broker.
	Addresses []string `json:"addresses"`
	// Serial is the machine's serial number, by which a claim at the broker knows the box; at most 128
	// characters of printable ASCII. Default: the firmware's (SMBIOS, device tree).
	Serial string `json:"serial"`
	// Console is where a box that waits for approval shows its fingerprint to whoever stands before it.
	// Default /dev/console; empty turns it off.
	Console string `json:"console"`
	// SetClock lets the agent step the system's clock forward when it is behind what the broker's CA vouches
	// for; never backward. Needs CAP_SYS_TIME. Default false.
	SetClock bool `json:"setClock"`
}

// AgentKubelet says how the kubelet is run.
type AgentKubelet struct {
	// Mode is systemd, child, none (only the files), or auto: systemd where it is running, else child.
	Mode string `json:"mode"`
	// Path of the kubelet for mode child. Default /usr/bin/kubelet.
	Path string `json:"path"`
	// Unit for mode systemd. Default kubelet.service.
	Unit string `json:"unit"`
	// RootDir is the kubelet's --root-dir. Default /var/lib/kubelet.
	RootDir string `json:"rootDir"`
	// Port of the kubelet's HTTPS server: the only port of the node's own that the tunnel may dial. Default 10250.
	Port int `json:"port"`
	// ExtraArgs are appended to the kubelet's command line.
	ExtraArgs []string `json:"extraArgs"`
	// Config is laid over the KubeletConfiguration that the broker gives.
	Config map[string]any `json:"config"`
}

// AgentDial bounds what the tunnel may dial beside the kubelet.
type AgentDial struct {
	// Pods permits the addresses of the node's own pods, as its Node object's podCIDRs say. Default true.
	Pods bool `json:"pods"`
	// Services permits the addresses of Services, in the ranges that the broker names; kube-proxy on the node leads them on.
	// Default true.
	Services bool `json:"services"`
	// PodInterfaces begin the names of the interfaces by which the node's pods are reached: what would go out by another is
	// not dialled. Default: those that the usual CNI plugins make.
	PodInterfaces []string `json:"podInterfaces"`
	// ServiceCIDRs are the ranges of Services, whatever the broker names. Default: what the broker names, if it is
	// private and not too wide.
	ServiceCIDRs []string `json:"serviceCIDRs"`
}

// AgentAPI is how pods find the API server.
type AgentAPI struct {
	// Advertise has the agent serve the addresses that the control plane advertises, on the loopback interface. Default true.
	Advertise bool `json:"advertise"`
}

// DefaultAgent returns the configuration of an empty file.
func DefaultAgent() *Agent {
	return &Agent{
		TypeMeta:      TypeMeta{APIVersion, KindAgent},
		JoinFile:      "/etc/mooring/join.yaml",
		StateDir:      "/var/lib/mooring",
		Socket:        "/run/mooring/agent.sock",
		HealthAddress: "127.0.0.1:9640",
		APIAddress:    "127.0.0.1:6443",
		Tunnel: AgentTunnel{
			Transport:         "auto",
			ProbeInterval:     Duration{time.Minute},
			HeartbeatInterval: Duration{25 * time.Second},
			HeartbeatTimeout:  Duration{60 * time.Second},
		},
		Node: AgentNode{Addresses: []string{}, Console: "/dev/console"},
		Kubelet: AgentKubelet{
			Mode: "auto", Path: "/usr/bin/kubelet", Unit: "kubelet.service", RootDir: "/var/lib/kubelet", Port: 10250,
			ExtraArgs: []string{}, Config: map[string]any{},
		},
		Dial: AgentDial{
			Pods: true, Services: true, ServiceCIDRs: []string{},
			PodInterfaces: []string{"cni", "veth", "cali", "cilium", "lxc", "flannel", "kube-bridge", "weave", "antrea", "vxlan", "tunl"},
		},
		API: AgentAPI{Advertise: true},
		Log: Log{"info", "text"},
	}
}

// LoadAgent reads and validates a file. IsAbsent(err) tells a missing file from a bad one; the bad
// one's error is an *Error.
func LoadAgent(path string) (*Agent, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return DecodeAgent(path, data)
}

// DecodeAgent is LoadAgent on bytes; source names them in errors.
func DecodeAgent(source string, data []byte) (*Agent, error) {
	c := DefaultAgent()
	if err := decode(source, data, KindAgent, c, c.validate); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Agent) validate(p *problems) {
	p.check("joinFile", absolute(c.JoinFile))
	p.check("stateDir", absolute(c.StateDir))
	p.check("socket", absolute(c.Socket))
	if c.HealthAddress != "" {
		p.check("healthAddress", listenAddr(c.HealthAddress))
	}
	p.check("apiAddress", loopbackAddr(c.APIAddress))
	if c.Tunnel.Endpoint != "" {
		p.check("tunnel.endpoint", hostPort(c.Tunnel.Endpoint))
	}
	p.check("tunnel.transport", oneOf(c.Tunnel.Transport, "auto", "quic", "tcp"))
	if c.Tunnel.Proxy != "" && c.Tunnel.Proxy != NoProxy {
		_, err := ProxyURL(c.Tunnel.Proxy)
		p.check("tunnel.proxy", err)
		if err == nil && c.Tunnel.Transport == "quic" {
			p.add("tunnel.transport", "want auto or tcp with a proxy: QUIC does not pass through it")
		}
	}
	p.check("tunnel.probeInterval", between(c.Tunnel.ProbeInterval, time.Second, 24*time.Hour))
	validateHeartbeat(p, "tunnel.", c.Tunnel.HeartbeatInterval, c.Tunnel.HeartbeatTimeout)
	if c.Node.Name != "" {
		p.check("node.name", dnsName(c.Node.Name))
	}
	if len(c.Node.Serial) > enrollapi.MaxSerial || strings.ContainsFunc(c.Node.Serial, func(r rune) bool { return r < ' ' || r > '~' }) {
		p.add("node.serial", "want at most %d characters of printable ASCII, got %q", enrollapi.MaxSerial, c.Node.Serial)
	}
	if c.Node.Console != "" {
		p.check("node.console", absolute(c.Node.Console))
	}
	for i, a := range c.Node.Addresses {
		if _, err := netip.ParseAddr(a); err != nil {
			p.add(fmt.Sprintf("node.addresses[%d]", i), "want an IP address, got %q", a)
		}
	}
	for i, s := range c.Dial.ServiceCIDRs {
		if prefix, err := netip.ParsePrefix(s); err != nil || prefix != prefix.Masked() || prefix.Addr().Is4In6() {
			p.add(fmt.Sprintf("dial.serviceCIDRs[%d]", i), "want a prefix with no bits behind it, such as 10.96.0.0/12, got %q", s)
		}
	}
	for i, s := range c.Dial.PodInterfaces {
		if s == "" || len(s) > 15 || strings.ContainsAny(s, " /") || strings.HasPrefix("lo", s) {
			p.add(fmt.Sprintf("dial.podInterfaces[%d]", i), "want the beginning of a name of network interfaces, got %q", s)
		}
	}
	k := c.Kubelet
	validateLog(p, c.Log)
	p.check("kubelet.mode", oneOf(k.Mode, "auto", "systemd", "child", "none"))
	p.check("kubelet.path", absolute(k.Path))
	p.check("kubelet.rootDir", absolute(k.RootDir))
	p.check("kubelet.port", intBetween(k.Port, 1, 65535))
	if !strings.HasSuffix(k.Unit, ".service") {
		p.add("kubelet.unit", `want a unit name that ends in ".service", got %q`, k.Unit)
	}
}

// validateHeartbeat keeps the timeout above two intervals: one lost heartbeat is no outage.
func validateHeartbeat(p *problems, prefix string, interval, timeout Duration) {
	p.check(prefix+"heartbeatInterval", between(interval, time.Second, 10*time.Minute))
	if timeout.Duration < 2*interval.Duration {
		p.add(prefix+"heartbeatTimeout", "want at least twice heartbeatInterval (%s), got %s", interval, timeout)
	}
}
