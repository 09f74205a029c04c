package config

import (
	"fmt"
	"strings"
)

// Konnectivity lets upstream's konnectivity agents connect, so that a cluster can move over node by node.
type Konnectivity struct {
	// Enabled takes agents on front.listen (TCP). Default false.
	Enabled bool `json:"enabled"`
	// Domain is the DNS zone in which each tenant has a name for them: acme's agents connect to acme.DOMAIN. It has to be
	// none of tenants' API servers. Default konnectivity. and front.domain, if that is set.
	Domain string `json:"domain"`
	// ServiceAccount is whose tokens let an agent in, as namespace/name. Default kube-system/konnectivity-agent.
	ServiceAccount string `json:"serviceAccount"`
	// Audience is for whom these tokens have to be. Default system:konnectivity-server, upstream's.
	Audience string `json:"audience"`
}

// DefaultKonnectivity is what an empty file says.
func DefaultKonnectivity() Konnectivity {
	return Konnectivity{ServiceAccount: "kube-system/konnectivity-agent", Audience: "system:konnectivity-server"}
}

// Zone is Domain, or what it is by default.
func (c Konnectivity) Zone(frontDomain string) string {
	if c.Domain != "" || frontDomain == "" {
		return c.Domain
	}
	return "konnectivity." + frontDomain
}

// User is the ServiceAccount as the API server names its user.
func (c Konnectivity) User() string {
	namespace, name, _ := strings.Cut(c.ServiceAccount, "/")
	return "system:serviceaccount:" + namespace + ":" + name
}

func (c Konnectivity) validate(p *problems, frontDomain string) {
	zone := c.Zone(frontDomain)
	if c.Domain != "" {
		p.check("konnectivity.domain", dnsName(c.Domain))
	}
	switch {
	case !c.Enabled:
	case zone == "":
		p.add("konnectivity.domain", "required with konnectivity.enabled where there is no front.domain: tenant acme's agents connect to acme.DOMAIN")
	case zone == frontDomain:
		p.add("konnectivity.domain", "want another than front.domain, in which tenants' API servers have their names")
	}
	namespace, name, ok := strings.Cut(c.ServiceAccount, "/")
	if !ok || dnsName(namespace) != nil || dnsName(name) != nil {
		p.check("konnectivity.serviceAccount", fmt.Errorf("want namespace/name, got %q", c.ServiceAccount))
	}
	if c.Audience == "" {
		p.add("konnectivity.audience", "want the audience of the agents' tokens")
	}
}
