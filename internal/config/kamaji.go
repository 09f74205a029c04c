package config

import (
	"fmt"
	"time"
)

// BrokerKamaji says whether, and how, Kamaji's TenantControlPlanes are connected by a label.
type BrokerKamaji struct {
	// Enabled watches them. Default false.
	Enabled bool `json:"enabled"`
	// Kubeconfig is a file for the management cluster. Default empty: the cluster that the broker runs in.
	Kubeconfig string `json:"kubeconfig"`
	// Namespaces that are watched. Default none: all.
	Namespaces []string `json:"namespaces"`
	// Image is the sidecar's, run with the arguments egress-proxy ...: the broker's own. Required with Enabled.
	Image string `json:"image"`
	// BrokerEndpoint is the host:port by which the sidecars reach the brokers' front. Default: front.publicEndpoint.
	BrokerEndpoint string `json:"brokerEndpoint"`
	// Protocol is what the API server speaks to its sidecar: HTTPConnect or GRPC. A change rolls the control planes.
	// Default HTTPConnect.
	Protocol string `json:"protocol"`
	// LeaderElection has one of several brokers act.
	LeaderElection BrokerLease `json:"leaderElection"`
}

// BrokerLease is a Lease of the management cluster, mooring-broker-kamaji.
type BrokerLease struct {
	// Namespace of the Lease. Default: that of the broker's pod; required with a Kubeconfig.
	Namespace string `json:"namespace"`
	// LeaseDuration is how long a leader counts that is heard no more. Default 15s.
	LeaseDuration Duration `json:"leaseDuration"`
	// RenewDeadline is how long a leader goes on that can't renew; less than LeaseDuration. Default 10s.
	RenewDeadline Duration `json:"renewDeadline"`
	// RetryPeriod is how often either tries; at most two thirds of RenewDeadline. Default 2s.
	RetryPeriod Duration `json:"retryPeriod"`
}

func defaultKamaji() BrokerKamaji {
	return BrokerKamaji{
		Namespaces: []string{}, Protocol: "HTTPConnect",
		LeaderElection: BrokerLease{
			LeaseDuration: Duration{15 * time.Second}, RenewDeadline: Duration{10 * time.Second}, RetryPeriod: Duration{2 * time.Second},
		},
	}
}

func (k BrokerKamaji) validate(p *problems) {
	const path = "kamaji."
	if k.Kubeconfig != "" {
		p.check(path+"kubeconfig", absolute(k.Kubeconfig))
	}
	for i, n := range k.Namespaces {
		p.check(fmt.Sprintf("%snamespaces[%d]", path, i), dnsName(n))
	}
	if k.BrokerEndpoint != "" {
		p.check(path+"brokerEndpoint", certifiable(k.BrokerEndpoint))
	}
	p.check(path+"protocol", oneOf(k.Protocol, "HTTPConnect", "GRPC"))
	k.LeaderElection.validate(p)
	if !k.Enabled {
		return
	}
	if k.Image == "" {
		p.add(path+"image", "required with kamaji.enabled: the image of the sidecar, which is the broker's")
	}
	if k.Kubeconfig != "" && k.LeaderElection.Namespace == "" {
		p.add(path+"leaderElection.namespace", "required with kamaji.kubeconfig: the namespace of the management cluster that holds the Lease")
	}
}

func (l BrokerLease) validate(p *problems) {
	const path = "kamaji.leaderElection."
	if l.Namespace != "" {
		p.check(path+"namespace", dnsName(l.Namespace))
	}
	p.check(path+"leaseDuration", between(l.LeaseDuration, time.Second, 10*time.Minute))
	p.check(path+"renewDeadline", between(l.RenewDeadline, 0, l.LeaseDuration.Duration-1))
	p.check(path+"retryPeriod", between(l.RetryPeriod, 100*time.Millisecond, l.RenewDeadline.Duration*2/3))
}
