package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

// TestClusterTraffic shows what goes between an API server and its edge nodes beside the kubelets' own: webhooks,
// aggregated APIs and proxies to pods and Services one way, pods' clients the other, with the real kube-proxy on each
// node. The nodes are of different sites, which have no way to each other's pods.
func TestClusterTraffic(t *testing.T) {
	s := newSuite(t, "cluster traffic")
	s.transport = "tcp" // a session ends with its process: over QUIC it takes a probe to find that out
	s.runCases(t, []testCase{
		{"ControlPlaneAndSites", true, (*suite).trafficSites},
		{"NodesReadyWithin60s", true, (*suite).nodesReady},
		{"NodesHavePodNetwork", true, (*suite).podNetwork},
		{"PodsRun", true, (*suite).trafficPods},
		{"AdmissionWebhook", false, (*suite).webhook},
		{"AggregatedAPI", false, (*suite).aggregatedAPI},
		{"PodsProxyAndServicesProxy", false, (*suite).proxies},
		{"Fault30WhatIsNoPod", false, (*suite).noPod},
		{"APIFromPod", false, (*suite).apiFromPod},
		{"APINotForNeighbours", false, (*suite).neighbour},
		{"AgentKilled", false, (*suite).webhookNodeKilled},
		{"NothingElseLeftTheSites", false, (*suite).nothingElseLeft},
		{"AddressGoesWithReset", false, (*suite).addressReset},
	})
}

// trafficSites raises a tenant whose nodes get podCIDRs, and two sites with a machine each.
func (s *suite) trafficSites(t *testing.T) {
	var err error
	s.platform, err = s.env.StartPlatform(s.ctx)
	must(t, err)
	must(t, s.platform.StartBroker(s.ctx))
	s.acme, err = s.platform.NewTenant(s.ctx, "acme")
	must(t, err)
	s.acme.PodCIDR = "10.244.0.0/16"
	must(t, s.acme.Admit(s.ctx))
	must(t, s.acme.Start(s.ctx))
	must(t, s.acme.SetKubeletConfig(s.ctx))
	for i, name := range []string{"edge-1", "edge-2"} {
		site, err := s.platform.AddSite(fmt.Sprintf("acme-%d", i+1))
		must(t, err)
		box, err := site.NewBox(name)
		must(t, err)
		n := &node{tenant: s.acme, box: box, name: name}
		s.nodes = append(s.nodes, n)
		must(t, box.ConfigureAgent(s.transport))
		must(t, box.PowerOn(s.ctx))
	}
}

// podNetwork: each node's pods get addresses from what the control plane gave the node, and Services work on it.
func (s *suite) podNetwork(t *testing.T) {
	for _, n := range s.nodes {
		var cidr string
		s.wait(t, "the podCIDR of "+n.name, 30*time.Second, func(ctx context.Context) error {
			var err error
			cidr, err = n.tenant.Kubectl(ctx, "get", "node", n.name, "-o", "jsonpath={.spec.podCIDR}")
			if err == nil && cidr == "" {
				err = errors.New("none yet")
			}
			return err
		})
		must(t, n.box.UsePodCIDR(cidr))
		must(t, n.tenant.StartKubeProxy(s.ctx, n.box, n.name))
		took := s.wait(t, "the agent of "+n.name+" to know it", time.Minute, func(ctx context.Context) error {
			out, _ := n.box.Run(ctx, "edge-agent", "status")
			for _, part := range []string{cidr, "10.96.0.0/16", n.tenant.AdvertisedAddress()} {
				if !strings.Contains(out, part) {
					return fmt.Errorf("its status does not name %s:\n%s", part, out)
				}
			}
			return nil
		})
		s.note("%s has %s, known after %.1f s", n.name, cidr, took.Seconds())
	}
}

