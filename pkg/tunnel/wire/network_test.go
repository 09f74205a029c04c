package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestNetwork(t *testing.T) {
	want := Network{
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:1::/108")},
		APIServers:   []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:6443"), netip.MustParseAddrPort("[fd00::1]:6443")},
	}
	b, err := AppendNetwork(nil, want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseNetwork(payload(t, b)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseNetwork = %+v, %v; want %+v", got, err, want)
	}
	if got, err := ParseNetwork([]byte(`{"new":[1]}`)); err != nil || !reflect.DeepEqual(got, Network{}) {
		t.Errorf("a newer version's: %+v, %v", got, err)
	}
	many := strings.Repeat(`"10.0.0.0/8",`, MaxServiceCIDRs) + `"10.0.0.0/8"`
	for name, s := range map[string]string{
		"no JSON":            `{`,
		"bits behind it":     `{"serviceCIDRs":["10.0.0.1/8"]}`,
		"no prefix":          `{"serviceCIDRs":[""]}`,
		"IPv4 in IPv6":       `{"serviceCIDRs":["::ffff:10.0.0.0/104"]}`,
		"too many CIDRs":     fmt.Sprintf(`{"serviceCIDRs":[%s]}`, many),
		"too many servers":   fmt.Sprintf(`{"apiServers":[%s]}`, strings.ReplaceAll(many, "/8", ":1")),
		"no port":            `{"apiServers":["10.0.0.1:0"]}`,
		"no address":         `{"apiServers":[""]}`,
		"a server of 4in6":   `{"apiServers":["[::ffff:10.0.0.1]:6443"]}`,
		"a server's zone":    `{"apiServers":["[fe80::1%eth0]:6443"]}`,
		"a name of a server": `{"apiServers":["localhost:6443"]}`,
		"too long":           `{"x":"` + strings.Repeat("n", maxNetworkPayload) + `"}`,
	} {
		if _, err := ParseNetwork([]byte(s)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v; want ErrMalformed", name, err)
		}
	}
}

func FuzzParseNetwork(f *testing.F) {
	f.Add([]byte(`{"serviceCIDRs":["10.96.0.0/12","fd00::/108"],"apiServers":["198.51.100.1:6443"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := ParseNetwork(b)
		if err != nil {
			return
		}
		enc, err := AppendNetwork(nil, n)
		if err != nil {
			t.Fatalf("%+v was parsed and is not encoded: %v", n, err)
		}
		if again, err := ParseNetwork(payload(t, enc)); err != nil || len(again.ServiceCIDRs) != len(n.ServiceCIDRs) || len(again.APIServers) != len(n.APIServers) {
			t.Fatalf("%+v became %+v, %v", n, again, err)
		}
	})
}
