package enroll

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/mooring-edge/mooring/internal/pki"
)

const (
	nodeUserPrefix      = "system:node:"
	nodesGroup          = "system:nodes"
	bootstrapUserPrefix = "system:bootstrap:"
	// maxCSR limits a kubelet's request, in bytes; a real one has about 500.
	maxCSR = 16 << 10
)

// verdict is what is to be done with a request.
type verdict int

const (
	leave   verdict = iota // never ours to approve: a request does not change
	wait                   // not now; it may become right when the node's session does
	approve                // exactly what the records say
)

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// requestedNode tells which node a request of one of our two signers is for, by its requestor (serving) or by
// its common name (client: of one of our bootstrap tokens, or of a node that asks in another's name). ok is false
// for what is not ours to judge.
func requestedNode(csr *certificatesv1.CertificateSigningRequest) (node string, ok bool) {
	switch csr.Spec.SignerName {
	case certificatesv1.KubeletServingSignerName:
		node, ok = strings.CutPrefix(csr.Spec.Username, nodeUserPrefix)
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		withToken := slices.Contains(csr.Spec.Groups, bootstrapGroup)
		byNode := strings.HasPrefix(csr.Spec.Username, nodeUserPrefix)
		if !withToken && !byNode {
			return "", false
		}
		req, err := pki.ParseCSR(csr.Spec.Request, maxCSR)
		if err != nil {
			return "", withToken // asked with one of our tokens: to be refused, and said so
		}
		if !withToken && req.Subject.CommonName == csr.Spec.Username {
			return "", false // a node's own renewal: kube-controller-manager's to approve
		}
		node, _ = strings.CutPrefix(req.Subject.CommonName, nodeUserPrefix)
		return node, true
	}
	return node, ok && node != ""
}

// checkClient decides on a kubelet's first client certificate: asked for with the bootstrap token that was
// minted for exactly this node, and holding nothing but the node's own name.
func checkClient(csr *certificatesv1.CertificateSigningRequest, node string) (verdict, string) {
	if csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return leave, fmt.Sprintf("signer is %q", csr.Spec.SignerName)
	}
	if strings.HasPrefix(csr.Spec.Username, nodeUserPrefix) {
		return leave, fmt.Sprintf("requestor %q asks for a certificate in another name, %q: a node may renew its own only", csr.Spec.Username, nodeUserPrefix+node)
	}
	if !strings.HasPrefix(csr.Spec.Username, bootstrapUserPrefix) {
		return leave, fmt.Sprintf("requestor %q is not a bootstrap token", csr.Spec.Username)
	}
	if reason := checkBootstrapGroups(csr.Spec.Groups, node); reason != "" {
		return leave, reason
	}
	if reason := checkUsages(csr.Spec.Usages, certificatesv1.UsageClientAuth); reason != "" {
		return leave, reason
	}
	req, reason := checkRequest(csr.Spec.Request, node)
	if reason != "" {
		return leave, reason
	}
	if len(req.Extensions) > 0 {
		return leave, "the request asks for extensions, a client certificate has none"
	}
	return approve, ""
}

// checkBootstrapGroups wants the group of exactly this node, and of no other.
func checkBootstrapGroups(groups []string, node string) string {
	if !slices.Contains(groups, bootstrapGroup) {
		return fmt.Sprintf("requestor is not in group %s", bootstrapGroup)
	}
	want, found := nodeGroup(node), false
	for _, g := range groups {
		switch {
		case g == want:
			found = true
		case strings.HasPrefix(g, bootstrapGroup+":"):
			return fmt.Sprintf("the bootstrap token was minted for another node (group %s)", g)
		}
	}
	if !found {
		return fmt.Sprintf("requestor is not in group %s, that of bootstrap tokens for this node", want)
	}
	return ""
}

// checkStatic makes the checks that need nothing but the request.
func checkStatic(csr *certificatesv1.CertificateSigningRequest, node string) (v verdict, reason string) {
	if csr.Spec.SignerName == certificatesv1.KubeletServingSignerName {
		_, v, reason = checkServingStatic(csr, node)
	} else {
		v, reason = checkClient(csr, node)
	}
	if v != approve {
		return v, reason
	}
	if err := validNodeName(node); err != nil {
		return leave, fmt.Sprintf("node name %q: %v", node, err)
	}
	return approve, ""
}

// checkServing decides on a kubelet's serving certificate: asked for by the node itself, for its own name and
// for addresses that its live session attests. reserved are addresses that belong to the control plane: a
// certificate for one of those would pass for the API server's.
//
// The name must be among the SANs, for that is what the API server dials; and an address, as a kubelet asks for
// none only when told to by a feature gate that is off.
func checkServing(csr *certificatesv1.CertificateSigningRequest, node string, attested, reserved []netip.Addr) (verdict, string) {
	req, v, reason := checkServingStatic(csr, node)
	if v != approve {
		return v, reason
	}
	return checkAddresses(req.IPAddresses, attested, reserved)
}

