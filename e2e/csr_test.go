package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

const (
	clientSigner  = "kubernetes.io/kube-apiserver-client-kubelet"
	servingSigner = "kubernetes.io/kubelet-serving"
)

// certificateRequest is a manifest of a CertificateSigningRequest with a fresh key.
func certificateRequest(t *testing.T, name, signer string, subject pkix.Name, dns []string, ips []net.IP) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject, DNSNames: dns, IPAddresses: ips}, key)
	must(t, err)
	request := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	usage := map[string]string{clientSigner: "client auth", servingSigner: "server auth"}[signer]
	return fmt.Sprintf("apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {name: %s}\n"+
		"spec: {signerName: %s, usages: [digital signature, %s], request: %s}\n", name, signer, usage, request)
}

func nodeSubject(node string, groups ...string) pkix.Name {
	if len(groups) == 0 {
		groups = []string{"system:nodes"}
	}
	return pkix.Name{CommonName: "system:node:" + node, Organization: groups}
}

// bootstrapToken asks the broker for a bootstrap token as the node's own agent would: it has its key.
func (s *suite) bootstrapToken(t *testing.T, n *node) string {
	t.Helper()
	var identity struct{ Certificate string }
	data, err := os.ReadFile(n.box.Path("/var/lib/mooring/identity.json"))
	must(t, err)
	must(t, json.Unmarshal(data, &identity))
	key, err := os.ReadFile(n.box.Path("/var/lib/mooring/node.key"))
	must(t, err)
	pair, err := tls.X509KeyPair([]byte(identity.Certificate), key)
	must(t, err)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			raw, err := s.platform.Net.Dial(ctx, "tcp", net.JoinHostPort(harness.BrokerAddress, harness.BrokerPort))
			if err != nil {
				return nil, err
			}
			// Whether the broker is the broker is not the question here.
			conn := tls.Client(raw, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"mooring-enroll/1"}, InsecureSkipVerify: true})
			return conn, conn.HandshakeContext(ctx)
		},
	}}
	resp, err := client.Post("https://broker/v1/join", "application/json", strings.NewReader("{}"))
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	var join struct{ BootstrapToken string }
	if err := json.Unmarshal(body, &join); err != nil || join.BootstrapToken == "" {
		t.Fatalf("no bootstrap token: %s %s", resp.Status, body)
	}
	return join.BootstrapToken
}

// csrState is the request's conditions and whether it has a certificate.
func csrState(ctx context.Context, tenant *harness.Tenant, name string) (string, error) {
	out, err := tenant.Kubectl(ctx, "get", "csr", name, "-o", `jsonpath={.status.conditions[*].type} {.status.certificate}`)
	if len(out) > 40 {
		out = out[:40]
	}
	return strings.TrimSpace(out), err
}

// leftAlone waits until the broker has said why, and sees that nobody has approved.
func (s *suite) leftAlone(t *testing.T, tenant *harness.Tenant, name, why string) {
	t.Helper()
	s.wait(t, "an event on "+name, 15*time.Second, func(ctx context.Context) error {
		out, err := tenant.Kubectl(ctx, "get", "events", "-n", "default", "--field-selector", "reason=NotApproved,involvedObject.name="+name, "-o", "jsonpath={.items[*].message}")
		if err == nil && (out == "" || !strings.Contains(out, why)) {
			err = fmt.Errorf("events: %q, want %q", out, why)
		}
		return err
	})
	if state, err := csrState(s.ctx, tenant, name); err != nil || state != "" {
		t.Errorf("request %s is %q, %v; want it pending", name, state, err)
	}
}

func approvedNow(tenant *harness.Tenant, name string) func(context.Context) error {
	return func(ctx context.Context) error {
		state, err := csrState(ctx, tenant, name)
		if err == nil && !strings.HasPrefix(state, "Approved LS0t") {
			err = fmt.Errorf("request %s is %q", name, state)
		}
		return err
	}
}

