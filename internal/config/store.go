package config

import (
	"net/url"
	"strings"
)

// BrokerStore says where the broker's state is kept, if not in DataDir.
type BrokerStore struct {
	// Etcd is a cluster that all brokers share; more than one broker needs it.
	Etcd BrokerEtcd `json:"etcd"`
}

// BrokerEtcd is an external etcd cluster.
type BrokerEtcd struct {
	// Endpoints are the members' client URLs, https://host:port. Default none: the store is embedded, in dataDir.
	Endpoints []string `json:"endpoints"`
	// CAFile verifies the members, CertFile and KeyFile show who the broker is. Required with https. The pair is read
	// anew for each connection.
	CAFile   string `json:"caFile"`
	CertFile string `json:"certFile"`
	KeyFile  string `json:"keyFile"`
	// Prefix goes before each key, where others use the cluster too: /name. Default none. Brokers of one fleet have the same.
	Prefix string `json:"prefix"`
}

func (s BrokerStore) validate(p *problems) {
	const path = "store.etcd."
	e := s.Etcd
	if len(e.Endpoints) == 0 {
		if e.CAFile != "" || e.CertFile != "" || e.KeyFile != "" || e.Prefix != "" {
			p.add(path+"endpoints", "required with the other settings of store.etcd")
		}
		return
	}
	secure := 0
	for i, v := range e.Endpoints {
		u, err := url.Parse(v)
		if err != nil || u.Host == "" || u.Port() == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" {
			p.add(path+"endpoints", "entry %d: want https://host:port, got %q", i+1, v)
			continue
		}
		if u.Scheme == "https" {
			secure++
		}
	}
	if secure > 0 && secure < len(e.Endpoints) {
		p.add(path+"endpoints", "some are https and some are not: want all of one kind")
	}
	for name, file := range map[string]string{"caFile": e.CAFile, "certFile": e.CertFile, "keyFile": e.KeyFile} {
		switch {
		case file != "":
			p.check(path+name, absolute(file))
		case secure > 0:
			p.add(path+name, "required with https endpoints")
		}
	}
	if e.Prefix != "" && (!strings.HasPrefix(e.Prefix, "/") || strings.HasSuffix(e.Prefix, "/") || strings.ContainsAny(e.Prefix, " \t\n")) {
		p.add(path+"prefix", "want /name, got %q", e.Prefix)
	}
}
