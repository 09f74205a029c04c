package enroll

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const testNode = "edge-1"

var (
	testAddrs    = []netip.Addr{netip.MustParseAddr("192.168.1.10"), netip.MustParseAddr("fd00::10")}
	testReserved = []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("192.168.1.1")}
)

// kubeletRequest is what a kubelet asks for; edits may spoil it.
type kubeletRequest struct {
	template x509.CertificateRequest
	key      crypto.Signer
	pem      func([]byte) []byte // spoils the PEM
	object   certificatesv1.CertificateSigningRequest
}

func (k kubeletRequest) build(t testing.TB) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	if k.key == nil {
		k.key = newKey(t)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &k.template, k.key)
	if err != nil {
		t.Fatal(err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	if k.pem != nil {
		out = k.pem(out)
	}
	k.object.Spec.Request = out
	return &k.object
}

func nodeSubject(node string) pkix.Name {
	return pkix.Name{CommonName: nodeUserPrefix + node, Organization: []string{nodesGroup}}
}

func servingRequest() *kubeletRequest {
	return &kubeletRequest{
		template: x509.CertificateRequest{Subject: nodeSubject(testNode), DNSNames: []string{testNode}, IPAddresses: []net.IP{net.ParseIP("192.168.1.10")}},
		object: certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: "csr-serving", UID: types.UID("uid-serving")},
			Spec: certificatesv1.CertificateSigningRequestSpec{
				SignerName: certificatesv1.KubeletServingSignerName,
				Username:   nodeUserPrefix + testNode, Groups: []string{nodesGroup, "system:authenticated"},
				Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
			},
		},
	}
}

func clientRequest() *kubeletRequest {
	return &kubeletRequest{
		template: x509.CertificateRequest{Subject: nodeSubject(testNode)},
		object: certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: "csr-client", UID: types.UID("uid-client")},
			Spec: certificatesv1.CertificateSigningRequestSpec{
				SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
				Username:   "system:bootstrap:abcdef",
				Groups:     []string{"system:bootstrappers", bootstrapGroup, nodeGroup(testNode), "system:authenticated"},
				Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
			},
		},
	}
}

type edit = func(k *kubeletRequest)

// spoilt is what neither of the two requests may have.
func spoilt(t testing.TB) map[string]edit {
	rsaKey := func(bits int) crypto.Signer {
		t.Setenv("GODEBUG", "rsa1024min=0")
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]edit{
		"other signer":    func(k *kubeletRequest) { k.object.Spec.SignerName = certificatesv1.KubeAPIServerClientSignerName },
		"other node's CN": func(k *kubeletRequest) { k.template.Subject.CommonName = nodeUserPrefix + "edge-2" },
		"CN no node's":    func(k *kubeletRequest) { k.template.Subject.CommonName = testNode },
		"CN with more":    func(k *kubeletRequest) { k.template.Subject.CommonName += "\x00" },
		"admin": func(k *kubeletRequest) {
			k.template.Subject = pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}
		},
		"no organization":      func(k *kubeletRequest) { k.template.Subject.Organization = nil },
		"other organization":   func(k *kubeletRequest) { k.template.Subject.Organization = []string{"system:masters"} },
		"further organization": func(k *kubeletRequest) { k.template.Subject.Organization = []string{nodesGroup, "system:masters"} },
		"organization twice":   func(k *kubeletRequest) { k.template.Subject.Organization = []string{nodesGroup, nodesGroup} },
		"further attribute":    func(k *kubeletRequest) { k.template.Subject.OrganizationalUnit = []string{"x"} },
		"second CN": func(k *kubeletRequest) {
			k.template.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "admin"}}
		},
		"no usages":       func(k *kubeletRequest) { k.object.Spec.Usages = nil },
		"signature alone": func(k *kubeletRequest) { k.object.Spec.Usages = k.object.Spec.Usages[:1] },
		"purpose alone":   func(k *kubeletRequest) { k.object.Spec.Usages = k.object.Spec.Usages[1:] },
		"both purposes": func(k *kubeletRequest) {
			k.object.Spec.Usages = []certificatesv1.KeyUsage{"digital signature", "client auth", "server auth"}
		},
		"cert sign": func(k *kubeletRequest) {
			k.object.Spec.Usages = append(k.object.Spec.Usages, certificatesv1.UsageCertSign)
		},
		"any usage": func(k *kubeletRequest) { k.object.Spec.Usages = append(k.object.Spec.Usages, certificatesv1.UsageAny) },
		"URI SAN":   func(k *kubeletRequest) { k.template.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} },
		"email SAN": func(k *kubeletRequest) { k.template.EmailAddresses = []string{"a@b"} },
		"further extension": func(k *kubeletRequest) {
			k.template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte{0x30, 3, 1, 1, 0xff}}}
		},
		"SAN of unknown kind": func(k *kubeletRequest) { k.template.ExtraExtensions = []pkix.Extension{otherNameSAN(t)} },
		"weak curve":          func(k *kubeletRequest) { k.key = p224 },
		"weak RSA":            func(k *kubeletRequest) { k.key = rsaKey(1024) },
		"empty":               func(k *kubeletRequest) { k.pem = func([]byte) []byte { return nil } },
		"DER":                 func(k *kubeletRequest) { k.pem = func(p []byte) []byte { b, _ := pem.Decode(p); return b.Bytes } },
		"trailing bytes":      func(k *kubeletRequest) { k.pem = func(p []byte) []byte { return append(p, "more"...) } },
		"two blocks":          func(k *kubeletRequest) { k.pem = func(p []byte) []byte { return append(p, p...) } },
		"leading bytes":       func(k *kubeletRequest) { k.pem = func(p []byte) []byte { return append([]byte("x\n"), p...) } },
		"certificate": func(k *kubeletRequest) {
			k.pem = func(p []byte) []byte { return bytes.ReplaceAll(p, []byte(" REQUEST"), nil) }
		},
		"oversized": func(k *kubeletRequest) {
			k.pem = func(p []byte) []byte { return append(p, bytes.Repeat([]byte("\n"), maxCSR)...) }
		},
		"bad signature": func(k *kubeletRequest) { k.pem = damagedSignature },
		"trailing bytes in DER": func(k *kubeletRequest) {
			k.pem = func(p []byte) []byte { return reencode(p, func(b []byte) []byte { return append(b, 0) }) }
		},
		"request of another one": func(k *kubeletRequest) { k.object.Spec.Username = nodeUserPrefix + "edge-2" },
		"no requestor":           func(k *kubeletRequest) { k.object.Spec.Username = "" },
		"requestor is an admin": func(k *kubeletRequest) {
			k.object.Spec.Username, k.object.Spec.Groups = "admin", []string{"system:masters"}
		},
		"no groups": func(k *kubeletRequest) { k.object.Spec.Groups = nil },
	}
}