// tokenForAnother: a bootstrap token that was minted for edge-1 gets a certificate for edge-1, as its kubelet would, and
// for nothing else; nor does edge-1's kubelet for edge-2's name. What is not approved stays so.
func (s *suite) tokenForAnother(t *testing.T) {
	acme := s.acme
	token := []string{"--token", s.bootstrapToken(t, s.nodes[0])}
	bad := map[string]struct {
		subject pkix.Name
		why     string
	}{
		"fault25-name":   {nodeSubject("edge-2"), "minted for another node"},
		"fault25-groups": {nodeSubject("edge-1", "system:nodes", "system:masters"), "organizations are"},
		"fault25-other":  {nodeSubject("edge-1", "system:masters"), "organizations are"},
		"fault25-admin":  {pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}, "minted for another node"},
	}
	for name, c := range bad {
		_, err := acme.KubectlAs(s.ctx, token, []byte(certificateRequest(t, name, clientSigner, c.subject, nil, nil)), "create", "--validate=false", "-f", "-")
		must(t, err)
	}
	for name, c := range bad {
		s.leftAlone(t, acme, name, c.why)
	}
	// The token does work.
	_, err := acme.KubectlAs(s.ctx, token, []byte(certificateRequest(t, "fault25-right", clientSigner, nodeSubject("edge-1"), nil, nil)), "create", "--validate=false", "-f", "-")
	must(t, err)
	s.wait(t, "the certificate that the token is for", 15*time.Second, approvedNow(acme, "fault25-right"))
	// It is good for nothing but requests.
	if out, err := acme.KubectlAs(s.ctx, token, nil, "get", "nodes"); err == nil {
		t.Errorf("a bootstrap token reads nodes: %s", out)
	}
	// A node that is in, in another's name. API servers since 1.31 refuse to take that; an older one does, so that it is
	// the broker that leaves it alone.
	kubelet, err := s.nodes[0].box.KubeletCredentials(s.ctx)
	must(t, err)
	_, err = acme.KubectlAs(s.ctx, kubelet, []byte(certificateRequest(t, "fault25-kubelet", clientSigner, nodeSubject("edge-2"), nil, nil)), "create", "--validate=false", "-f", "-")
	if err == nil {
		s.leftAlone(t, acme, "fault25-kubelet", "another name")
	} else if !strings.Contains(err.Error(), "forbidden") {
		t.Error(err)
	}
	for name := range bad {
		if state, err := csrState(s.ctx, acme, name); err != nil || state != "" {
			t.Errorf("request %s is %q, %v by the end", name, state, err)
		}
	}
}

