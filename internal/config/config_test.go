package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const head = "apiVersion: mooring.dev/v1alpha1\nkind: "

func TestEmptyDocumentsAreTheDefaults(t *testing.T) {
	a, err := DecodeAgent("a", []byte(head+"AgentConfiguration\n"))
	if err != nil || !reflect.DeepEqual(a, DefaultAgent()) {
		t.Errorf("agent = %+v, %v", a, err)
	}
	b, err := DecodeBroker("b", []byte(head+"BrokerConfiguration\nfront: {publicEndpoint: 'edge.example:443'}\n"))
	want := DefaultBroker()
	want.Front.PublicEndpoint = "edge.example:443"
	if err != nil || !reflect.DeepEqual(b, want) {
		t.Errorf("broker = %+v, %v", b, err)
	}
}

// What print-defaults shows must be a file that loads.
func TestDefaultsRoundTrip(t *testing.T) {
	y, err := Marshal(DefaultAgent())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeAgent("defaults", y); err != nil || !reflect.DeepEqual(got, DefaultAgent()) {
		t.Errorf("agent: %+v, %v\n%s", got, err, y)
	}
	b := DefaultBroker()
	b.Front.PublicEndpoint = "edge.example:443"
	if y, err = Marshal(b); err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeBroker("defaults", y); err != nil || !reflect.DeepEqual(got, b) {
		t.Errorf("broker: %+v, %v\n%s", got, err, y)
	}
}

func TestEveryProblemAtOnce(t *testing.T) {
	_, err := DecodeAgent("agent.yaml", []byte(head+`AgentConfiguration
joinfile: /x
stateDir: relative
apiAddress: 10.0.0.1:6443
healthAddress: [1]
tunnel: {transport: udp, heartbeatInterval: 25, heartbeatTimeout: 10s, color: red}
node: {name: Bad_Name, addresses: [192.168.1.10, nonsense], serial: "ä", console: tty}
kubelet: {port: 1.5, extraArgs: x, unit: kubelet}
log: {level: loud}
`))
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("err = %v", err)
	}
	got := map[string]string{}
	for _, p := range e.Problems {
		got[p.Path] = p.Message
	}
	for path, part := range map[string]string{
		"joinfile":                 `did you mean "joinFile"`,
		"stateDir":                 "absolute",
		"apiAddress":               "loopback",
		"healthAddress":            "want a string",
		"tunnel.transport":         "auto, quic, tcp",
		"tunnel.heartbeatInterval": "duration",
		"tunnel.heartbeatTimeout":  "twice",
		"tunnel.color":             "unknown key",
		"node.name":                "DNS name",
		"node.addresses[1]":        "nonsense",
		"node.serial":              "printable ASCII",
		"node.console":             "absolute",
		"kubelet.port":             "whole number",
		"kubelet.extraArgs":        "want a list",
		"kubelet.unit":             ".service",
		"log.level":                "debug, info",
	} {
		if !strings.Contains(got[path], part) {
			t.Errorf("%s: %q lacks %q", path, got[path], part)
		}
		delete(got, path)
	}
	if len(got) > 0 {
		t.Errorf("unexpected problems: %v", got)
	}
	if !strings.HasPrefix(err.Error(), "agent.yaml: 16 problems\n") {
		t.Errorf("the first line should name the file and the count:\n%v", err)
	}
}

func TestRefusedDocuments(t *testing.T) {
	for name, c := range map[string]struct{ doc, want string }{
		"empty":         {"", "empty"},
		"not a map":     {"[1, 2]", "empty"},
		"not YAML":      {"a: [", "not valid YAML"},
		"duplicate key": {head + "AgentConfiguration\nstateDir: /a\nstateDir: /b\n", "stateDir"},
		"wrong kind":    {head + "BrokerConfiguration\nfront: {listen: ':1'}\n", `want "AgentConfiguration", got "BrokerConfiguration"`},
		"wrong version": {"apiVersion: mooring.dev/v2\nkind: AgentConfiguration\n", `want "mooring.dev/v1alpha1"`},
		"too large":     {"# " + strings.Repeat("x", maxFile), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			c2, err := DecodeAgent("f", []byte(c.doc))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("= %v, %v; want an error with %q", c2, err, c.want)
			}
			if name == "wrong kind" && strings.Contains(err.Error(), "front") {
				t.Errorf("the other kind's keys are noise: %v", err)
			}
		})
	}
}