// appPod serves what an API server may call. It has a name for Services on edge-1 only.
const appPod = `apiVersion: v1
kind: Pod
metadata: {name: app-%[1]s, labels: {site: %[1]s, web: "yes"}}
spec:
  nodeSelector: {kubernetes.io/hostname: %[1]s}
  terminationGracePeriodSeconds: 1
  hostAliases: [{ip: 10.96.0.1, hostnames: [kubernetes.default.svc]}] # as DNS would say
  containers:
  - name: app
    image: mooring.test/busybox:1
    imagePullPolicy: Never
    command: [podapp, serve]
    env: [{name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
    readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
    volumeMounts: [{name: tls, mountPath: /tls, readOnly: true}]
  volumes: [{name: tls, secret: {secretName: app-tls}}]
---
`

const appServices = `apiVersion: v1
kind: Service
metadata: {name: app}
spec: {selector: {site: edge-1}, ports: [{name: https, port: 443, targetPort: 8443}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {web: "yes"}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: pods-look}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: default, namespace: default}]
---
apiVersion: v1
kind: Secret
metadata: {name: app-tls}
type: kubernetes.io/tls
data: {tls.crt: %s, tls.key: %s}
---
`

// appCertificate is a self-signed one for the Service, in PEM and base64.
func appCertificate(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, DNSNames: []string{"app.default.svc"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	encode := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)
}

func (s *suite) trafficPods(t *testing.T) {
	var key string
	s.appCA, key = appCertificate(t)
	manifest := fmt.Sprintf(appServices, s.appCA, key)
	for _, n := range s.nodes {
		manifest += fmt.Sprintf(appPod, n.name)
	}
	must(t, s.acme.Apply(s.ctx, manifest))
	for _, n := range s.nodes {
		s.waitPod(t, n, "app-"+n.name)
	}
}

const webhookConfig = `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: app}
webhooks:
- name: app.mooring.test
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 15
  objectSelector: {matchLabels: {checked: "yes"}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  clientConfig: {service: {namespace: default, name: app, path: /validate}, caBundle: %s}
`

// checked makes a ConfigMap that the webhook is asked about, without keeping it.
func (s *suite) checked(ctx context.Context, word string) error {
	_, err := s.acme.KubectlWith(ctx, fmt.Appendf(nil, `apiVersion: v1
kind: ConfigMap
metadata: {name: checked, labels: {checked: "yes"}}
data: {word: %s}
`, word), "create", "--dry-run=server", "-f", "-")
	return err
}

// webhook: an admission webhook whose only pod is on one of two nodes is asked, at its Service's address. The API server keeps
// its connections; that the other node is not asked shows where the node is killed, too.
func (s *suite) webhook(t *testing.T) {
	must(t, s.acme.Apply(s.ctx, fmt.Sprintf(webhookConfig, s.appCA)))
	s.wait(t, "the webhook to be asked", 30*time.Second, func(ctx context.Context) error {
		err := s.checked(ctx, "forbidden")
		if err == nil {
			return errors.New("what it forbids was admitted")
		}
		if !strings.Contains(err.Error(), "not while edge-1 is asked") {
			return err
		}
		return nil
	})
	for range 4 {
		if err := s.checked(s.ctx, "fine"); err != nil {
			t.Errorf("what the webhook admits: %v", err)
		}
		if err := s.checked(s.ctx, "forbidden"); err == nil || !strings.Contains(err.Error(), "not while edge-1 is asked") {
			t.Errorf("what the webhook forbids: %v", err)
		}
	}
}

const apiService = `apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1alpha1.test.mooring.dev}
spec:
  group: test.mooring.dev
  version: v1alpha1
  groupPriorityMinimum: 100
  versionPriority: 100
  service: {namespace: default, name: app, port: 443}
  caBundle: %s
`

// aggregatedAPI: an API whose only server is a pod on one of two nodes is served.
func (s *suite) aggregatedAPI(t *testing.T) {
	must(t, s.acme.Apply(s.ctx, fmt.Sprintf(apiService, s.appCA)))
	s.wait(t, "the aggregated API to be available", 40*time.Second, func(ctx context.Context) error {
		out, err := s.acme.Kubectl(ctx, "get", "apiservice", "v1alpha1.test.mooring.dev", "-o", `jsonpath={.status.conditions[?(@.type=="Available")]}`)
		if err == nil && !strings.Contains(out, `"status":"True"`) {
			err = errors.New(out)
		}
		return err
	})
	out, err := s.acme.Kubectl(s.ctx, "get", "--raw", "/apis/test.mooring.dev/v1alpha1/berths")
	if err != nil || !strings.Contains(out, `"name":"edge-1"`) || !strings.Contains(out, `"asked":"kubernetes-super-admin"`) {
		t.Errorf("the API behind the aggregator: %q, %v", out, err)
	}
}