func reencode(p []byte, f func([]byte) []byte) []byte {
	b, _ := pem.Decode(p)
	b.Bytes = f(b.Bytes)
	return pem.EncodeToMemory(b)
}

func damagedSignature(p []byte) []byte {
	return reencode(p, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
}

// otherNameSAN holds the node's name, its address, and a name of a kind that Go's parser passes over.
func otherNameSAN(t testing.TB) pkix.Extension {
	val, err := asn1.Marshal([]asn1.RawValue{
		{Class: 2, Tag: 2, Bytes: []byte(testNode)},
		{Class: 2, Tag: 7, Bytes: []byte{192, 168, 1, 10}},
		{Class: 2, Tag: 8, Bytes: []byte{42, 3, 4}}, // registeredID
	})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidSAN, Value: val}
}

// Fault 27: serving requests with a foreign SAN, CN, DNS-only, extra usages are never approved.
func TestFault27CheckServing(t *testing.T) {
	type want struct {
		edit edit
		want verdict
	}
	cases := map[string]want{
		"as a kubelet asks": {func(*kubeletRequest) {}, approve},
		"both addresses": {func(k *kubeletRequest) {
			k.template.IPAddresses = append(k.template.IPAddresses, net.ParseIP("fd00::10"))
		}, approve},
		"with key encipherment": {func(k *kubeletRequest) {
			k.object.Spec.Usages = append(k.object.Spec.Usages, certificatesv1.UsageKeyEncipherment)
		}, approve},
		"RSA key": {func(k *kubeletRequest) {
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			k.key = key
		}, approve},

		"foreign DNS":     {func(k *kubeletRequest) { k.template.DNSNames = []string{"edge-2"} }, leave},
		"further DNS":     {func(k *kubeletRequest) { k.template.DNSNames = []string{testNode, "kubernetes"} }, leave},
		"DNS twice":       {func(k *kubeletRequest) { k.template.DNSNames = []string{testNode, testNode} }, leave},
		"wildcard":        {func(k *kubeletRequest) { k.template.DNSNames = []string{"*"} }, leave},
		"upper case":      {func(k *kubeletRequest) { k.template.DNSNames = []string{"EDGE-1"} }, leave},
		"DNS only":        {func(k *kubeletRequest) { k.template.IPAddresses = nil }, leave},
		"IP only":         {func(k *kubeletRequest) { k.template.DNSNames = nil }, leave},
		"no SAN":          {func(k *kubeletRequest) { k.template.DNSNames, k.template.IPAddresses = nil, nil }, leave},
		"IP not attested": {func(k *kubeletRequest) { k.template.IPAddresses = []net.IP{net.ParseIP("192.168.1.11")} }, wait},
		"one IP not attested": {func(k *kubeletRequest) {
			k.template.IPAddresses = append(k.template.IPAddresses, net.ParseIP("1.2.3.4"))
		}, wait},
		"control plane's IP": {func(k *kubeletRequest) { k.template.IPAddresses = []net.IP{net.ParseIP("192.168.1.1")} }, leave},
		"service IP": {func(k *kubeletRequest) {
			k.template.IPAddresses = append(k.template.IPAddresses, net.ParseIP("10.96.0.1"))
		}, leave},
		"loopback":            {func(k *kubeletRequest) { k.template.IPAddresses = []net.IP{net.ParseIP("127.0.0.1")} }, leave},
		"unspecified":         {func(k *kubeletRequest) { k.template.IPAddresses = []net.IP{net.ParseIP("0.0.0.0")} }, leave},
		"link-local":          {func(k *kubeletRequest) { k.template.IPAddresses = []net.IP{net.ParseIP("169.254.169.254")} }, leave},
		"not in system:nodes": {func(k *kubeletRequest) { k.object.Spec.Groups = []string{"system:authenticated"} }, leave},
		"bootstrap token":     {func(k *kubeletRequest) { k.object.Spec.Username = "system:bootstrap:abcdef" }, leave},
	}
	for name, e := range spoilt(t) {
		cases[name] = want{e, leave}
	}
	attested := append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("0.0.0.0")}, append(testAddrs, testReserved...)...)
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			k := servingRequest()
			tc.edit(k)
			got, reason := checkServing(k.build(t), testNode, attested, testReserved)
			if got != tc.want {
				t.Errorf("verdict %v (%s), want %v", got, reason, tc.want)
			}
			if (got == approve) != (reason == "") {
				t.Errorf("verdict %v with reason %q", got, reason)
			}
		})
	}
	t.Run("other node", func(t *testing.T) {
		if got, _ := checkServing(servingRequest().build(t), "edge-2", attested, nil); got != leave {
			t.Errorf("verdict %v", got)
		}
	})
	t.Run("nothing attested", func(t *testing.T) {
		if got, reason := checkServing(servingRequest().build(t), testNode, nil, nil); got != wait || !strings.Contains(reason, "192.168.1.10") {
			t.Errorf("verdict %v, %s", got, reason)
		}
	})
}

