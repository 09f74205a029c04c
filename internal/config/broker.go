package config

import "time"

// DefaultBrokerPath is where the broker looks for its configuration.
const DefaultBrokerPath = "/etc/mooring/broker.yaml"

// Broker configures the broker. Only front.publicEndpoint has no usable default.
type Broker struct {
	TypeMeta
	// DataDir holds the embedded store. Default /var/lib/mooring-broker, mode 0700.
	DataDir string `json:"dataDir"`
	// TrustDomain is the first part of every identity. Fixed once the CA is made. Default mooring.local.
	TrustDomain string `json:"trustDomain"`
	// AdminSocket is where the subcommands find the running broker. Default /run/mooring/broker.sock, mode 0600.
	AdminSocket string `json:"adminSocket"`
	// HealthAddress serves /livez, /readyz and /metrics. Default 127.0.0.1:9641; empty turns it off.
	HealthAddress string         `json:"healthAddress"`
	Front         BrokerFront    `json:"front"`
	Egress        BrokerEgress   `json:"egress"`
	Tunnel        BrokerTunnel   `json:"tunnel"`
	Identity      BrokerIdentity `json:"identity"`
	Kubelet       BrokerKubelet  `json:"kubelet"`
	Audit         BrokerAudit    `json:"audit"`
	Log           Log            `json:"log"`
}

// BrokerFront is the one public port.
type BrokerFront struct {
	// Listen is used for TCP and UDP alike. Default :8443.
	Listen string `json:"listen"`
	// PublicEndpoint is the host:port by which edge sites reach Listen. Join bundles carry it. Required.
	PublicEndpoint string `json:"publicEndpoint"`
}

// BrokerEgress is what API servers call.
type BrokerEgress struct {
	// Listen takes HTTP CONNECT over mTLS. Default :8132.
	Listen string `json:"listen"`
	// PublicEndpoint is the URL by which API servers reach Listen. Default https://127.0.0.1:8132.
	PublicEndpoint string `json:"publicEndpoint"`
	// HostsDir is where a hosts file with the nodes' names is kept for each tenant, for its API servers'
	// /etc/hosts: kube-apiserver looks a node's name up before it serves nodes/NAME/proxy. Default empty: none.
	HostsDir string `json:"hostsDir"`
}

// BrokerTunnel bounds the sessions of nodes.
type BrokerTunnel struct {
	// HeartbeatInterval is how often a node is expected to show life. Default 25s.
	HeartbeatInterval Duration `json:"heartbeatInterval"`
	// HeartbeatTimeout ends a session that has been silent for so long. Default 60s.
	HeartbeatTimeout Duration `json:"heartbeatTimeout"`
	// MaxStreams is how many streams a session may hold open. Default 1000.
	MaxStreams int `json:"maxStreams"`
	// MaxPending is how many of a session's dials may wait for an answer. Default 100.
	MaxPending int `json:"maxPending"`
}

// BrokerIdentity says how identities are issued.
type BrokerIdentity struct {
	// NodeCertificateTTL is the life of a node's certificate. Default 168h.
	NodeCertificateTTL Duration `json:"nodeCertificateTTL"`
	// ExpiredGrace is for how long after its certificate ran out a node is still renewed by its key, which was pinned
	// when it enrolled. 0s: not at all. Default 87600h, ten years.
	ExpiredGrace Duration `json:"expiredGrace"`
}

// BrokerKubelet says what kubelets are told.
type BrokerKubelet struct {
	// Config is laid over the tenant's kubelet-config ConfigMap.
	Config map[string]any `json:"config"`
}

// BrokerAudit says where the audit log goes.
type BrokerAudit struct {
	// Path of the file that gets one line of JSON for each event; - = standard output. Default: audit.log in
	// dataDir. It may be rotated by renaming at any time.
	Path string `json:"path"`
}

// DefaultBroker returns the configuration of an empty file; it lacks front.publicEndpoint.
func DefaultBroker() *Broker {
	return &Broker{
		TypeMeta:      TypeMeta{APIVersion, KindBroker},
		DataDir:       "/var/lib/mooring-broker",
		TrustDomain:   "mooring.local",
		AdminSocket:   "/run/mooring/broker.sock",
		HealthAddress: "127.0.0.1:9641",
		Front:         BrokerFront{Listen: ":8443"},
		Egress:        BrokerEgress{Listen: ":8132", PublicEndpoint: "https://127.0.0.1:8132"},
		Tunnel: BrokerTunnel{
			HeartbeatInterval: Duration{25 * time.Second},
			HeartbeatTimeout:  Duration{60 * time.Second},
			MaxStreams:        1000,
			MaxPending:        100,
		},
		Identity: BrokerIdentity{NodeCertificateTTL: Duration{7 * 24 * time.Hour}, ExpiredGrace: Duration{87600 * time.Hour}},
		Kubelet:  BrokerKubelet{Config: map[string]any{}},
		Log:      Log{"info", "text"},
	}
}

// LoadBroker reads and validates a file. IsAbsent(err) tells a missing file from a bad one; the bad
// one's error is an *Error.
func LoadBroker(path string) (*Broker, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return DecodeBroker(path, data)
}

// DecodeBroker is LoadBroker on bytes; source names them in errors.
func DecodeBroker(source string, data []byte) (*Broker, error) {
	c := DefaultBroker()
	if err := decode(source, data, KindBroker, c, c.validate); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Broker) validate(p *problems) {
	p.check("dataDir", absolute(c.DataDir))
	p.check("trustDomain", trustDomain(c.TrustDomain))
	p.check("adminSocket", absolute(c.AdminSocket))
	if c.HealthAddress != "" {
		p.check("healthAddress", listenAddr(c.HealthAddress))
	}
	p.check("front.listen", listenAddr(c.Front.Listen))
	if c.Front.PublicEndpoint == "" {
		p.add("front.publicEndpoint", "required: the host:port by which edge sites reach this broker")
	} else {
		p.check("front.publicEndpoint", certifiable(c.Front.PublicEndpoint))
	}
	p.check("egress.listen", listenAddr(c.Egress.Listen))
	p.check("egress.publicEndpoint", httpsURL(c.Egress.PublicEndpoint))
	if c.Egress.HostsDir != "" {
		p.check("egress.hostsDir", absolute(c.Egress.HostsDir))
	}
	validateHeartbeat(p, "tunnel.", c.Tunnel.HeartbeatInterval, c.Tunnel.HeartbeatTimeout)
	p.check("tunnel.maxStreams", intBetween(c.Tunnel.MaxStreams, 1, 100_000))
	p.check("tunnel.maxPending", intBetween(c.Tunnel.MaxPending, 1, 100_000))
	p.check("identity.nodeCertificateTTL", between(c.Identity.NodeCertificateTTL, 10*time.Minute, 397*24*time.Hour))
	if c.Audit.Path != "" && c.Audit.Path != "-" {
		p.check("audit.path", absolute(c.Audit.Path))
	}
	p.check("identity.expiredGrace", between(c.Identity.ExpiredGrace, 0, 100*365*24*time.Hour))
	validateLog(p, c.Log)
}