// proxies: what stands behind pods/proxy and services/proxy is reached, on whichever node it is.
func (s *suite) proxies(t *testing.T) {
	for _, n := range s.nodes {
		out, err := s.acme.Kubectl(s.ctx, "get", "--raw", "/api/v1/namespaces/default/pods/app-"+n.name+":8080/proxy/some/page")
		if want := "/some/page on " + n.name + "\n"; err != nil || out != want {
			t.Errorf("pods/proxy to %s: %q, %v; want %q", n.name, out, err, want)
		}
	}
	seen := map[string]bool{}
	for range 40 {
		out, err := s.acme.Kubectl(s.ctx, "get", "--raw", "/api/v1/namespaces/default/services/web:http/proxy/some/page")
		must(t, err)
		seen[strings.TrimPrefix(strings.TrimSpace(out), "/some/page on ")] = true
		if len(seen) == len(s.nodes) {
			return
		}
	}
	t.Errorf("services/proxy went to %v only", seen)
}

// noPod: with the tenant's own certificate, what is no pod, Service or kubelet of the nodes is not reached: their LAN, their
// other ports by whatever address, a node's loopback, metadata.
func (s *suite) noPod(t *testing.T) {
	cidr, err := s.acme.Kubectl(s.ctx, "get", "node", "edge-1", "-o", "jsonpath={.spec.podCIDR}")
	must(t, err)
	gateway := strings.Replace(cidr, ".0/24", ".1", 1)
	listener := "10249" // kube-proxy's, on the node's loopback; and containerd's are none
	for target, want := range map[string]string{
		gateway + ":10250":                                  "403", // the node's own address in its podCIDR: the kubelet listens there
		gateway + ":" + listener:                            "403",
		strings.Replace(cidr, ".0/24", ".250", 1) + ":8080": "502", // no such pod
		"edge-1:" + listener:                                "403",
		"127.0.0.1:" + listener:                             "404",
		"192.168.1.1:80":                                    "404",
		"169.254.169.254:80":                                "404",
		"10.96.99.99:443":                                   "502", // no such Service: kube-proxy says so, and nothing leaves the site
		"10.245.0.1:80":                                     "404",
		net.JoinHostPort(harness.BrokerAddress, "443"):      "404",
		strings.Split(s.acme.AdvertisedAddress(), ":")[0] + ":6443": "404",
	} {
		conn, answer, err := s.acme.Connect(s.ctx, target)
		must(t, err)
		if conn != nil {
			_ = conn.Close()
			t.Errorf("CONNECT %s was let through", target)
			continue
		}
		if !strings.HasPrefix(string(answer), "HTTP/1.1 "+want+" ") && !(want == "502" && strings.HasPrefix(string(answer), "HTTP/1.1 504 ")) {
			t.Errorf("CONNECT %s: %.200q, want %s", target, answer, want)
		}
	}
}

// apiFromPod: a pod finds its API server where every pod does, and is known there by its ServiceAccount.
func (s *suite) apiFromPod(t *testing.T) {
	for _, n := range s.nodes {
		out, err := s.acme.Kubectl(s.ctx, "exec", "app-"+n.name, "--", "podapp", "api", "/api/v1/namespaces/default/pods?labelSelector=site="+n.name)
		if err != nil || !strings.HasPrefix(out, "200 OK\n") || !strings.Contains(out, `"name":"app-`+n.name+`"`) {
			t.Errorf("the API server's answer to a pod of %s: %q, %v", n.name, out, err)
		}
		out, err = s.acme.Kubectl(s.ctx, "exec", "app-"+n.name, "--", "podapp", "api", "/api/v1/secrets")
		if err != nil || !strings.HasPrefix(out, "403 Forbidden\n") || !strings.Contains(out, "system:serviceaccount:default:default") {
			t.Errorf("what the pod of %s may not read: %q, %v", n.name, out, err)
		}
	}
}