// csrFlood: 200 requests of edge-2's kubelet, all of which would be approved in their turn; edge-1's is approved at once.
func (s *suite) csrFlood(t *testing.T) {
	const flood = 200
	acme, site := s.acme, []net.IP{net.ParseIP(harness.NodeAddress)}
	flooder, err := s.nodes[1].box.KubeletCredentials(s.ctx)
	must(t, err)
	victim, err := s.nodes[0].box.KubeletCredentials(s.ctx)
	must(t, err)
	serving := func(name, node string) string {
		return certificateRequest(t, name, servingSigner, nodeSubject(node), []string{node}, site)
	}
	ask := func(name string) time.Duration {
		_, err := acme.KubectlAs(s.ctx, victim, []byte(serving(name, "edge-1")), "create", "--validate=false", "-f", "-")
		must(t, err)
		return s.wait(t, "the serving certificate "+name, 15*time.Second, approvedNow(acme, name))
	}
	calm := ask("fault28-calm")
	var all bytes.Buffer
	for i := range flood {
		fmt.Fprintf(&all, "%s---\n", serving(fmt.Sprintf("fault28-flood-%d", i), "edge-2"))
	}
	_, err = acme.KubectlAs(s.ctx, flooder, all.Bytes(), "create", "--validate=false", "-f", "-")
	must(t, err)
	during := ask("fault28-during")
	waiting, err := acme.Kubectl(s.ctx, "get", "csr", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.conditions[*].type}{"\n"}{end}`)
	must(t, err)
	pending, approved := 0, 0
	for line := range strings.Lines(waiting) {
		if f := strings.Fields(line); strings.HasPrefix(line, "fault28-flood-") && len(f) == 1 {
			pending++
		} else if strings.HasPrefix(line, "fault28-flood-") {
			approved++
		}
	}
	s.note("edge-1 waited %.1f s, before the flood %.1f s; of edge-2's %d approved, %d wait", during.Seconds(), calm.Seconds(), approved, pending)
	if pending < flood/2 {
		t.Errorf("only %d of %d requests still wait: there was no flood", pending, flood)
	}
	_, err = acme.Kubectl(s.ctx, "delete", "csr", "--all", "--wait=false")
	must(t, err)
}

// spoofedAddresses: edge-2's kubelet says in its Node that it is called and reached as edge-1 is. What is for edge-1
// still goes there, edge-1's data does not come for edge-2, and no certificate for edge-1's name goes to edge-2.
func (s *suite) spoofedAddresses(t *testing.T) {
	acme, edge1, edge2 := s.acme, s.nodes[0], s.nodes[1]
	liar, err := edge2.box.KubeletCredentials(s.ctx)
	must(t, err)
	spoof := func() { // a PUT, as a node may not read nodes/status, which kubectl patch does
		out, err := acme.Kubectl(s.ctx, "get", "node", "edge-2", "-o", "json")
		must(t, err)
		var object map[string]any
		must(t, json.Unmarshal([]byte(out), &object))
		delete(object["metadata"].(map[string]any), "resourceVersion")
		object["status"].(map[string]any)["addresses"] = []map[string]string{
			{"type": "Hostname", "address": "edge-1"}, {"type": "InternalIP", "address": harness.NodeAddress},
		}
		lie, err := json.Marshal(object)
		must(t, err)
		_, err = acme.KubectlAs(s.ctx, liar, lie, "replace", "--raw", "/api/v1/nodes/edge-2/status", "-f", "-")
		must(t, err)
	}
	spoofed := func() bool {
		out, err := acme.Kubectl(s.ctx, "get", "node", "edge-2", "-o", `jsonpath={.status.addresses[?(@.type=="Hostname")].address}`)
		must(t, err)
		return out == "edge-1"
	}
	// The real kubelet sets it right every ten seconds, so a try counts only if the lie stood all the while.
	standing := func(what string, try func() error) {
		t.Helper()
		for range 5 {
			spoof()
			err := try()
			if spoofed() {
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				return
			}
		}
		t.Errorf("%s: the lie never stood long enough", what)
	}
	standing("edge-1's logs", func() error {
		out, err := acme.Kubectl(s.ctx, "logs", edge1.pod())
		if err == nil && !strings.HasPrefix(out, "started on edge-1 at "+edge1.site()) {
			err = fmt.Errorf("came from elsewhere: %q", out)
		}
		return err
	})
	standing("exec at edge-1", func() error { return s.execWorks(edge1)(s.ctx) })
	standing("what is for edge-2", func() error {
		logs, _ := acme.Kubectl(s.ctx, "logs", edge2.pod())
		where, _ := s.exec(s.ctx, edge2, "cat /site")
		if strings.Contains(logs, edge1.site()) || strings.Contains(where, edge1.site()) {
			return errors.New("edge-1 answered: " + logs + where)
		}
		return nil
	})
	standing("a certificate", func() error {
		for name, request := range map[string]string{
			"fault29-san": certificateRequest(t, "fault29-san", servingSigner, nodeSubject("edge-2"), []string{"edge-1"}, []net.IP{net.ParseIP(harness.NodeAddress)}),
			"fault29-cn":  certificateRequest(t, "fault29-cn", servingSigner, nodeSubject("edge-1"), []string{"edge-1"}, []net.IP{net.ParseIP(harness.NodeAddress)}),
		} {
			_, err := acme.Kubectl(s.ctx, "delete", "csr", name, "--ignore-not-found")
			must(t, err)
			if _, err := acme.KubectlAs(s.ctx, liar, []byte(request), "create", "--validate=false", "-f", "-"); err != nil {
				if !strings.Contains(err.Error(), "forbidden") {
					return err
				}
				continue // the API server itself does not take it
			}
			s.leftAlone(t, acme, name, "")
		}
		return nil
	})
	s.wait(t, "edge-2's own addresses", 30*time.Second, func(context.Context) error {
		if spoofed() {
			return errors.New("not yet set right by its kubelet")
		}
		return nil
	})
	s.wait(t, "exec at edge-2", 30*time.Second, s.execWorks(edge2))
}

// waitPod waits until a pod of the node's tenant runs.
func (s *suite) waitPod(t *testing.T, n *node, pod string) {
	t.Helper()
	s.wait(t, "the pod "+pod, time.Minute, func(ctx context.Context) error { return n.tenant.PodRunning(ctx, pod) })
}
