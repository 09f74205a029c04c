package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// NodeAddress is the same at every site: nobody hands out addresses across sites.
const (
	NodeAddress   = "192.168.1.10"
	routerAddress = "192.168.1.1"
)

// Site is an edge site: a LAN whose only way out is a NAT router that lets through the broker's port
// and nothing else, and counts both.
type Site struct {
	Name   string
	Router host.Netns
	LAN    host.Netns // the one node's network
	// WANAddress is the router's: where the broker sees the site's connections come from.
	WANAddress string

	env    *Env
	shared bool // the platform's brokers are two
}

// Leaving is what came out of a site, in packets.
type Leaving struct {
	UDP, TCP int64 // to the broker's port
	ICMP     int64 // errors about the broker's own packets, such as "port unreachable" while no agent runs
	Other    int64 // anything else: dropped
	// OtherTo says where Other was going.
	OtherTo string
}

// routerRules see every packet that leaves the site before anything is decided about it, errors about
// known connections apart: those need the connection tracker, so the hook lies just after it.
const routerRules = `table inet site {
	counter broker_udp { }
	counter broker_tcp { }
	counter broker_icmp { }
	counter other { }
	set other_to { type ipv4_addr . inet_proto; flags dynamic; size 100; }
	chain leaving {
		type filter hook prerouting priority -150; policy accept
		iifname != "lan" return
		ip daddr BROKER udp dport PORT counter name broker_udp accept
		ip daddr BROKER tcp dport PORT counter name broker_tcp accept
		ip daddr BROKER ct state related ip protocol icmp counter name broker_icmp accept
		ip daddr . ip protocol != @other_to add @other_to { ip daddr . ip protocol }
		counter name other drop
	}
	chain returning {
		type filter hook forward priority 0; policy drop
		iifname "lan" accept
		iifname "wan" ct state established,related accept
	}
	chain router {
		type filter hook input priority 0; policy drop
		ct state related accept
	}
	chain nat {
		type nat hook postrouting priority 100; policy accept
		oifname "wan" masquerade
	}
}
`

// AddSite makes a site. It has no machine yet.
func (p *Platform) AddSite(name string) (*Site, error) {
	s := &Site{Name: name, env: p.env, shared: p.Shared}
	var err error
	if s.Router, err = host.AddNetns(p.env.run.Name(name + "-router")); err != nil {
		return nil, err
	}
	if s.LAN, err = host.AddNetns(p.env.run.Name(name)); err != nil {
		return nil, err
	}
	if s.WANAddress, err = p.addWAN(s.Router); err != nil {
		return nil, err
	}
	rules := strings.NewReplacer("BROKER", p.brokerSet(), "PORT", BrokerPort).Replace(routerRules)
	return s, errors.Join(
		s.Router.Sysctl("net/ipv4/ip_forward", "1"),
		s.Router.Nft(rules), // before the first packet
		s.Router.IP("link add lan type veth peer name eth0 netns "+string(s.LAN)),
		s.Router.IP("addr add "+routerAddress+"/24 dev lan"),
		s.Router.IP("link set lan up"),
		s.LAN.IP("addr add "+NodeAddress+"/24 dev eth0"),
		s.LAN.IP("link set eth0 up"),
		s.LAN.IP("route add default via "+routerAddress),
		s.Router.IP("link set wan up"),
	)
}

// Left reads the counters.
func (s *Site) Left() (Leaving, error) {
	var l Leaving
	argv := s.Router.Argv("nft", "--json", "list", "counters")
	out, err := host.Output(argv[0], argv[1:]...)
	if err != nil {
		return l, err
	}
	var reply struct {
		Nftables []struct {
			Counter *struct {
				Name    string
				Packets int64
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &reply); err != nil {
		return l, fmt.Errorf("read nftables counters: %w", err)
	}
	seen := 0
	for _, item := range reply.Nftables {
		if item.Counter == nil {
			continue
		}
		if to := map[string]*int64{
			"broker_udp": &l.UDP, "broker_tcp": &l.TCP, "broker_icmp": &l.ICMP, "other": &l.Other,
		}[item.Counter.Name]; to != nil {
			*to = item.Counter.Packets
			seen++
		}
	}
	if seen != 4 {
		return l, fmt.Errorf("read nftables counters of %s: found %d of 4", s.Name, seen)
	}
	argv = s.Router.Argv("nft", "list", "set", "inet", "site", "other_to")
	if out, err = host.Output(argv[0], argv[1:]...); err != nil {
		return l, err
	}
	if _, elements, ok := strings.Cut(out, "elements = {"); ok {
		l.OtherTo = strings.Join(strings.Fields(strings.Trim(elements, " {}\n\t")), " ")
	}
	return l, nil
}
