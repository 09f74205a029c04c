package tunnel

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestDocAgrees compares docs/tunnel-protocol.md with the defaults; that of the wire is compared there.
func TestDocAgrees(t *testing.T) {
	b, err := os.ReadFile("../../docs/tunnel-protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := strings.Join(strings.Fields(string(b)), " ")
	c := Config{}.populate()
	for _, want := range []string{
		fmt.Sprintf("then every %.0f s", c.HeartbeatInterval.Seconds()),
		fmt.Sprintf("dead after %.0f s", c.HeartbeatTimeout.Seconds()),
		fmt.Sprintf("idle timeout %.0f s", c.HeartbeatTimeout.Seconds()),
		fmt.Sprintf("the other side has %.0f s to let", c.ProbeTimeout.Seconds()),
		fmt.Sprintf("no answer within its %.0f s", c.OpenTimeout.Seconds()),
		fmt.Sprintf("| an open | %.0f s |", c.OpenTimeout.Seconds()),
		fmt.Sprintf("within %.0f s of the connection", c.HandshakeTimeout.Seconds()),
		fmt.Sprintf("each direction by itself | %d |", c.MaxStreams),
		fmt.Sprintf("each direction | %d, at most %d |", c.MaxPending, yamuxBacklog),
		fmt.Sprintf("the open ones and %d |", maxLive(c)-c.MaxStreams),
		fmt.Sprintf("At most %d opens are unacknowledged", yamuxBacklog),
		fmt.Sprintf("up to %d such are remembered", maxEarlyResets),
		fmt.Sprintf("| window of a new stream | %d KiB | %d KiB |", quicInitialWindow>>10, baseWindow>>10),
		fmt.Sprintf("to (`StreamWindow`) | %d MiB | %[1]d MiB |", c.StreamWindow>>20),
		fmt.Sprintf("takes half of it within %.0f s |", keepUpTime.Seconds()/2),
		fmt.Sprintf("(half of its window takes %.0f s)", slackTime.Seconds()/2),
		fmt.Sprintf("(`SessionWindow`) | %d MiB | %[1]d MiB beyond %d KiB each |", c.SessionWindow>>20, baseWindow>>10),
		fmt.Sprintf("| %d MiB and %d KiB a stream: %d MiB with %d each way |", c.SessionWindow>>20, baseWindow>>10, (c.SessionWindow+2*c.MaxStreams*baseWindow)>>20, c.MaxStreams),
		fmt.Sprintf("more than %d handshakes a second, %d at once, or %d under way", retryRate, retryBurst, maxUnproven),
		fmt.Sprintf("Datagrams are of %d bytes at most", quicPacketSize),
		fmt.Sprintf("waits up to %.0f s for that", lingerTime.Seconds()),
		fmt.Sprintf("beside it after %.1f s", defaultHeadStart.Seconds()),
		fmt.Sprintf("a span: %.1f s, doubled each time up to %.0f s", defaultBackoffMin.Seconds(), defaultBackoffMax.Seconds()),
		fmt.Sprintf("a session that lasted %.0f s", lastingSession.Seconds()),
	} {
		if !strings.Contains(doc, want) {
			t.Errorf("docs/tunnel-protocol.md does not contain %q", want)
		}
	}
}
