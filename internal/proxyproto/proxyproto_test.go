package proxyproto

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
)

func tcp(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// v2 is a header of version 2 as the specification draws it.
func v2(cmd, family byte, body string) string {
	return signature + string([]byte{cmd, family, byte(len(body) >> 8), byte(len(body))}) + body
}

const addresses4 = "\xc0\x00\x02\x07\xc6\x33\x64\x01\x10\x92\x20\xfb" // 192.0.2.7:4242 to 198.51.100.1:8443

var addresses6 = "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x07" + "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + "\x10\x92\x20\xfb"

// TestRead: each header, also byte by byte, and that what follows it is left.
func TestRead(t *testing.T) {
	for name, tc := range map[string]struct{ header, want string }{
		"v2 IPv4":            {v2(0x21, 0x11, addresses4), "192.0.2.7:4242"},
		"v2 IPv6":            {v2(0x21, 0x21, addresses6), "[2001:db8::7]:4242"},
		"v2 TLVs":            {v2(0x21, 0x11, addresses4+"\x04\x00\x03abc"), "192.0.2.7:4242"},
		"v2 as long as may":  {v2(0x21, 0x11, addresses4+strings.Repeat("x", MaxLength-len(addresses4))), "192.0.2.7:4242"},
		"v2 IPv4 in IPv6":    {v2(0x21, 0x21, strings.Repeat("\x00", 10)+"\xff\xff\xc0\x00\x02\x07"+strings.Repeat("\x00", 16)+"\x10\x92\x20\xfb"), "192.0.2.7:4242"},
		"v2 LOCAL":           {v2(0x20, 0, ""), ""},
		"v2 LOCAL with more": {v2(0x20, 0x11, addresses4), ""},
		"v2 UNSPEC":          {v2(0x21, 0, "xyz"), ""},
		"v2 unix":            {v2(0x21, 0x31, strings.Repeat("x", 216)), ""},
		"v1 IPv4":            {"PROXY TCP4 192.0.2.7 198.51.100.1 4242 8443\r\n", "192.0.2.7:4242"},
		"v1 IPv6":            {"PROXY TCP6 2001:db8::7 2001:db8::1 4242 8443\r\n", "[2001:db8::7]:4242"},
		"v1 unknown":         {"PROXY UNKNOWN\r\n", ""},
		"v1 unknown with":    {"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", ""},
	} {
		for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, func(r io.Reader) io.Reader { return r }} {
			rest := strings.NewReader(tc.header + "hello")
			got, err := Read(wrap(rest))
			if err != nil || got.IsValid() != (tc.want != "") || got.IsValid() && got.String() != tc.want {
				t.Errorf("%s: %s, %v; want %s", name, got, err, tc.want)
			}
			if left, _ := io.ReadAll(rest); string(left) != "hello" {
				t.Errorf("%s: %q is left, want all that follows", name, left)
			}
			for n := range tc.header {
				if _, err := Read(strings.NewReader(tc.header[:n])); err == nil {
					t.Errorf("%s: its first %d bytes were taken", name, n)
				}
			}
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for name, header := range map[string]string{
		"a ClientHello":     "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaa",
		"HTTP":              "GET / HTTP/1.1\r\n\r\n",
		"version 3":         v2(0x31, 0x11, addresses4),
		"a command":         v2(0x22, 0x11, addresses4),
		"UDP":               v2(0x21, 0x12, addresses4),
		"a family":          v2(0x21, 0x41, addresses4),
		"short addresses":   v2(0x21, 0x11, addresses4[:11]),
		"short IPv6":        v2(0x21, 0x21, addresses6[:35]),
		"longer than may":   v2(0x21, 0x11, strings.Repeat("x", MaxLength+1)),
		"v1 without an end": "PROXY TCP4 " + strings.Repeat("1", 200),
		"v1 UDP":            "PROXY UDP4 192.0.2.7 198.51.100.1 4242 8443\r\n",
		"v1 no address":     "PROXY TCP4 192.0.2 198.51.100.1 4242 8443\r\n",
		"v1 other family":   "PROXY TCP4 2001:db8::7 2001:db8::1 4242 8443\r\n",
		"v1 no port":        "PROXY TCP4 192.0.2.7 198.51.100.1 99999 8443\r\n",
		"v1 too few":        "PROXY TCP4 192.0.2.7 198.51.100.1\r\n",
	} {
		if got, err := Read(strings.NewReader(header)); err == nil {
			t.Errorf("%s: taken, as %s", name, got)
		}
	}
}

func TestAppend(t *testing.T) {
	for _, tc := range []struct {
		client, server net.Addr
		want           string
	}{
		{tcp("192.0.2.7:4242"), tcp("198.51.100.1:8443"), v2(0x21, 0x11, addresses4)},
		{tcp("[2001:db8::7]:4242"), tcp("[2001:db8::1]:8443"), v2(0x21, 0x21, addresses6)},
		{&net.UDPAddr{IP: net.ParseIP("192.0.2.7"), Port: 4242}, tcp("[::ffff:198.51.100.1]:8443"), v2(0x21, 0x11, addresses4)},
		{nil, tcp("198.51.100.1:8443"), v2(0x20, 0, "")},
		{&net.UnixAddr{Name: "x"}, nil, v2(0x20, 0, "")},
	} {
		if got := Append(nil, tc.client, tc.server); string(got) != tc.want {
			t.Errorf("%v to %v: %q, want %q", tc.client, tc.server, got, tc.want)
		}
	}
	for _, server := range []net.Addr{nil, tcp("[2001:db8::1]:8443")} { // of mixed families, and of none
		got, err := Read(bytes.NewReader(Append(nil, tcp("192.0.2.7:4242"), server)))
		if err != nil || got.String() != "192.0.2.7:4242" {
			t.Errorf("to %v: read back as %s, %v", server, got, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		v2(0x21, 0x11, addresses4), v2(0x21, 0x21, addresses6+"\x04\x00\x03abc"), v2(0x20, 0, ""),
		"PROXY TCP4 192.0.2.7 198.51.100.1 4242 8443\r\n", "PROXY UNKNOWN\r\n", "PROXY ", signature,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		got, err := Read(r)
		used := len(data) - r.Len()
		if used > 16+MaxLength {
			t.Fatalf("%d bytes were read", used)
		}
		if err != nil || !got.IsValid() {
			return
		}
		// What was understood is written so that it is understood again.
		again, err := Read(bytes.NewReader(Append(nil, net.TCPAddrFromAddrPort(got), nil)))
		if err != nil || again != got {
			t.Fatalf("%s was read back as %s, %v", got, again, err)
		}
	})
}
