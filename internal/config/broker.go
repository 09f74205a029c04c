package config

import (
	"fmt"
	"time"
)

// DefaultBrokerPath is where the broker looks for its configuration.
const DefaultBrokerPath = "/etc/mooring/broker.yaml"

// Broker configures the broker. Only front.publicEndpoint has no usable default.
type Broker struct {
	TypeMeta
	// DataDir holds the embedded store, and the audit log. Default /var/lib/mooring-broker, mode 0700.
	DataDir string      `json:"dataDir"`
	Store   BrokerStore `json:"store"`
	// TrustDomain is the first part of every identity. Fixed once the CA is made. Default mooring.local.
	TrustDomain string `json:"trustDomain"`
	// AdminSocket is where the subcommands find the running broker. Default /run/mooring/broker.sock, mode 0600.
	AdminSocket string `json:"adminSocket"`
	// HealthAddress serves /livez, /readyz and /metrics. Default 127.0.0.1:9641; empty turns it off.
	HealthAddress string         `json:"healthAddress"`
	Peer          BrokerPeer     `json:"peer"`
	Front         BrokerFront    `json:"front"`
	Egress        BrokerEgress   `json:"egress"`
	Konnectivity  Konnectivity   `json:"konnectivity"`
	Tunnel        BrokerTunnel   `json:"tunnel"`
	Drain         BrokerDrain    `json:"drain"`
	Identity      BrokerIdentity `json:"identity"`
	Kubelet       BrokerKubelet  `json:"kubelet"`
	Audit         BrokerAudit    `json:"audit"`
	Tracing       BrokerTracing  `json:"tracing"`
	Kamaji        BrokerKamaji   `json:"kamaji"`
	// TenantsDir holds a file NAME.yaml (Tenant) for each tenant that is kept by configuration. It is looked at every 10 s. Default
	// empty: tenants are added by command or by Kamaji's objects alone.
	TenantsDir string `json:"tenantsDir"`
	Log        Log    `json:"log"`
}

// BrokerFront is the one public port.
type BrokerFront struct {
	// Listen is used for TCP and UDP alike. Default :8443.
	Listen string `json:"listen"`
	// PublicEndpoint is the host:port by which edge sites reach Listen. Join bundles carry it. Required.
	PublicEndpoint string `json:"publicEndpoint"`
	// Domain is the DNS zone in which tenants' API servers have their names: acme's is reached as acme.DOMAIN, by SNI, on Listen
	// (TCP). Default empty: none has such a name.
	Domain string `json:"domain"`
	// Limits bound what strangers may cost.
	Limits BrokerLimits `json:"limits"`
	// Passthrough bounds the connections that are passed on to tenants' API servers.
	Passthrough BrokerPassthrough `json:"passthrough"`
	// ProxyProtocol is about load balancers that tell whose connection they pass on.
	ProxyProtocol BrokerProxyProtocol `json:"proxyProtocol"`
}

// BrokerPassthrough bounds the connections that are passed on by SNI. Who makes them shows himself to the API server and
// never to the broker, so they are bounded as long as they live. What is over a bound is closed at once.
type BrokerPassthrough struct {
	// MaxConnections at one time. Default 16384: each has two sockets and some 15 KB, in all 32,768 files and 250 MB beside the kernel's buffers.
	MaxConnections int `json:"maxConnections"`
	// MaxPerTenant at one time. Default 2048: a thousand nodes that are let out directly, of which each keeps one or two open;
	// and it takes eight tenants to shut others out.
	MaxPerTenant int `json:"maxPerTenant"`
	// MaxPerSource at one time, of all tenants. Default 512: hundreds of nodes behind one NAT, and four sources to use a tenant up.
	MaxPerSource int `json:"maxPerSource"`
}

// BrokerProxyProtocol is HAProxy's PROXY protocol, on TCP.
type BrokerProxyProtocol struct {
	// Trusted are the networks (CIDR) of the balancers before Listen. A connection from there must begin with a header of version
	// 2 or 1, and is counted, logged and bounded as the client's that the header names. From elsewhere no header is read. Default none.
	Trusted []string `json:"trusted"`
	// ToUpstreams has tenants that are added from now on be dialled with a header of version 2 that names the client. For API servers
	// behind balancers of their own that want it: kube-apiserver itself does not take it. Default false.
	ToUpstreams bool `json:"toUpstreams"`
}

