package wire

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestDocAgrees compares docs/tunnel-protocol.md with the constants.
func TestDocAgrees(t *testing.T) {
	b, err := os.ReadFile("../../../docs/tunnel-protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	want := []string{
		"`" + ALPN + "`",
		fmt.Sprintf("| 1 | `%#x` |", magic),
		fmt.Sprintf("length of the target, big endian, at most %d |", MaxTarget),
		fmt.Sprintf("length of the trace context, 0 or %d |", TraceSize),
		fmt.Sprintf("length of the message, big endian, at most %d |", MaxMessage),
		fmt.Sprintf("unsigned varint (LEB128), at most %d |", MaxFrame),
		fmt.Sprintf("**bundle**, at most %d KiB", MaxFrame>>10),
		fmt.Sprintf("**status**, at most %d KiB", maxStatusPayload>>10),
		fmt.Sprintf("| `trusts` | at most %d hashes", MaxTrusts),
		fmt.Sprintf("**hello**, at most %d KiB", maxHelloPayload>>10),
		fmt.Sprintf("| `features` | at most %d names of 1 to %d bytes |", MaxFeatures, maxFeatureLen),
		fmt.Sprintf("| `addresses` | at most %d IP addresses", MaxAddresses),
		fmt.Sprintf("| `node` | the node's name, at most %d bytes |", maxNameLen),
		fmt.Sprintf("at most %d bytes |\n| `features`", maxVersionLen),
		fmt.Sprintf("| `instance` | %d digits of lower case hex", InstanceLen),
		fmt.Sprintf("| `ancestors` | at most %d earlier instances", MaxAncestors),
		fmt.Sprintf("%d = *send*", ResetSend), fmt.Sprintf("%d = *stop*", ResetStop),
	}
	for _, k := range []Kind{KindControl, KindDial, KindAPI, KindForward} {
		want = append(want, fmt.Sprintf("| %d | %s |", byte(k), k))
	}
	for c := OK; c <= Quarantined; c++ {
		want = append(want, fmt.Sprintf("| %d | %s | %d |", byte(c), c, c.HTTPStatus()))
	}
	for f, name := range map[FrameType]string{FrameHello: "hello", FramePing: "ping", FramePong: "pong", FrameReset: "reset", FrameDrain: "drain", FrameGoodbye: "goodbye", FrameBundle: "bundle", FrameStatus: "status", FrameQuiet: "quiet"} {
		want = append(want, fmt.Sprintf("| %d | %s |", byte(f), name))
	}
	for _, w := range want {
		if !strings.Contains(doc, w) {
			t.Errorf("docs/tunnel-protocol.md does not contain %q", w)
		}
	}
}
