package front

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// inRecords puts the handshake message of a ClientHello that is one record into records of these sizes, the last of which is
// used to the end.
func inRecords(hello []byte, sizes []int) []byte {
	message, out := hello[5:], []byte{}
	for i := 0; len(message) > 0; i++ {
		n := min(max(1, sizes[min(i, len(sizes)-1)]), len(message))
		out = append(out, 22, 3, 1)
		out = binary.BigEndian.AppendUint16(out, uint16(n))
		out, message = append(out, message[:n]...), message[n:]
	}
	return out
}

// peekInSegments has the hello read as it comes in segments of these sizes.
func peekInSegments(b []byte, sizes []int) (clientHello, []byte, error) {
	c, s := net.Pipe()
	defer s.Close()
	go func() {
		defer c.Close()
		for i := 0; len(b) > 0; i++ {
			n := min(max(1, sizes[min(i, len(sizes)-1)]), len(b))
			if _, err := c.Write(b[:n]); err != nil {
				return
			}
			b = b[n:]
		}
	}()
	hello, replay, err := peekHello(s)
	if err != nil {
		return hello, nil, err
	}
	all, err := io.ReadAll(replay)
	return hello, all, err
}

// TestHelloInFragments: a hello is read in whatever records and segments it comes, up to the limit, and given again byte by byte.
//
// Seen failing with recorder.Read that reads once only, and with maxHello 4096 (the larger ones).
func TestHelloInFragments(t *testing.T) {
	large := append(slices.Repeat([]string{strings.Repeat("x", 200)}, 30), "h2")
	for name, cfg := range map[string]*tls.Config{
		"small": config("h2"), "post-quantum": {ServerName: "edge.example", NextProtos: []string{"h2"}, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}},
		"TLS 1.2": {ServerName: "edge.example", NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12}, "large": config(large...),
	} {
		whole := clientHelloBytes(t, cfg)
		for _, records := range [][]int{{1 << 14}, {1}, {3, 1}, {4}, {5, 100}, {100}, {1000}, {1, 1 << 14}} {
			for _, segments := range [][]int{{1 << 20}, {1}, {5}, {4, 1, 1400}, {536}} {
				b := inRecords(whole, records)
				hello, all, err := peekInSegments(b, segments)
				if len(b) > maxHello {
					if !errors.Is(err, errTooLarge) {
						t.Errorf("%s in records of %v (%d bytes): %v, want it refused as too large", name, records, len(b), err)
					}
					continue
				}
				if err != nil || hello.serverName != "edge.example" || !slices.Contains(hello.protocols, "h2") || string(all) != string(b) {
					t.Errorf("%s in records of %v and segments of %v: %q, %d of %d bytes, %v", name, records, segments, hello.serverName, len(all), len(b), err)
				}
				if len(hello.raw) > len(b) || string(hello.raw) != string(b[:len(hello.raw)]) {
					t.Errorf("%s: what was read is not what came", name)
				}
			}
		}
	}
}

func FuzzHelloInFragments(f *testing.F) {
	whole := clientHelloBytes(f, config("h2"))
	f.Add([]byte{1}, []byte{1})
	f.Add([]byte{5, 200}, []byte{0, 3, 255})
	f.Fuzz(func(t *testing.T, records, segments []byte) {
		sizes := func(b []byte) []int {
			out := []int{}
			for _, n := range b {
				out = append(out, int(n))
			}
			return append(out, 256)
		}
		b := inRecords(whole, sizes(records))
		hello, all, err := peekInSegments(b, sizes(segments))
		if err != nil || hello.serverName != "edge.example" || string(all) != string(b) {
			t.Fatalf("%q, %d of %d bytes, %v", hello.serverName, len(all), len(b), err)
		}
	})
}
