package config

import (
	"fmt"

	"github.com/mooring-edge/mooring/internal/enrollapi"
)

// JoinBundle is all that a box needs to find its broker, trust it, and be let in. `broker token
// create` prints one. It holds a secret until its token is used up.
type JoinBundle struct {
	TypeMeta
	// Endpoint is the broker's public address, host:port.
	Endpoint string `json:"endpoint"`
	// Tenant is the control plane that the token belongs to; empty for a token of no tenant, whose boxes a claim or
	// an operator places.
	Tenant string `json:"tenant,omitempty"`
	// Token is "id.secret".
	Token string `json:"token"`
	// CACertHashes pin the broker's CA: "sha256:" and the hex of the SHA-256 of its public key
	// (kubeadm's form). The token is sent only to a server whose chain holds one of them.
	CACertHashes []string `json:"caCertHashes"`
}

// LoadJoinBundle reads and validates a file, like LoadAgent.
func LoadJoinBundle(path string) (*JoinBundle, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return DecodeJoinBundle(path, data)
}

// DecodeJoinBundle reads a bundle strictly; source names it in errors. No error quotes the token.
func DecodeJoinBundle(source string, data []byte) (*JoinBundle, error) {
	b := &JoinBundle{}
	if err := decode(source, data, KindJoinBundle, b, b.validate); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *JoinBundle) validate(p *problems) {
	p.check("endpoint", hostPort(b.Endpoint))
	if b.Tenant != "" {
		p.check("tenant", dnsName(b.Tenant))
	}
	_, err := enrollapi.ParseToken(b.Token)
	p.check("token", err)
	if len(b.CACertHashes) == 0 {
		p.check("caCertHashes", errRequired)
	}
	for i, h := range b.CACertHashes {
		p.check(fmt.Sprintf("caCertHashes[%d]", i), caHash(h))
	}
}
