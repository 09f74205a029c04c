package tunnel

import (
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/relay"
)

const (
	// idleDay is what an idle agent may cost on the wire in a day: 1 MB, with all headers.
	idleDay = 1_000_000
	// beats is how many heartbeats that day has.
	beats = int64(24 * time.Hour / defaultHeartbeatInterval)
	// ipTCP is what IPv4 and TCP with timestamps add to a segment.
	ipTCP = 52
)

// TestHeartbeatBytes: an idle session costs at most 1 MB a day. Seen failing over TCP with a record for each header
// (frameConn.write writing head and body apart) and over QUIC with a HeartbeatInterval of 15 s.
func TestHeartbeatBytes(t *testing.T) {
	t.Parallel()
	most := idleDay / beats
	t.Run("quic", func(t *testing.T) {
		inFakeTime(t, relay.Config{}, Config{}, Config{}, func(t *testing.T, _, _ *Session, r *relay.Relay) {
			time.Sleep(time.Minute)
			before := r.Stats()
			time.Sleep(24 * time.Hour)
			up, down := spent(before.Up, r.Stats().Up), spent(before.Down, r.Stats().Down)
			day := up.Bytes + down.Bytes + ipv4*int64(up.Packets+down.Packets)
			t.Logf("%d bytes a day; a heartbeat is %.2f packets up and %.2f down, %d bytes", day,
				float64(up.Packets)/float64(beats), float64(down.Packets)/float64(beats), day/beats)
			if day > idleDay {
				t.Errorf("%d bytes a day", day)
			}
		})
	})
	t.Run("tcp", func(t *testing.T) { // in real time, and so a heartbeat by itself
		t.Parallel()
		agent, _, r := relayed(t, TransportTCP, Config{HeartbeatInterval: 20 * time.Millisecond}, Config{})
		answered := func() (n uint64, all bool) {
			agent.pulse.mu.Lock()
			defer agent.pulse.mu.Unlock()
			return agent.pulse.seq, agent.pulse.pingAt.IsZero()
		}
		// at returns what was spent by the n-th heartbeat, or by the one after that.
		at := func(n uint64) (uint64, relay.Stats) {
			var seq uint64
			var s relay.Stats
			waitFor(t, func() bool {
				before, all := answered()
				s = r.Stats()
				seq, _ = answered()
				return all && seq == before && seq >= n
			}, "heartbeats")
			return seq, s
		}
		from, before := at(3)
		to, after := at(from + 50)
		up, down := spent(before.Up, after.Up), spent(before.Down, after.Down)
		n := int64(to - from)
		// A segment each way, and one that acknowledges the pong: the ping is acknowledged by that.
		each := (up.Bytes+down.Bytes)/n + 3*ipTCP
		t.Logf("a heartbeat is %d bytes up and %d down in %d and %d segments for %d, %d bytes with the headers", up.Bytes/n, down.Bytes/n, up.Packets, down.Packets, n, each)
		if each > most {
			t.Errorf("a heartbeat costs %d bytes, want at most %d", each, most)
		}
		if up.Packets > int(n) || down.Packets > int(n) {
			t.Errorf("%d segments up and %d down for %d heartbeats", up.Packets, down.Packets, n)
		}
	})
}

// spent is what passed between two looks.
func spent(from, to relay.PathStats) relay.PathStats {
	return relay.PathStats{Packets: to.Packets - from.Packets, Bytes: to.Bytes - from.Bytes}
}
