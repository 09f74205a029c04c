package tunnel

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// memoryLife is how long it is remembered that a network let no QUIC through: firewalls change too.
	memoryLife = 7 * 24 * time.Hour
	// maxNetworks bounds what is remembered; the networks seen longest ago go first.
	maxNetworks = 32
	// lastingQUIC is how long a session over QUIC must have lived for its end to say nothing against QUIC.
	lastingQUIC = 10 * time.Minute
	// maxStrikes bounds the doubling of the time between two probes.
	maxStrikes = 16
)

// policy is the one place in which it is decided which transport is tried first, when QUIC is tried again by one who is
// on TCP, and what the end of a session says about its transport. It reads no clock and dials nothing; a Client's
// loop is the only one to use it.
//
// A network is known by a name (ClientConfig.Network). What is remembered of one decides only what is tried first: the
// other transport always follows, so memory that is wrong costs a head start and nothing else.
//
//	unknown, or QUIC won here last   QUIC, and TCP beside it after the head start
//	TCP won here last                TCP, and QUIC beside it after the head start; on TCP: QUIC probed now and then
//	QUIC died in use a moment ago    TCP first; if TCP comes up at once, that is a strike against QUIC
//
// Strikes double the time to the next probe. A session over QUIC that lasts takes them all back.
type policy struct {
	probeMin, probeMax time.Duration
	networks           map[string]*network
	suspect            string // the network on which QUIC died in use, until the next attempt has told more
	suspected          bool
	news               bool // something was learned that is worth being kept
}

// network is what is remembered of one.
type network struct {
	Transport Transport `json:"transport"` // that won here last
	Strikes   int       `json:"strikes,omitempty"`
	At        time.Time `json:"at"`

	kept time.Time // the At that was remembered last
}

// keepEvery is how often it is worth a write that a network is still as it was.
const keepEvery = 24 * time.Hour

func newPolicy(probeMin, probeMax time.Duration) *policy {
	return &policy{probeMin: probeMin, probeMax: probeMax, networks: map[string]*network{}}
}

// first returns the transport that is to be tried first.
func (p *policy) first(name string, now time.Time) Transport {
	if p.suspected && p.suspect == name {
		return TransportTCP
	}
	if n := p.networks[name]; n != nil && n.Transport == TransportTCP && now.Sub(n.At) < memoryLife && !now.Before(n.At) {
		return TransportTCP
	}
	return TransportQUIC
}

// up takes note of a session that came up by t in a race of both.
func (p *policy) up(name string, t Transport, now time.Time) {
	n := p.networks[name]
	if n == nil {
		n = &network{}
		p.networks[name] = n
	}
	if t == TransportTCP && p.suspected && p.suspect == name {
		p.strike(n)
	}
	p.suspected = false
	p.news = p.news || n.Transport != t || now.Sub(n.kept).Abs() >= keepEvery
	n.Transport, n.At = t, now
	p.prune()
}

// failed takes note of an attempt by which no transport came up: the network is away, or the broker, and neither transport is to blame.
func (p *policy) failed() { p.suspected = false }

// down takes note of the end of a session by t, which lasted for so long.
func (p *policy) down(name string, t Transport, code wire.Code, lasted time.Duration) {
	p.suspected = false
	if t != TransportQUIC {
		return
	}
	if n := p.networks[name]; n != nil && lasted >= lastingQUIC && n.Strikes > 0 {
		n.Strikes, p.news = 0, true
	}
	if code == wire.HeartbeatLost {
		p.suspect, p.suspected = name, true
	}
}

// probeAfter is how long one who is on TCP waits before QUIC is tried again.
func (p *policy) probeAfter(name string) time.Duration {
	strikes := 0
	if n := p.networks[name]; n != nil {
		strikes = n.Strikes
	}
	return max(min(p.probeMin<<strikes, p.probeMax), p.probeMin)
}

// probeFailed takes note of a probe that came to nothing.
func (p *policy) probeFailed(name string) {
	if n := p.networks[name]; n != nil {
		p.strike(n)
	}
}

func (p *policy) strike(n *network) {
	if n.Strikes < maxStrikes {
		n.Strikes++
		p.news = true
	}
}

// prune forgets the networks seen longest ago.
func (p *policy) prune() {
	for len(p.networks) > maxNetworks {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(p.networks)), func(a, b string) int {
			return p.networks[a].At.Compare(p.networks[b].At)
		})
		delete(p.networks, oldest)
	}
}

// remembers returns the memory as bytes, for restore; nil while there is nothing new in it.
func (p *policy) remembers() []byte {
	if !p.news {
		return nil
	}
	b, err := json.Marshal(p.networks)
	if err != nil {
		return nil // a map of strings, numbers and times: can't be
	}
	p.news = false
	for _, n := range p.networks {
		n.kept = n.At
	}
	return b
}

// maxMemory bounds what restore looks at, in bytes.
const maxMemory = 64 << 10

// restore takes what remembers returned. What makes no sense is left out: it is a memory, not a setting.
func (p *policy) restore(b []byte) {
	var all map[string]*network
	if len(b) > maxMemory || json.Unmarshal(b, &all) != nil {
		return
	}
	for name, n := range all {
		if n != nil && (n.Transport == TransportQUIC || n.Transport == TransportTCP) {
			n.Strikes, n.kept = min(max(n.Strikes, 0), maxStrikes), n.At
			p.networks[name] = n
		}
	}
	p.prune()
}