// Fault 25: a bootstrap token that asks for another node, or other groups, gets nothing.
func TestFault25CheckClient(t *testing.T) {
	type want struct {
		edit edit
		want verdict
	}
	groups := func(g ...string) edit { return func(k *kubeletRequest) { k.object.Spec.Groups = g } }
	cases := map[string]want{
		"as the agent asks": {func(*kubeletRequest) {}, approve},
		"with key encipherment": {func(k *kubeletRequest) {
			k.object.Spec.Usages = append(k.object.Spec.Usages, certificatesv1.UsageKeyEncipherment)
		}, approve},
		"DNS SAN":               {func(k *kubeletRequest) { k.template.DNSNames = []string{testNode} }, leave},
		"IP SAN":                {func(k *kubeletRequest) { k.template.IPAddresses = []net.IP{net.ParseIP("192.168.1.10")} }, leave},
		"group of another node": {groups("system:bootstrappers", bootstrapGroup, nodeGroup("edge-2")), leave},
		"groups of two nodes":   {groups("system:bootstrappers", bootstrapGroup, nodeGroup(testNode), nodeGroup("edge-2")), leave},
		"no node's group":       {groups("system:bootstrappers", bootstrapGroup), leave},
		"not one of our tokens": {groups("system:bootstrappers", nodeGroup(testNode)), leave},
		"a node already":        {func(k *kubeletRequest) { k.object.Spec.Username = nodeUserPrefix + testNode }, leave},
	}
	for name, e := range spoilt(t) {
		cases[name] = want{e, leave}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			k := clientRequest()
			tc.edit(k)
			got, reason := checkClient(k.build(t), testNode)
			if got != tc.want {
				t.Errorf("verdict %v (%s), want %v", got, reason, tc.want)
			}
		})
	}
}

