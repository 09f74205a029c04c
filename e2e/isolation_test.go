package e2e

import (
	"bytes"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

// kubeletCertificates: each node's kubelet shows a certificate of its own tenant's CA, for its own name,
// over the very way that the API server takes. That API server has --kubelet-certificate-authority.
func (s *suite) kubeletCertificates(t *testing.T) {
	for _, n := range s.nodes {
		cert, err := n.tenant.KubeletCertificate(s.ctx, n.name+":10250", n.name)
		must(t, err)
		if want := "system:node:" + n.name; cert.Subject.CommonName != want {
			t.Errorf("the kubelet of %s says it is %q, want %q", n, cert.Subject.CommonName, want)
		}
		if !slices.Equal(cert.DNSNames, []string{n.name}) {
			t.Errorf("the kubelet of %s has a certificate for the names %q", n, cert.DNSNames)
		}
		if len(cert.IPAddresses) != 1 || !cert.IPAddresses[0].Equal(net.ParseIP(harness.NodeAddress)) {
			t.Errorf("the kubelet of %s has a certificate for the addresses %v", n, cert.IPAddresses)
		}
	}
}

// wrongKubeletCA: an API server told to trust another CA gets no logs, so the certificates do count.
func (s *suite) wrongKubeletCA(t *testing.T) {
	const port = 7443
	server, err := s.acme.StartAPIServer(s.ctx, "-wrong-ca", port, s.acme.Dir+"/pki/front-proxy-ca.crt")
	must(t, err)
	defer server.Kill()
	n := s.nodes[0]
	out, err := n.tenant.Kubectl(s.ctx, "logs", n.pod(), "--server", "https://127.0.0.1:7443")
	if err == nil {
		t.Fatalf("an API server that trusts another CA got logs: %s", out)
	}
	if !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("failed, but not for the certificate: %v", err)
	}
}

// otherTenant: with tenant globex's certificate, acme's nodes do not exist, by name or by address; what
// the two share (a node name, an address) leads to globex's own.
func (s *suite) otherTenant(t *testing.T) {
	refused := func(tenant *harness.Tenant, target string) []byte {
		t.Helper()
		start := time.Now()
		conn, answer, err := tenant.Connect(s.ctx, target)
		must(t, err)
		if conn != nil {
			_ = conn.Close()
			t.Fatalf("CONNECT %s as %s was let through", target, tenant.Name)
		}
		s.logf("    %s -> %s: %.90q (%s)", tenant.Name, target, answer, time.Since(start).Round(time.Microsecond))
		return answer
	}
	// That these are acme's nodes, and reachable, shows with acme's certificate.
	for _, target := range []string{"edge-2:10250", acmeOnlyAddress + ":10250"} {
		if _, err := s.acme.KubeletCertificate(s.ctx, target, "edge-2"); err != nil {
			t.Errorf("acme's own node: %v", err)
		}
	}
	for _, c := range []struct{ acmes, nobodys string }{
		{"edge-2", "edge-9"},
		{acmeOnlyAddress, "192.168.77.9"},
	} {
		got, want := refused(s.globex, c.acmes+":10250"), refused(s.globex, c.nobodys+":10250")
		if !bytes.HasPrefix(got, []byte("HTTP/1.1 404 ")) {
			t.Errorf("CONNECT %s as globex: %q, want 404", c.acmes, got)
		}
		got, want = dialID.ReplaceAll(got, nil), dialID.ReplaceAll(want, nil) // random, and of one length
		if got = bytes.ReplaceAll(got, []byte(c.acmes), []byte(c.nobodys)); !bytes.Equal(got, want) {
			t.Errorf("the answer for acme's %s differs from that for nobody's %s:\n%q\n%q", c.acmes, c.nobodys, got, want)
		}
	}
	// What both have leads to one's own: the certificate behind it is of one's own CA.
	for _, target := range []string{"edge-1:10250", harness.NodeAddress + ":10250"} {
		if _, err := s.globex.KubeletCertificate(s.ctx, target, "edge-1"); err != nil {
			t.Errorf("globex's own node by %s: %v", target, err)
		}
	}
	// Two of acme's nodes have the address: no guess, but an answer that says what to do.
	if answer := refused(s.acme, harness.NodeAddress+":10250"); !bytes.Contains(answer, []byte("--kubelet-preferred-address-types")) {
		t.Errorf("CONNECT to an address of two nodes: %q, want a word on what to set", answer)
	}
}

// dialID is how an answer that refuses a dial names it.
var dialID = regexp.MustCompile(`\(dial ([0-9a-f]{16})\)`)

// dialIDInBothLogs: the error that a person at kubectl gets names the dial, and by that name it is found in the broker's
// log and in the node's, whose policy refused it.
func (s *suite) dialIDInBothLogs(t *testing.T) {
	for _, n := range s.nodes {
		const notTheKubelets = "22"
		_, err := n.tenant.Kubectl(s.ctx, "get", "--raw", "/api/v1/nodes/http:"+n.name+":"+notTheKubelets+"/proxy/")
		if err == nil {
			t.Errorf("port %s of %s was reached", notTheKubelets, n)
			continue
		}
		id := dialID.FindStringSubmatch(err.Error())
		if id == nil {
			t.Errorf("the error names no dial: %v", err)
			continue
		}
		for log, what := range map[string]string{
			s.platform.Broker.Log: "egress dial refused", n.box.Agent().Log: "refused a connection from the broker",
		} {
			data, err := os.ReadFile(log)
			must(t, err)
			line := regexp.MustCompile(`(?m)^.*msg="` + what + `" dial=` + id[1] + `.*$`).FindString(string(data))
			if !strings.Contains(line, "target="+n.name+":"+notTheKubelets) || !strings.Contains(line, `code="denied by policy"`) {
				t.Errorf("%s says of dial %s: %q", s.env.Relative(log), id[1], line)
			}
			s.logf("    %s", line)
		}
	}
}

// nothingElseLeft: in the whole run, nothing but packets to the broker's port came out of any site. The
// counters count: one packet to elsewhere shows.
func (s *suite) nothingElseLeft(t *testing.T) {
	for _, n := range s.nodes {
		site := n.box.Site
		left, err := site.Left()
		must(t, err)
		s.note("%s udp %d tcp %d icmp %d other %d", site.Name, left.UDP, left.TCP, left.ICMP, left.Other)
		if left.Other != 0 {
			t.Errorf("%d packets tried to leave %s for other than the broker's port: %s", left.Other, site.Name, left.OtherTo)
		}
		if left.TCP == 0 {
			t.Errorf("no TCP packet left %s; enrolment is TCP: the counters do not count", site.Name)
		}
		if s.transport == "quic" && left.UDP < 1000 {
			t.Errorf("%d UDP packets left %s: the tunnel was not QUIC", left.UDP, site.Name)
		}
		if s.transport == "tcp" && left.UDP != 0 {
			t.Errorf("%d UDP packets left %s, whose transport is tcp", left.UDP, site.Name)
		}
		// The control: a connection to the API server's port on the platform fails, and is counted.
		if out, err := n.box.Run(s.ctx, "busybox", "nc", "-w", "1", harness.BrokerAddress, "6443"); err == nil {
			t.Errorf("%s reaches another port than the broker's: %s", site.Name, out)
		}
		after, err := site.Left()
		must(t, err)
		if after.Other == left.Other {
			t.Errorf("a packet to another port from %s was not counted", site.Name)
		}
	}
}
