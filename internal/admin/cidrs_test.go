package admin

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"testing"
)

func TestServiceCIDRs(t *testing.T) {
	before := []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16")}
	for name, c := range map[string]struct {
		asked []string
		want  []netip.Prefix
		bad   bool
	}{
		"nothing said":   {nil, before, false},
		"set":            {[]string{"10.96.0.0/12", "fd00::/108"}, []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00::/108")}, false},
		"taken back":     {[]string{LearnServiceCIDRs}, nil, false},
		"no prefix":      {[]string{"10.96.0.1"}, nil, true},
		"bits behind it": {[]string{"10.96.0.1/12"}, nil, true},
		"IPv4 in IPv6":   {[]string{"::ffff:10.0.0.0/104"}, nil, true},
		"too many":       {slices.Repeat([]string{"10.96.0.0/12"}, 17), nil, true},
	} {
		got, err := serviceCIDRs(TenantRequest{Name: "acme", ServiceCIDRs: c.asked}, before)
		if e, ok := errors.AsType[*Error](err); c.bad != (err != nil) || c.bad && (!ok || e.Status != http.StatusBadRequest) || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
}