func TestNullKeepsTheDefault(t *testing.T) {
	c, err := DecodeAgent("f", []byte(head+"AgentConfiguration\nstateDir:\ntunnel:\nkubelet: {config: null}\n"))
	if err != nil || !reflect.DeepEqual(c, DefaultAgent()) {
		t.Fatalf("= %+v, %v", c, err)
	}
}

func TestBrokerValues(t *testing.T) {
	base := head + "BrokerConfiguration\n"
	for _, host := range []string{"Edge.Example", "192.0.2.1", "[2001:db8::1]"} {
		doc := fmt.Sprintf("front: {publicEndpoint: '%s:443'}\negress: {publicEndpoint: 'https://%s:1'}\n", host, host)
		if _, err := DecodeBroker("f", []byte(base+doc)); err != nil {
			t.Errorf("%s: %v", doc, err)
		}
	}
	if c, err := DecodeBroker("f", []byte(base+"front: {publicEndpoint: 'e:443'}\ntracing: {endpoint: 'https://collector:4317', sampleRatio: 0.25}\n")); err != nil || c.Tracing.SampleRatio != .25 {
		t.Errorf("tracing: %+v, %v", c, err)
	}
	for doc, path := range map[string]string{
		"{}":                                    "front.publicEndpoint",
		"front: {publicEndpoint: edge.example}": "front.publicEndpoint",
		"front: {publicEndpoint: 'e:443', listen: 'edge.example:443'}":                                        "front.listen",
		"front: {publicEndpoint: 'e:443'}\negress: {publicEndpoint: 'http://x:1'}":                            "egress.publicEndpoint",
		"front: {publicEndpoint: 'e:443'}\negress: {publicEndpoint: 'https://x'}":                             "egress.publicEndpoint",
		"front: {publicEndpoint: 'e:443'}\ntrustDomain: A":                                                    "trustDomain",
		"front: {publicEndpoint: 'e:443'}\nidentity: {nodeCertificateTTL: 1s}":                                "identity.nodeCertificateTTL",
		"front: {publicEndpoint: 'e:443'}\nidentity: {expiredGrace: -1s}":                                     "identity.expiredGrace",
		"front: {publicEndpoint: 'e:443'}\ntunnel: {maxStreams: 0}":                                           "tunnel.maxStreams",
		"front: {publicEndpoint: 'e:443'}\ntunnel: {maxPending: 99999999999999999999}":                        "tunnel.maxPending",
		"front: {publicEndpoint: 'e:443'}\nhealthAddress: 'localhost:1'":                                      "healthAddress",
		"front: {publicEndpoint: 'e:443'}\nadminSocket: broker.sock":                                          "adminSocket",
		"front: {publicEndpoint: 'e:443'}\ntunnel: {heartbeatInterval: 1h, heartbeatTimeout: 3h}":             "tunnel.heartbeatInterval",
		"front: {publicEndpoint: 'e:443'}\nlog: {format: xml}":                                                "log.format",
		"front: {publicEndpoint: 'edge_1.example:443'}":                                                       "front.publicEndpoint",
		"front: {publicEndpoint: 'e:443'}\negress: {publicEndpoint: 'https://a_b:1'}":                         "egress.publicEndpoint",
		"front: {publicEndpoint: 'e:443'}\ntrustDomain: 192.0.2.1":                                            "trustDomain",
		"front: {publicEndpoint: 'e:443', limits: {helloTimeout: 1ms}}":                                       "front.limits.helloTimeout",
		"front: {publicEndpoint: 'e:443', limits: {maxUnauthenticated: 0}}":                                   "front.limits.maxUnauthenticated",
		"front: {publicEndpoint: 'e:443', limits: {maxUnauthenticatedPerSource: -1}}":                         "front.limits.maxUnauthenticatedPerSource",
		"front: {publicEndpoint: 'e:443', limits: {acceptRate: 0}}":                                           "front.limits.acceptRate",
		"front: {publicEndpoint: 'e:443', limits: {acceptRatePerSource: 2000000}}":                            "front.limits.acceptRatePerSource",
		"front: {publicEndpoint: 'e:443', domain: Edge.example}":                                              "front.domain",
		"front: {publicEndpoint: 'e:443', passthrough: {maxConnections: 0}}":                                  "front.passthrough.maxConnections",
		"front: {publicEndpoint: 'e:443', passthrough: {maxPerTenant: 0}}":                                    "front.passthrough.maxPerTenant",
		"front: {publicEndpoint: 'e:443', passthrough: {maxPerSource: 0}}":                                    "front.passthrough.maxPerSource",
		"front: {publicEndpoint: 'e:443', proxyProtocol: {trusted: [10.0.0.0/8, 10.0.0.1]}}":                  "front.proxyProtocol.trusted[1]",
		"front: {publicEndpoint: 'e:443', proxyProtocol: {trusted: ['0.0.0.0/0']}}":                           "front.proxyProtocol.trusted[0]",
		"front: {publicEndpoint: 'e:443'}\negress: {maxUnauthenticated: 3}":                                   "egress.maxUnauthenticated",
		"front: {publicEndpoint: 'e:443'}\negress: {maxPending: 0}":                                           "egress.maxPending",
		"front: {publicEndpoint: 'e:443'}\ntracing: {endpoint: 'collector:4317'}":                             "tracing.endpoint",
		"front: {publicEndpoint: 'e:443'}\ntracing: {endpoint: 'https://collector'}":                          "tracing.endpoint",
		"front: {publicEndpoint: 'e:443'}\ntracing: {endpoint: 'http://user:secret@collector:4317'}":          "tracing.endpoint",
		"front: {publicEndpoint: 'e:443'}\ntracing: {endpoint: 'http://collector:4317/v1/traces'}":            "tracing.endpoint",
		"front: {publicEndpoint: 'e:443'}\ntracing: {sampleRatio: 1.1}":                                       "tracing.sampleRatio",
		"front: {publicEndpoint: 'e:443'}\ntracing: {sampleRatio: -0.1}":                                      "tracing.sampleRatio",
		"front: {publicEndpoint: 'e:443'}\ntracing: {sampleRatio: half}":                                      "tracing.sampleRatio",
		"front: {publicEndpoint: 'e:443'}\ntracing: {sampleRatio: 1e999}":                                     "tracing.sampleRatio",
		"front: {publicEndpoint: 'e:443'}\nkamaji: {enabled: true}":                                           "kamaji.image",
		"front: {publicEndpoint: 'e:443'}\nkamaji: {enabled: true, image: i, kubeconfig: /k}":                 "kamaji.leaderElection.namespace",
		"front: {publicEndpoint: 'e:443'}\nkamaji: {kubeconfig: k}":                                           "kamaji.kubeconfig",
		"front: {publicEndpoint: 'e:443'}\nkamaji: {namespaces: [a, B]}":                                      "kamaji.namespaces[1]",
		"front: {publicEndpoint: 'e:443'}\nkamaji: {brokerEndpoint: x}":                                       "kamaji.brokerEndpoint",
		"front: {publicEndpoint: 'e:443'}\nkamaji: {protocol: grpc}":                                          "kamaji.protocol",
		"front: {publicEndpoint: 'e:443'}\nkamaji: {leaderElection: {renewDeadline: 15s}}":                    "kamaji.leaderElection.renewDeadline",
		"front: {publicEndpoint: 'e:443'}\nkamaji: {leaderElection: {retryPeriod: 9s}}":                       "kamaji.leaderElection.retryPeriod",
		"front: {publicEndpoint: 'e:443'}\nkamaji: {leaderElection: {leaseDuration: 1h}}":                     "kamaji.leaderElection.leaseDuration",
		"front: {publicEndpoint: 'e:70000'}":                                                                  "front.publicEndpoint",
		"front: {publicEndpoint: 'e:443', publicendpoint: 'e:443'}\nkubelet: {config: {anything: {goes: 1}}}": "front.publicendpoint",
	} {
		t.Run(path, func(t *testing.T) {
			body := doc
			if doc == "{}" {
				body = ""
			}
			_, err := DecodeBroker("f", []byte(base+body+"\n"))
			var e *Error
			if !errors.As(err, &e) || len(e.Problems) != 1 || e.Problems[0].Path != path {
				t.Fatalf("%s\n= %v; want one problem at %s", doc, err, path)
			}
		})
	}
}

