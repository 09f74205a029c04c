package config

import (
	"fmt"
	"net/netip"
	"strings"

	"sigs.k8s.io/yaml"
)

// Tenant is one tenant as a file of tenantsDir says it. Only KubeconfigFile is needed.
type Tenant struct {
	TypeMeta
	// KubeconfigFile is an administrator's kubeconfig, self-contained. A relative path is relative to the directory of this file. It has
	// to be there when the broker makes its account at the tenant; else it may be missing.
	KubeconfigFile string `json:"kubeconfigFile"`
	// Upstreams are further addresses of the API server, host:port. Default none.
	Upstreams []string `json:"upstreams"`
	// Hosts are further DNS names that lead to the API server by SNI. Default none.
	Hosts []string `json:"hosts"`
	// ServiceCIDRs are the ranges of the tenant's Services. Default none: the API server says.
	ServiceCIDRs []string `json:"serviceCIDRs"`
	// ProxyProtocol has each connection to the API server begin with a PROXY header. Default: front.proxyProtocol.toUpstreams.
	ProxyProtocol *bool `json:"proxyProtocol"`
}

// LoadTenant reads and validates a file, like LoadBroker.
func LoadTenant(path string) (*Tenant, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return DecodeTenant(path, data)
}

// DecodeTenant reads a tenant's file strictly; source names it in errors. A file whose last line has no end is refused, as it may have
// been cut short.
func DecodeTenant(source string, data []byte) (*Tenant, error) {
	t := &Tenant{}
	if err := decode(source, data, KindTenant, t, t.validate); err != nil {
		return nil, err
	}
	if data[len(data)-1] != '\n' {
		return nil, &Error{source, []Problem{{"", "the last line has no end, as in a file that was cut short: end it with a newline"}}}
	}
	return t, nil
}

// IsTenant tells whether a file says of itself that it is a tenant's. One that can't be read does not.
func IsTenant(path string) bool {
	var meta TypeMeta
	data, err := readFile(path)
	return err == nil && len(data) <= maxFile && yaml.Unmarshal(data, &meta) == nil && meta.Kind == KindTenant
}

func (t *Tenant) validate(p *problems) {
	if t.KubeconfigFile == "" {
		p.check("kubeconfigFile", errRequired)
	}
	for i, u := range t.Upstreams {
		p.check(fmt.Sprintf("upstreams[%d]", i), hostPort(u))
	}
	for i, h := range t.Hosts {
		err := dnsName(h)
		if err == nil && !strings.ContainsRune(h, '.') {
			err = fmt.Errorf("want a DNS name such as api.acme.example, got %q", h)
		}
		p.check(fmt.Sprintf("hosts[%d]", i), err)
	}
	for i, s := range t.ServiceCIDRs {
		if n, err := netip.ParsePrefix(s); err != nil || n != n.Masked() || n.Addr().Is4In6() {
			p.add(fmt.Sprintf("serviceCIDRs[%d]", i), "want a prefix with no bits behind it, such as 10.96.0.0/12, got %q", s)
		}
	}
}