func TestRequestedNode(t *testing.T) {
	for name, tc := range map[string]struct {
		k    *kubeletRequest
		edit edit
		node string
		ours bool
	}{
		"serving":         {servingRequest(), nil, testNode, true},
		"client":          {clientRequest(), nil, testNode, true},
		"client, damaged": {clientRequest(), func(k *kubeletRequest) { k.pem = damagedSignature }, "", true},
		"kubeadm's token": {clientRequest(), func(k *kubeletRequest) {
			k.object.Spec.Groups = []string{"system:bootstrappers:kubeadm:default-node-token"}
		}, "", false},
		"node's own renewal": {clientRequest(), func(k *kubeletRequest) { k.object.Spec.Groups = []string{nodesGroup} }, "", false},
		"node's renewal as a kubelet asks": {clientRequest(), func(k *kubeletRequest) {
			k.object.Spec.Username, k.object.Spec.Groups = nodeUserPrefix+testNode, []string{nodesGroup}
		}, "", false},
		"node in another's name": {clientRequest(), func(k *kubeletRequest) {
			k.object.Spec.Username, k.object.Spec.Groups = nodeUserPrefix+"edge-2", []string{nodesGroup}
		}, testNode, true},
		"node as an admin": {clientRequest(), func(k *kubeletRequest) {
			k.object.Spec.Username, k.object.Spec.Groups = nodeUserPrefix+testNode, []string{nodesGroup}
			k.template.Subject.CommonName = "admin"
		}, "admin", true},
		"other signer":      {clientRequest(), func(k *kubeletRequest) { k.object.Spec.SignerName = "example.org/x" }, "", false},
		"serving for a pod": {servingRequest(), func(k *kubeletRequest) { k.object.Spec.Username = "system:serviceaccount:a:b" }, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.edit != nil {
				tc.edit(tc.k)
			}
			node, ours := requestedNode(tc.k.build(t))
			if ours != tc.ours || ours && node != tc.node {
				t.Errorf("requestedNode = %q, %v; want %q, %v", node, ours, tc.node, tc.ours)
			}
		})
	}
}

// Whatever bytes are asked with: what is approved holds the node's name and attested addresses, and nothing else.
func FuzzCheckCSR(f *testing.F) {
	seed := func(k *kubeletRequest) { f.Add(k.build(f).Spec.Request) }
	seed(servingRequest())
	seed(clientRequest())
	for _, e := range []edit{
		func(k *kubeletRequest) { k.template.DNSNames = append(k.template.DNSNames, "x") },
		func(k *kubeletRequest) { k.template.ExtraExtensions = []pkix.Extension{otherNameSAN(f)} },
		func(k *kubeletRequest) { k.pem = damagedSignature },
	} {
		k := servingRequest()
		e(k)
		seed(k)
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		serving, client := servingRequest().object, clientRequest().object
		serving.Spec.Request, client.Spec.Request = request, request
		byNode := client
		byNode.Spec.Username, byNode.Spec.Groups = nodeUserPrefix+testNode, []string{nodesGroup}
		if node, ours := requestedNode(&byNode); ours {
			if v, _ := checkClient(&byNode, node); v != leave || node == testNode {
				t.Fatalf("a node's request for a client certificate in the name %q: verdict %v", node, v)
			}
		}
		servingOK, _ := checkServing(&serving, testNode, testAddrs, testReserved)
		clientOK, _ := checkClient(&client, testNode)
		if servingOK != approve && clientOK != approve {
			return
		}
		if servingOK == clientOK {
			t.Fatal("one request passes for both signers")
		}
		b, _ := pem.Decode(request)
		csr, err := x509.ParseCertificateRequest(b.Bytes)
		if err != nil || csr.CheckSignature() != nil {
			t.Fatalf("approved what does not verify: %v", err)
		}
		if csr.Subject.CommonName != nodeUserPrefix+testNode || !slices.Equal(csr.Subject.Organization, []string{nodesGroup}) {
			t.Fatalf("approved subject %s", csr.Subject)
		}
		if clientOK == approve {
			if len(csr.Extensions) > 0 {
				t.Fatal("approved a client request with extensions")
			}
			return
		}
		if !slices.Equal(csr.DNSNames, []string{testNode}) || len(csr.URIs)+len(csr.EmailAddresses) > 0 {
			t.Fatalf("approved SANs %q %v %v", csr.DNSNames, csr.URIs, csr.EmailAddresses)
		}
		for _, ip := range csr.IPAddresses {
			if a, _ := netip.AddrFromSlice(ip); !slices.Contains(testAddrs, a.Unmap()) {
				t.Fatalf("approved address %s", ip)
			}
		}
	})
}