func TestJoinBundle(t *testing.T) {
	good := head + `JoinBundle
endpoint: edge.example:443
tenant: acme
token: abcdefghij.abcdefghijkmnpqrstuvwxyz23456789
caCertHashes: ["sha256:` + strings.Repeat("ab", 32) + `"]
`
	b, err := DecodeJoinBundle("f", []byte(strings.ReplaceAll(good, "abcdefghij.", "abcdefghjk.")))
	if err != nil || b.Tenant != "acme" || b.Endpoint != "edge.example:443" || len(b.CACertHashes) != 1 {
		t.Fatalf("= %+v, %v", b, err)
	}
	b, err = DecodeJoinBundle("f", []byte(strings.ReplaceAll(strings.ReplaceAll(good, "abcdefghij.", "abcdefghjk."), "tenant: acme\n", "")))
	if err != nil || b.Tenant != "" {
		t.Fatalf("of no tenant: %+v, %v", b, err)
	}
	if _, err := DecodeJoinBundle("f", nil); err == nil || !strings.Contains(err.Error(), "`broker token create` prints one") {
		t.Errorf("an empty bundle: %v", err)
	}
	_, err = DecodeJoinBundle("f", []byte(head+"JoinBundle\ntenant: Not_a_name\ntoken: very.SECRET\ncaCertHashes: ['sha256:00']\n"))
	var e *Error
	if !errors.As(err, &e) || len(e.Problems) != 4 {
		t.Fatalf("want endpoint, tenant, token and hash refused: %v", err)
	}
	if strings.Contains(err.Error(), "SECRET") {
		t.Errorf("the error quotes the token: %v", err)
	}
}

