package config

// BrokerPeer is how brokers of one store reach each other's nodes.
type BrokerPeer struct {
	// Listen takes the sessions of other brokers (TCP, mTLS). Default empty: there is one broker only. Needs store.etcd.
	Listen string `json:"listen"`
	// Advertise is the host:port by which the others reach Listen. MOORING_PEER_ADVERTISE in the environment overrides it, for
	// where it is known at the start only, as a pod's address is. Default: Listen, if that has an address.
	Advertise string `json:"advertise"`
}

func (c BrokerPeer) validate(p *problems, shared bool) {
	if c.Listen == "" {
		if c.Advertise != "" {
			p.add("peer.listen", "required with peer.advertise")
		}
		return
	}
	p.check("peer.listen", listenAddr(c.Listen))
	if !shared {
		p.add("peer.listen", "several brokers need a store that they share: set store.etcd.endpoints")
	}
	if c.Advertise != "" {
		p.check("peer.advertise", hostPort(c.Advertise))
	}
}
