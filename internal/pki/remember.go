package pki

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

// maxRemembered bounds the chains that are remembered; each takes some 300 bytes.
const maxRemembered = 1024

// VerifyRepeated is VerifyPeer for peers that connect again and again with one certificate, such as an API server that dials its nodes: a
// chain that was found good is remembered, and while roots returns the same pool and all of the chain is within its dates, its
// signatures are not computed once more. That the peer holds the key is proven in each handshake all the same, by crypto/tls, and
// check is asked in each. Only chains that are good take room. Safe for concurrent use.
func VerifyRepeated(roots func() *x509.CertPool, usage x509.ExtKeyUsage, now func() time.Time, check func(Identity) error) func(tls.ConnectionState) error {
	known := chains{all: map[chainKey]goodChain{}}
	verify := func(certs []*x509.Certificate, pool *x509.CertPool) (Identity, error) {
		key, at := keyOf(certs), now()
		if id, ok := known.find(key, pool, at); ok {
			return id, nil
		}
		id, chain, err := verifyChain(certs, pool, usage, at)
		// Who is refused, or presents what proves nothing beside, is not remembered: each variation would take the place of another's.
		if err == nil && accept(check, id) == nil && isPart(certs, chain) {
			known.add(key, newGoodChain(id, chain, pool))
		}
		return id, err
	}
	return verifyBy(roots, verify, check)
}

// isPart says that a chain has all of these certificates.
func isPart(certs, chain []*x509.Certificate) bool {
	for _, c := range certs {
		if !slices.ContainsFunc(chain, c.Equal) {
			return false
		}
	}
	return true
}

// chainKey is the hash of what a peer presented.
type chainKey [sha256.Size]byte

func keyOf(certs []*x509.Certificate) (key chainKey) {
	h := sha256.New()
	var length [4]byte
	for _, c := range certs {
		binary.BigEndian.PutUint32(length[:], uint32(len(c.Raw)))
		h.Write(length[:])
		h.Write(c.Raw)
	}
	h.Sum(key[:0])
	return key
}

// goodChain is one that was verified.
type goodChain struct {
	id          Identity
	pool        *x509.CertPool
	from, until time.Time // the dates of all certificates in it
}

func newGoodChain(id Identity, chain []*x509.Certificate, pool *x509.CertPool) goodChain {
	g := goodChain{id: id, pool: pool, from: chain[0].NotBefore, until: chain[0].NotAfter}
	for _, c := range chain[1:] {
		if c.NotBefore.After(g.from) {
			g.from = c.NotBefore
		}
		if c.NotAfter.Before(g.until) {
			g.until = c.NotAfter
		}
	}
	return g
}

// chains are those that were verified, no more than maxRemembered.
type chains struct {
	mu  sync.Mutex // guards all
	all map[chainKey]goodChain
}

func (c *chains) find(key chainKey, pool *x509.CertPool, now time.Time) (Identity, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, ok := c.all[key]
	if !ok {
		return Identity{}, false
	}
	if g.pool != pool || now.Before(g.from) || now.After(g.until) {
		delete(c.all, key)
		return Identity{}, false
	}
	return g.id, true
}

func (c *chains) add(key chainKey, g goodChain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, again := c.all[key]; !again && len(c.all) >= maxRemembered {
		for k := range c.all { // any one
			delete(c.all, k)
			break
		}
	}
	c.all[key] = g
}