func checkServingStatic(csr *certificatesv1.CertificateSigningRequest, node string) (*x509.CertificateRequest, verdict, string) {
	if csr.Spec.SignerName != certificatesv1.KubeletServingSignerName {
		return nil, leave, fmt.Sprintf("signer is %q", csr.Spec.SignerName)
	}
	if csr.Spec.Username != nodeUserPrefix+node {
		return nil, leave, fmt.Sprintf("requestor %q is not the node", csr.Spec.Username)
	}
	if !slices.Contains(csr.Spec.Groups, nodesGroup) {
		return nil, leave, fmt.Sprintf("requestor is not in group %s", nodesGroup)
	}
	if reason := checkUsages(csr.Spec.Usages, certificatesv1.UsageServerAuth); reason != "" {
		return nil, leave, reason
	}
	req, reason := checkRequest(csr.Spec.Request, node)
	if reason != "" {
		return nil, leave, reason
	}
	if reason := checkExtensions(req); reason != "" {
		return nil, leave, reason
	}
	if len(req.URIs) > 0 || len(req.EmailAddresses) > 0 {
		return nil, leave, "the request has URI or email SANs"
	}
	if len(req.DNSNames) != 1 || req.DNSNames[0] != node {
		return nil, leave, fmt.Sprintf("DNS SANs are %q, want the node's name alone", req.DNSNames)
	}
	if len(req.IPAddresses) == 0 {
		return nil, leave, "the request has no IP SAN"
	}
	return req, approve, ""
}

func checkAddresses(asked []net.IP, attested, reserved []netip.Addr) (verdict, string) {
	var foreign []netip.Addr
	for _, ip := range asked {
		addr, ok := netip.AddrFromSlice(ip)
		if !ok {
			return leave, "an IP SAN is malformed"
		}
		addr = addr.Unmap()
		switch {
		case addr.IsLoopback(), addr.IsUnspecified(), addr.IsMulticast(), addr.IsLinkLocalUnicast():
			return leave, fmt.Sprintf("IP SAN %s can't be a node's address", addr)
		case slices.Contains(reserved, addr):
			return leave, fmt.Sprintf("IP SAN %s is the control plane's", addr)
		case !slices.ContainsFunc(attested, func(a netip.Addr) bool { return a.Unmap().WithZone("") == addr }):
			foreign = append(foreign, addr)
		}
	}
	if len(foreign) > 0 {
		return wait, fmt.Sprintf("the node's session does not attest all of the addresses asked for (%s are missing, attested are %s): see node.addresses in the agent's configuration", joinAddrs(foreign), joinAddrs(attested))
	}
	return approve, ""
}

func joinAddrs(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "none"
	}
	var b strings.Builder
	for i, a := range addrs {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.String())
	}
	return b.String()
}

// checkUsages wants the signer's one purpose and the usages that go with it; key encipherment is for RSA keys.
func checkUsages(usages []certificatesv1.KeyUsage, purpose certificatesv1.KeyUsage) string {
	seen := map[certificatesv1.KeyUsage]bool{}
	for _, u := range usages {
		switch u {
		case purpose, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment:
			seen[u] = true
		default:
			return fmt.Sprintf("usage %q is not one of a kubelet's for this signer", u)
		}
	}
	if !seen[purpose] || !seen[certificatesv1.UsageDigitalSignature] {
		return fmt.Sprintf("usages %q lack %q or %q", usages, purpose, certificatesv1.UsageDigitalSignature)
	}
	return ""
}

// checkRequest parses the request (one PEM block, sound key, own signature) and wants the node's subject in it.
func checkRequest(pemCSR []byte, node string) (*x509.CertificateRequest, string) {
	req, err := pki.ParseCSR(pemCSR, maxCSR)
	if err != nil {
		return nil, err.Error()
	}
	if node == "" {
		return nil, fmt.Sprintf("common name %q is not a node's", req.Subject.CommonName)
	}
	s := req.Subject
	if s.CommonName != nodeUserPrefix+node {
		return nil, fmt.Sprintf("common name is %q, want %q", s.CommonName, nodeUserPrefix+node)
	}
	if len(s.Organization) != 1 || s.Organization[0] != nodesGroup {
		return nil, fmt.Sprintf("organizations are %q, want %q alone", s.Organization, nodesGroup)
	}
	if len(s.Names) != 2 {
		return nil, "the subject holds more than a common name and an organization"
	}
	return req, ""
}

// checkExtensions wants the SAN extension alone, with nothing in it that the parser passes over (other kinds of
// names, which nobody would have looked at).
func checkExtensions(req *x509.CertificateRequest) string {
	if len(req.Extensions) != 1 || !req.Extensions[0].Id.Equal(oidSAN) {
		return "the request asks for extensions other than subject alternative names"
	}
	var names []asn1.RawValue
	rest, err := asn1.Unmarshal(req.Extensions[0].Value, &names)
	if err != nil || len(rest) > 0 {
		return "the subject alternative names are malformed"
	}
	if len(names) != len(req.DNSNames)+len(req.IPAddresses)+len(req.URIs)+len(req.EmailAddresses) {
		return "the request has subject alternative names of an unknown kind"
	}
	return ""
}
