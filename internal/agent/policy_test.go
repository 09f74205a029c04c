package agent

import (
	"errors"
	"net/netip"
	"testing"
)

var kubeletAt = netip.MustParseAddrPort("127.0.0.1:10250")

func testPolicy() policy {
	own := []netip.Addr{netip.MustParseAddr("192.168.1.10"), netip.MustParseAddr("2001:db8::10"),
		// What must not serve even if the list were wrong:
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("::1"),
		netip.MustParseAddr("::ffff:10.0.0.9"), netip.MustParseAddr("fe80::1"),
	}
	return policy{
		node: "edge-1", port: 10250,
		addresses: func() []netip.Addr { return own },
		kubelet:   func() netip.AddrPort { return kubeletAt },
	}
}

var policyCases = []struct {
	target string
	want   bool
}{
	{"edge-1:10250", true},
	{"EDGE-1:10250", true},
	{"192.168.1.10:10250", true},
	{"[2001:db8::10]:10250", true},
	{"[2001:0db8:0:0::10]:10250", true}, // another spelling of the node's own address

	// another port, or a port in another form
	{"edge-1:10255", false},
	{"edge-1:22", false},
	{"edge-1:2379", false},
	{"192.168.1.10:6443", false},
	{"edge-1:010250", false},
	{"edge-1:+10250", false},
	{"edge-1:10250 ", false},
	{"edge-1:75786", false}, // 10250 + 65536
	{"edge-1:https", false},
	{"edge-1:", false},
	{"edge-1", false},
	{"edge-1:10250:10250", false},

	// another host
	{"edge-2:10250", false},
	{"edge-1.:10250", false},
	{"edge-1.example:10250", false},
	{"edge-1\x00:10250", false},
	{"\u212aedge-1:10250", false},
	{"localhost:10250", false},
	{"metadata.google.internal:10250", false},
	{"192.168.1.11:10250", false},
	{":10250", false},
	{"", false},
	{"user@edge-1:10250", false},
	{"edge-1/:10250", false},

	// loopback, link-local and metadata, in all spellings
	{"127.0.0.1:10250", false},
	{"127.0.0.1:2379", false},
	{"127.1:10250", false},
	{"2130706433:10250", false},
	{"0x7f000001:10250", false},
	{"0x7f.0.0.1:10250", false},
	{"0177.0.0.1:10250", false},
	{"192.168.001.010:10250", false},
	{"3232235786:10250", false}, // 192.168.1.10 as a number
	{"[::1]:10250", false},
	{"::1:10250", false},
	{"[::ffff:127.0.0.1]:10250", false},
	{"[::ffff:7f00:1]:10250", false},
	{"[::ffff:192.168.1.10]:10250", false}, // ours, but in a form that nobody honest uses
	{"[::ffff:10.0.0.9]:10250", false},
	{"[::127.0.0.1]:10250", false},
	{"[::]:10250", false},
	{"0.0.0.0:10250", false},
	{"0:10250", false},
	{"169.254.169.254:80", false},
	{"169.254.169.254:10250", false},
	{"[fe80::1]:10250", false},
	{"[fe80::1%eth0]:10250", false},
	{"[2001:db8::10%eth0]:10250", false},
	{"[fd00:ec2::254]:10250", false},
	{"224.0.0.1:10250", false},
	{"255.255.255.255:10250", false},

	// brackets where they don't belong, or missing
	{"[192.168.1.10]:10250", false},
	{"[edge-1]:10250", false},
	{"2001:db8::10:10250", false},
	{"[2001:db8::10:10250", false},
	{"[[2001:db8::10]]:10250", false},
}

func TestPolicy(t *testing.T) {
	p := testPolicy()
	for _, c := range policyCases {
		got, err := p.permit(c.target)
		if (err == nil) != c.want {
			t.Errorf("%q: permitted %t (%v), want %t", c.target, err == nil, err, c.want)
			continue
		}
		if err == nil && got != kubeletAt {
			t.Errorf("%q: dials %s, want the kubelet at %s", c.target, got, kubeletAt)
		}
		if err != nil && !errors.Is(err, errDenied) {
			t.Errorf("%q: refused with %v, which is no denial", c.target, err)
		}
	}
}

// FuzzFault30Policy checks by another way than the policy's own that nothing but the kubelet is ever permitted.
func FuzzFault30Policy(f *testing.F) {
	for _, c := range policyCases {
		f.Add(c.target)
	}
	for _, target := range fault30 {
		f.Add(target)
	}
	permitted := map[netip.AddrPort]bool{
		netip.MustParseAddrPort("192.168.1.10:10250"): true, netip.MustParseAddrPort("[2001:db8::10]:10250"): true,
	}
	p := testPolicy()
	f.Fuzz(func(t *testing.T, target string) {
		got, err := p.permit(target)
		if err != nil {
			if got.IsValid() {
				t.Fatalf("%q is denied and yet gives %s", target, got)
			}
			return
		}
		if got != kubeletAt {
			t.Fatalf("%q dials %s", target, got)
		}
		if len(target) == len("edge-1:10250") && sameName(target, "edge-1:10250") {
			return
		}
		ap, err := netip.ParseAddrPort(target)
		if err != nil || !permitted[ap] {
			t.Fatalf("%q was permitted", target)
		}
	})
}