func TestLoad(t *testing.T) {
	p := filepath.Join(t.TempDir(), "agent.yaml")
	if _, err := LoadAgent(p); !IsAbsent(err) {
		t.Errorf("absent file: %v", err)
	}
	if err := os.WriteFile(p, []byte(head+"AgentConfiguration\ntunnel: {heartbeatInterval: 5s}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadAgent(p)
	if err != nil || c.Tunnel.HeartbeatInterval.Duration != 5*time.Second || c.Tunnel.Transport != "auto" {
		t.Errorf("= %+v, %v", c, err)
	}
	if _, err := LoadBroker(p); err == nil || IsAbsent(err) || !strings.Contains(err.Error(), p) {
		t.Errorf("the agent's file as the broker's: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range []any{DefaultAgent(), DefaultBroker(), &JoinBundle{TypeMeta: TypeMeta{APIVersion, KindJoinBundle}}} {
		y, _ := Marshal(v)
		f.Add(y)
	}
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte(head + "TenantConfiguration\nkubeconfigFile: k\nhosts: [a.example]\nproxyProtocol: true\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Whatever comes out without an error must be a document that loads again, unchanged.
		if c, err := DecodeAgent("f", data); err == nil {
			y, err := Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := DecodeAgent("f", y); err != nil || !reflect.DeepEqual(c, again) {
				t.Fatalf("%+v, %v after\n%s", again, err, y)
			}
		}
		DecodeBroker("f", data)
		DecodeJoinBundle("f", data)
		if c, err := DecodeTenant("f", data); err == nil {
			y, _ := Marshal(c)
			if again, err := DecodeTenant("f", y); err != nil || again.KubeconfigFile != c.KubeconfigFile {
				t.Fatalf("%+v, %v after\n%s", again, err, y)
			}
		}
	})
}

func TestAgentDial(t *testing.T) {
	c, err := DecodeAgent("a", []byte("apiVersion: mooring.dev/v1alpha1\nkind: AgentConfiguration\n"))
	if err != nil || !c.Dial.Pods || !c.Dial.Services || !c.API.Advertise || len(c.Dial.ServiceCIDRs) > 0 || len(c.Dial.PodInterfaces) == 0 {
		t.Errorf("defaults: %+v, %+v, %v", c.Dial, c.API, err)
	}
	c, err = DecodeAgent("a", []byte("apiVersion: mooring.dev/v1alpha1\nkind: AgentConfiguration\ndial: {pods: false, services: false, serviceCIDRs: [10.96.0.0/12, fd00::/108], podInterfaces: [pods]}\napi: {advertise: false}\n"))
	if err != nil || c.Dial.Pods || c.Dial.Services || c.API.Advertise || len(c.Dial.ServiceCIDRs) != 2 || len(c.Dial.PodInterfaces) != 1 {
		t.Errorf("all set: %+v, %+v, %v", c.Dial, c.API, err)
	}
	_, err = DecodeAgent("a", []byte("apiVersion: mooring.dev/v1alpha1\nkind: AgentConfiguration\ndial: {serviceCIDRs: [10.96.0.1/12, 10.0.0.0], podInterfaces: [lo, \"\", l]}\n"))
	for _, path := range []string{"dial.serviceCIDRs[0]", "dial.serviceCIDRs[1]", "dial.podInterfaces[0]", "dial.podInterfaces[1]", "dial.podInterfaces[2]"} {
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%v names no %s", err, path)
		}
	}
}

// TestTenantFile: each wrong value of a tenant's file is told with its path, and the file tells what it is.
func TestTenantFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "acme.yaml")
	whole := head + "TenantConfiguration\nkubeconfigFile: k\nupstreams: ['10.0.0.1:6443']\nhosts: [a.example]\nserviceCIDRs: [fd00::/108]\n"
	if err := os.WriteFile(path, []byte(whole), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := LoadTenant(path); err != nil || c.KubeconfigFile != "k" || c.ProxyProtocol != nil || !IsTenant(path) {
		t.Errorf("%+v, %v, %v", c, err, IsTenant(path))
	}
	_, err := DecodeTenant("t", []byte(head+"TenantConfiguration\nupstreams: [a]\nhosts: [a, B.example]\nserviceCIDRs: [10.96.0.1/12]\nname: acme\n"))
	for _, path := range []string{"kubeconfigFile", "upstreams[0]", "hosts[0]", "hosts[1]", "serviceCIDRs[0]", "name"} {
		if err == nil || !strings.Contains(err.Error(), "\n  "+path+": ") {
			t.Errorf("%v names no %s", err, path)
		}
	}
	b := DefaultBroker()
	b.Front.PublicEndpoint, b.TenantsDir = "edge.example:443", "relative"
	y, _ := Marshal(b)
	if _, err := DecodeBroker("b", y); err == nil || !strings.Contains(err.Error(), "tenantsDir: ") {
		t.Errorf("a relative tenantsDir: %v", err)
	}
}