// BrokerLimits bound the connections of the public port, TCP and UDP together, whose peers have not shown who they
// are: a node's session was not let in yet, a request for enrolment not answered. What is over a bound is closed at
// once. A source is an IPv4 address or an IPv6 /64: a site behind NAT, or a load balancer that hides its clients.
type BrokerLimits struct {
	// HelloTimeout is how long a connection may take to say what it wants; the TLS handshake has as long again.
	// Default 10s: three retransmissions on a bad link.
	HelloTimeout Duration `json:"helloTimeout"`
	// MaxUnauthenticated at one time. Default 2048: a core that has something else to do brings so many through their handshakes
	// in 3 s, long before these time out at nodes and the work is for nothing; and the memory that they can take stays within some 125 MB.
	MaxUnauthenticated int `json:"maxUnauthenticated"`
	// MaxUnauthenticatedPerSource at one time. Default 512: hundreds of nodes behind one NAT come back at once without
	// one being turned away, and it takes four sources to shut others out.
	MaxUnauthenticatedPerSource int `json:"maxUnauthenticatedPerSource"`
	// AcceptRate is how many connections a second are taken up; four seconds' worth may come at once. Default 1000:
	// 10,000 nodes that come back at once are in after half a minute, for less than a core of handshakes (0.7 ms each).
	AcceptRate int `json:"acceptRate"`
	// AcceptRatePerSource is the same for one source. Default 500: a site of 2,000 nodes is let in at
	// once, 10,000 behind one address in a minute, and one source leaves half for others.
	AcceptRatePerSource int `json:"acceptRatePerSource"`
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
	// MaxUnauthenticated is how many connections whose peer has not shown a tenant's certificate there may be at one
	// time, a quarter of them from one address. Default 2048: an API server makes one for each request.
	MaxUnauthenticated int `json:"maxUnauthenticated"`
	// AcceptRatePerSource is how many connections a second one address may make; a second's worth may come at once. Default
	// 500: that is half a core of handshakes, so one tenant's API server that goes wild leaves the rest to the others. Set
	// it to the sum of all where the API servers of many tenants come from one address.
	AcceptRatePerSource int `json:"acceptRatePerSource"`
	// MaxPending is how many dials of one tenant may wait for an answer. Default 500: a tenant
	// half of whose thousand nodes are cut off at one moment, and are asked for at once, still gets an answer for each.
	MaxPending int `json:"maxPending"`
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

// BrokerDrain says how a broker stops (SIGTERM).
type BrokerDrain struct {
	// Spread is the time within which nodes are to move to other brokers, each at a moment of its own; until it is over this one
	// takes streams as ever. 0s: there is no other broker, or none that a node could reach; then streams are taken to the end.
	// Default 0s.
	Spread Duration `json:"spread"`
	// Grace bounds the whole: what API servers have open may go on for so long. A broker on which nothing is open stops before.
	// 0s: it stops at once. Default 10s.
	Grace Duration `json:"grace"`
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

// BrokerTracing says where OpenTelemetry spans of API servers' dials go.
type BrokerTracing struct {
	// Endpoint is a collector's OTLP/gRPC endpoint: http://host:port, or https://host:port for TLS, verified by the
	// system's roots. Default empty: no spans.
	Endpoint string `json:"endpoint"`
	// SampleRatio is the share of dials that spans are made of, from 0 to 1. A caller whose traceparent says that it
	// records nothing is followed. Default 1.
	SampleRatio float64 `json:"sampleRatio"`
}

// DefaultBroker returns the configuration of an empty file; it lacks front.publicEndpoint.
func DefaultBroker() *Broker {
	return &Broker{
		TypeMeta:      TypeMeta{APIVersion, KindBroker},
		DataDir:       "/var/lib/mooring-broker",
		TrustDomain:   "mooring.local",
		AdminSocket:   "/run/mooring/broker.sock",
		HealthAddress: "127.0.0.1:9641",
		Front: BrokerFront{Listen: ":8443", Limits: BrokerLimits{
			HelloTimeout:       Duration{10 * time.Second},
			MaxUnauthenticated: 2048, MaxUnauthenticatedPerSource: 512,
			AcceptRate: 1000, AcceptRatePerSource: 500,
		},
			Passthrough:   BrokerPassthrough{MaxConnections: 16384, MaxPerTenant: 2048, MaxPerSource: 512},
			ProxyProtocol: BrokerProxyProtocol{Trusted: []string{}},
		},
		Egress: BrokerEgress{Listen: ":8132", PublicEndpoint: "https://127.0.0.1:8132", MaxUnauthenticated: 2048, AcceptRatePerSource: 500, MaxPending: 500},
		Tunnel: BrokerTunnel{
			HeartbeatInterval: Duration{25 * time.Second},
			HeartbeatTimeout:  Duration{60 * time.Second},
			MaxStreams:        1000,
			MaxPending:        100,
		},
		Konnectivity: DefaultKonnectivity(),
		Drain:        BrokerDrain{Grace: Duration{10 * time.Second}},
		Identity:     BrokerIdentity{NodeCertificateTTL: Duration{7 * 24 * time.Hour}, ExpiredGrace: Duration{87600 * time.Hour}},
		Tracing:      BrokerTracing{SampleRatio: 1},
		Kamaji:       defaultKamaji(),
		Kubelet:      BrokerKubelet{Config: map[string]any{}},
		Log:          Log{"info", "text"},
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
	c.Front.Limits.validate(p)
	c.Front.validateTenants(p)
	p.check("egress.maxUnauthenticated", intBetween(c.Egress.MaxUnauthenticated, 4, 1_000_000))
	p.check("egress.acceptRatePerSource", intBetween(c.Egress.AcceptRatePerSource, 1, 1_000_000))
	p.check("egress.maxPending", intBetween(c.Egress.MaxPending, 1, 1_000_000))
	p.check("egress.listen", listenAddr(c.Egress.Listen))
	p.check("egress.publicEndpoint", httpsURL(c.Egress.PublicEndpoint))
	if c.Egress.HostsDir != "" {
		p.check("egress.hostsDir", absolute(c.Egress.HostsDir))
	}
	if c.TenantsDir != "" {
		p.check("tenantsDir", absolute(c.TenantsDir))
	}
	c.Konnectivity.validate(p, c.Front.Domain)
	c.Store.validate(p)
	c.Peer.validate(p, len(c.Store.Etcd.Endpoints) > 0)
	validateHeartbeat(p, "tunnel.", c.Tunnel.HeartbeatInterval, c.Tunnel.HeartbeatTimeout)
	p.check("tunnel.maxStreams", intBetween(c.Tunnel.MaxStreams, 1, 100_000))
	p.check("tunnel.maxPending", intBetween(c.Tunnel.MaxPending, 1, 100_000))
	p.check("drain.spread", between(c.Drain.Spread, 0, time.Hour))
	p.check("drain.grace", between(c.Drain.Grace, 0, 24*time.Hour))
	if c.Drain.Spread.Duration > 0 && c.Drain.Grace.Duration <= c.Drain.Spread.Duration {
		p.add("drain.grace", "want more than drain.spread (%s), got %s", c.Drain.Spread, c.Drain.Grace)
	}
	p.check("identity.nodeCertificateTTL", between(c.Identity.NodeCertificateTTL, 10*time.Minute, 397*24*time.Hour))
	if c.Audit.Path != "" && c.Audit.Path != "-" {
		p.check("audit.path", absolute(c.Audit.Path))
	}
	if c.Tracing.Endpoint != "" {
		p.check("tracing.endpoint", collectorURL(c.Tracing.Endpoint))
	}
	if r := c.Tracing.SampleRatio; r < 0 || r > 1 {
		p.add("tracing.sampleRatio", "want a number from 0 to 1, got %v", r)
	}
	p.check("identity.expiredGrace", between(c.Identity.ExpiredGrace, 0, 100*365*24*time.Hour))
	c.Kamaji.validate(p)
	validateLog(p, c.Log)
}

func (l BrokerLimits) validate(p *problems) {
	const path = "front.limits."
	p.check(path+"helloTimeout", between(l.HelloTimeout, time.Second, 2*time.Minute))
	p.check(path+"maxUnauthenticated", intBetween(l.MaxUnauthenticated, 1, 1_000_000))
	p.check(path+"maxUnauthenticatedPerSource", intBetween(l.MaxUnauthenticatedPerSource, 1, 1_000_000))
	p.check(path+"acceptRate", intBetween(l.AcceptRate, 1, 1_000_000))
	p.check(path+"acceptRatePerSource", intBetween(l.AcceptRatePerSource, 1, 1_000_000))
}

// validateTenants checks what the way to tenants' API servers is about.
func (f BrokerFront) validateTenants(p *problems) {
	if f.Domain != "" {
		p.check("front.domain", dnsName(f.Domain))
	}
	const path = "front.passthrough."
	p.check(path+"maxConnections", intBetween(f.Passthrough.MaxConnections, 1, 1_000_000))
	p.check(path+"maxPerTenant", intBetween(f.Passthrough.MaxPerTenant, 1, 1_000_000))
	p.check(path+"maxPerSource", intBetween(f.Passthrough.MaxPerSource, 1, 1_000_000))
	for i, s := range f.ProxyProtocol.Trusted {
		p.check(fmt.Sprintf("front.proxyProtocol.trusted[%d]", i), balancers(s))
	}
}
