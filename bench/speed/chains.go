package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// chains starts all that are asked for, in the order of the tables.
func (b *bed) chains(o options, bin string, say func(string, ...any)) (all []*chain, err error) {
	unmatched := map[string]bool{}
	for _, s := range o.only {
		unmatched[s] = true
	}
	wanted := func(name string) bool {
		is := len(o.only) == 0 || name == limitName
		for _, s := range o.only {
			if strings.Contains(strings.ToLower(name), strings.ToLower(s)) {
				delete(unmatched, s)
				is = true
			}
		}
		return is
	}
	add := func(name string, make func() (*chain, error)) error {
		if !wanted(name) {
			return nil
		}
		say("starting %s", name)
		c, err := make()
		if err == nil {
			err = ready(b.ctx, c.dial)
		}
		all = append(all, c)
		return err
	}
	for _, s := range []struct {
		name string
		make func() (*chain, error)
	}{
		{"direct", b.direct},
		{limitName, func() (*chain, error) { return b.bare(limitName, overLegs, "TLS twice") }},
		{"bare yamux", func() (*chain, error) { return b.bare("bare yamux", overYamux, "TLS+yamux") }},
		{"bare quic-go", func() (*chain, error) { return b.bare("bare quic-go", overQUIC, "QUIC") }},
	} {
		if err := add(s.name, s.make); err != nil {
			return nil, err
		}
	}
	peers, err := b.peers(bin, wanted, say)
	if err != nil {
		return nil, err
	}
	all = append(all, peers...)
	ofMooring := func(name string, t tunnel.Transport) bool { return wanted(name + ", " + transportNames[t]) }
	var transports []tunnel.Transport
	for _, t := range []tunnel.Transport{tunnel.TransportTCP, tunnel.TransportQUIC} {
		any := false
		for _, name := range mooringNames {
			any = ofMooring(name, t) || any
		}
		if any {
			transports = append(transports, t)
		}
	}
	for s := range unmatched {
		return all, fmt.Errorf("--only %q: no chain has that in its name", s)
	}
	if len(transports) == 0 {
		return all, nil
	}
	say("building broker and edge-agent")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	if err := build(b.ctx, bin); err != nil {
		return nil, err
	}
	m, err := startMooring(b, bin)
	if err != nil {
		return nil, err
	}
	for _, t := range transports {
		say("starting Mooring over %s", transportNames[t])
		c, err := m.direct(t, bin)
		if err == nil {
			err = ready(b.ctx, c.dial)
		}
		if err != nil {
			return nil, err
		}
		s, err := m.sidecars(t, bin)
		if err != nil {
			return nil, err
		}
		for _, c := range append([]*chain{c}, s...) {
			if ofMooring(c.name, t) {
				all = append(all, c)
			}
		}
	}
	return all, nil
}