// neighbour: who is on the site's network, and sends to the control plane's address by way of the node, is turned away.
// Seen answered by the API server with apiEndpoint.allow left out.
func (s *suite) neighbour(t *testing.T) {
	machine, err := s.nodes[0].box.Site.AddNeighbour()
	must(t, err)
	ctx, cancel := context.WithTimeout(s.ctx, 15*time.Second)
	defer cancel()
	conn, err := machine.Dial(ctx, "tcp", s.acme.AdvertisedAddress())
	must(t, err) // the kernel takes it: the address is the node's
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(15*time.Second)))
	_, _ = conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")) // which a TLS server answers in plain words
	got, err := io.ReadAll(conn)
	if timeout, ok := errors.AsType[net.Error](err); len(got) > 0 || ok && timeout.Timeout() {
		t.Errorf("a neighbour of the node got %q, %v from the control plane's address", got, err)
	}
}

// onLoopback returns nil if the control plane's address is on the machine's lo, or is not, as wanted.
func (s *suite) onLoopback(ctx context.Context, n *node, want bool) error {
	out, err := n.box.Run(ctx, "ip", "addr", "show", "dev", "lo")
	if err != nil {
		return err
	}
	host, _, _ := net.SplitHostPort(s.acme.AdvertisedAddress())
	if strings.Contains(out, host+"/32") != want {
		return fmt.Errorf("%s on lo: want %t\n%s", host, want, out)
	}
	return nil
}

// webhookNodeKilled: while the agent of the webhook's node is dead, who needs the webhook is told at once, and the other node
// is not asked: it was, and timed out, with packets for the pod leaving its site, when the switchboard took no account of where
// a Service's pods are (Board.candidates). The control plane's address stays where it was, and pods are refused there until the
// agent is back.
func (s *suite) webhookNodeKilled(t *testing.T) {
	n := s.nodes[0]
	n.box.Agent().Kill()
	var told time.Duration
	s.wait(t, "the broker to know", 10*time.Second, func(ctx context.Context) error {
		start := time.Now()
		err := s.checked(ctx, "fine")
		told = time.Since(start)
		if err == nil {
			return errors.New("the webhook still answers")
		}
		if !strings.Contains(err.Error(), "of which none is connected") {
			return err
		}
		return nil
	})
	s.note("told after %.2f s", told.Seconds())
	if told > 10*time.Second { // beside the time that kubectl takes on a busy machine; the words above say that nobody was asked
		t.Errorf("a webhook whose node is gone: told after %s", told)
	}
	start := time.Now()
	if out, err := s.acme.Kubectl(s.ctx, "get", "--raw", "/api/v1/namespaces/default/pods/app-edge-1:8080/proxy/"); err == nil || time.Since(start) > 10*time.Second {
		t.Errorf("pods/proxy to a node that is gone: %q, %v after %s", out, err, time.Since(start))
	}
	must(t, s.onLoopback(s.ctx, n, true))
	must(t, n.box.StartAgent())
	took := s.wait(t, "the webhook to be asked again", 30*time.Second, func(ctx context.Context) error { return s.checked(ctx, "fine") })
	s.note("back after %.1f s", took.Seconds())
	s.wait(t, "a pod to reach the API server again", 30*time.Second, func(ctx context.Context) error {
		out, err := s.acme.Kubectl(ctx, "exec", "app-edge-1", "--", "podapp", "api", "/version")
		if err == nil && !strings.HasPrefix(out, "200 OK\n") {
			err = errors.New(out)
		}
		return err
	})
}

// addressReset: a machine that is no node any more has its loopback for itself.
func (s *suite) addressReset(t *testing.T) {
	n := s.nodes[1]
	must(t, s.onLoopback(s.ctx, n, true))
	n.box.Agent().Stop()
	must(t, s.onLoopback(s.ctx, n, true))
	out, err := n.box.Run(s.ctx, "edge-agent", "reset", "--yes")
	must(t, err)
	if !strings.Contains(out, "off the loopback interface") {
		t.Errorf("edge-agent reset said %q", out)
	}
	must(t, s.onLoopback(s.ctx, n, false))
}
