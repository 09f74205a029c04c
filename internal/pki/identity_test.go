package pki

import (
	"crypto/x509"
	"errors"
	"net/url"
	"strings"
	"testing"
)

const td = "mooring.local"

func TestIdentityRoundTrip(t *testing.T) {
	for want, id := range map[string]Identity{
		"spiffe://mooring.local/tenant/acme/node/edge-1.shop": {td, RoleNode, "acme", "edge-1.shop"},
		"spiffe://mooring.local/tenant/acme/apiserver":        {td, RoleAPIServer, "acme", ""},
		"spiffe://mooring.local/broker/b-0":                   {td, RoleBroker, "", "b-0"},
		"spiffe://x/tenant/node/node/tenant":                  {"x", RoleNode, "node", "tenant"},
	} {
		if got := id.String(); got != want {
			t.Errorf("String = %q, want %q", got, want)
		}
		if got := id.URI().String(); got != want {
			t.Errorf("URI = %q, want %q", got, want)
		}
		got, err := parseURI(want)
		if err != nil || got != id {
			t.Errorf("parseURI(%q) = %+v, %v, want %+v", want, got, err, id)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	for _, raw := range []string{
		"",
		"spiffe://",
		"spiffe:///tenant/a/node/b",
		"https://td/tenant/a/node/b",
		"SPIFFE://td/tenant/a/node/b",
		"spiffe:td/tenant/a/node/b",
		"spiffe://td",
		"spiffe://td/",
		"spiffe://TD/broker/b",
		"spiffe://td:443/broker/b",
		"spiffe://user@td/broker/b",
		"spiffe://user:pw@td/broker/b",
		"spiffe://10.0.0.1/broker/b",
		"spiffe://[::1]/broker/b",
		"spiffe://td./broker/b",
		"spiffe://td/broker/b?",
		"spiffe://td/broker/b?x=y",
		"spiffe://td/broker/b#",
		"spiffe://td/broker/b#f",
		"spiffe://td/broker/b/",
		"spiffe://td/broker//b",
		"spiffe://td//broker/b",
		"spiffe://td/broker/",
		"spiffe://td/broker/.",
		"spiffe://td/broker/..",
		"spiffe://td/broker/a..b",
		"spiffe://td/broker/%62",
		"spiffe://td/broker/b%2fc",
		"spiffe://td/broker/b\x00",
		"spiffe://td/broker/b ",
		"spiffe://td/broker/b\n",
		"spiffe://td/Broker/b",
		"spiffe://td/tenant/a",
		"spiffe://td/tenant/a/node",
		"spiffe://td/tenant/a/node/",
		"spiffe://td/tenant/a/node/b/c",
		"spiffe://td/tenant//node/b",
		"spiffe://td/tenant/./node/b",
		"spiffe://td/tenant/../node/b",
		"spiffe://td/tenant/a.b/node/c",
		"spiffe://td/tenant/A/node/b",
		"spiffe://td/tenant/a/node/B",
		"spiffe://td/tenant/a/node/b_c",
		"spiffe://td/tenant/a/node/ü",
		"spiffe://td/tenant/-a/node/b",
		"spiffe://td/tenant/a-/node/b",
		"spiffe://td/tenant/a/apiserver/",
		"spiffe://td/tenant/a/apiserver/x",
		"spiffe://td/tenant/a/kubelet/b",
		"spiffe://td/tenant/" + strings.Repeat("a", 64) + "/node/b",
		"spiffe://td/tenant/a/node/" + strings.Repeat("a.", 127) + "a",
		"spiffe://td/broker/" + strings.Repeat("a", 3000),
	} {
		if id, err := parseURI(raw); !errors.Is(err, ErrIdentity) {
			t.Errorf("parseURI(%.80q) = %+v, %v, want ErrIdentity", raw, id, err)
		}
	}
}

func TestParseIdentity(t *testing.T) {
	uri := func(raw ...string) (out []*url.URL) {
		for _, r := range raw {
			u, err := url.Parse(r)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, u)
		}
		return out
	}
	good := "spiffe://td/broker/b"
	for name, tc := range map[string]struct {
		cert x509.Certificate
		ok   bool
	}{
		"good":         {x509.Certificate{URIs: uri(good)}, true},
		"no URI":       {x509.Certificate{DNSNames: []string{"b"}}, false},
		"two URIs":     {x509.Certificate{URIs: uri(good, "https://example.com")}, false},
		"same twice":   {x509.Certificate{URIs: uri(good, good)}, false},
		"CA":           {x509.Certificate{URIs: uri(good), IsCA: true}, false},
		"query":        {x509.Certificate{URIs: uri(good + "?a=b")}, false},
		"empty query":  {x509.Certificate{URIs: uri(good + "?")}, false},
		"opaque":       {x509.Certificate{URIs: uri("spiffe:td/broker/b")}, false},
		"escaped path": {x509.Certificate{URIs: uri("spiffe://td/broker/%2e%2e")}, false},
		"not SPIFFE":   {x509.Certificate{URIs: uri("urn:x:y")}, false},
	} {
		id, err := ParseIdentity(&tc.cert)
		if tc.ok && (err != nil || id != (Identity{"td", RoleBroker, "", "b"})) {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
		if !tc.ok && !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %+v, %v, want ErrIdentity", name, id, err)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, id := range map[string]Identity{
		"zero":                  {},
		"unknown role":          {td, "kubelet", "a", "b"},
		"apiserver with a name": {td, RoleAPIServer, "a", "b"},
		"broker with a tenant":  {td, RoleBroker, "a", "b"},
		"node without a tenant": {td, RoleNode, "", "b"},
		"node without a name":   {td, RoleNode, "a", ""},
	} {
		if err := id.Validate(); !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %v, want ErrIdentity", name, err)
		}
	}
}

func TestValidNames(t *testing.T) {
	for _, tc := range []struct {
		name         string
		tenant, node bool
	}{
		{"a", true, true},
		{"0", true, true},
		{"a-b", true, true},
		{"a.b", false, true},
		{"10.0.0.1", false, true},
		{strings.Repeat("a", 63), true, true},
		{strings.Repeat("a", 64), false, false},
		{strings.Repeat("a.", 126) + "a", false, true},
		{strings.Repeat("a.", 126) + "aa", false, false},
		{"", false, false},
		{".", false, false},
		{"a.", false, false},
		{".a", false, false},
		{"-", false, false},
		{"a-", false, false},
		{"a.-b", false, false},
		{"A", false, false},
		{"a/b", false, false},
		{"a b", false, false},
		{"a\n", false, false},
		{"é", false, false},
	} {
		if err := ValidTenant(tc.name); (err == nil) != tc.tenant {
			t.Errorf("ValidTenant(%q) = %v, want ok = %v", tc.name, err, tc.tenant)
		}
		if err := ValidNode(tc.name); (err == nil) != tc.node {
			t.Errorf("ValidNode(%q) = %v, want ok = %v", tc.name, err, tc.node)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	for _, s := range []string{
		"spiffe://td/tenant/a/node/b.c", "spiffe://td/tenant/a/apiserver", "spiffe://td/broker/b",
		"spiffe://td/broker/%62", "spiffe://td/broker/b?#", "spiffe://a@td:1/broker/b", "spiffe:td", "//", "spiffe://td/tenant/../node/b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		id, err := parseURI(raw)
		if err == nil {
			if id.Validate() != nil || id.String() != raw || id.URI().String() != raw {
				t.Errorf("%q was read as %+v, which is written %q", raw, id, id)
			}
		} else if !errors.Is(err, ErrIdentity) {
			t.Errorf("%q: %v is no ErrIdentity", raw, err)
		}
		u, perr := url.Parse(raw)
		if perr != nil {
			return
		}
		// By way of a certificate, nothing more may pass than is written canonically.
		got, cerr := ParseIdentity(&x509.Certificate{URIs: []*url.URL{u}})
		if cerr == nil && got.String() != u.String() {
			t.Errorf("URI %q was read as %+v", u, got)
		}
		if err == nil && got != id {
			t.Errorf("%q: %+v as text, %+v in a certificate (%v)", raw, id, got, cerr)
		}
	})
}
