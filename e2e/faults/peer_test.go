package faults

import (
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/wan"
	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const heartbeatTimeout = 2500 * time.Millisecond

// scaled are the product's timers, with a second for each half a minute or so.
var scaled = wan.Timing{
	HeartbeatInterval: time.Second, HeartbeatTimeout: heartbeatTimeout, ProbeTimeout: time.Second, OpenTimeout: time.Second,
}

// slack is what a busy machine may add to a time of scaled.
const slack = 2500 * time.Millisecond

// TestFault08HalfOpenNS: once the session is up the path goes dead, and nobody is told.
func TestFault08HalfOpenNS(t *testing.T) {
	// Mechanism: the heartbeat at each end. Seen failing with a HeartbeatTimeout of an hour and a ProbeTimeout of one: on QUIC
	// neither end is ever free, on TCP it takes what the kernel does (tcpUserTimeout, 15 s).
	t.Run("both ends are freed", func(t *testing.T) {
		eachTransport(t, func(t *testing.T, tr tunnel.Transport) {
			w := network(t, relay.Settings{})
			brk, agent := pair(t, w, wan.BrokerConfig{Timing: scaled}, wan.AgentConfig{Transport: tr, Timing: scaled})
			do(t, agent, 5*time.Second, "echo 1 100")
			w.Link.Set(func(s *relay.Settings) { s.Both(relay.Path{Hole: true}) })
			began := time.Now()
			for end, e := range map[string]wan.Event{"agent": await(t, agent, 20*time.Second, "down"), "broker": await(t, brk, 20*time.Second, "gone")} {
				if took := e.At.Sub(began); took > heartbeatTimeout+slack {
					t.Errorf("the %s's end was free after %s, want %s: %s", end, took, heartbeatTimeout, e.Err)
				}
			}
			w.Link.Set(func(s *relay.Settings) { *s = relay.Settings{} })
			await(t, agent, 20*time.Second, "up")
		})
	})
	// Mechanism: the end of a session waits lingerTime for its goodbye to get out, and as long for it to be read. Seen
	// failing with a lingerTime of a minute.
	t.Run("close never hangs", func(t *testing.T) {
		eachTransport(t, func(t *testing.T, tr tunnel.Transport) {
			w := network(t, relay.Settings{})
			brk, agent := pair(t, w, wan.BrokerConfig{}, wan.AgentConfig{Transport: tr})
			do(t, agent, 5*time.Second, "echo 1 100")
			stuck := make(chan error, 2)
			for _, p := range []*wan.Proc{agent, brk} {
				go func() {
					_, err := p.Do(20*time.Second, "uprate 10s")
					stuck <- err
				}()
			}
			awaitStats(t, w, "a copy each way", func(s relay.Stats) bool { return s.Up.Bytes > 1<<20 && s.Down.Bytes > 1<<20 })
			w.Link.Set(func(s *relay.Settings) { s.Both(relay.Path{Hole: true}) })
			for end, p := range map[string]*wan.Proc{"agent": agent, "broker": brk} {
				if e := do(t, p, 20*time.Second, "close"); e.Took > 2*time.Second+slack {
					t.Errorf("the %s's Close took %s", end, e.Took)
				}
			}
			for range cap(stuck) {
				must(t, <-stuck)
			}
		})
	})
}

// TestFault13PeerStoppedNS: the agent's process is stopped, and its kernel goes on acknowledging what arrives on TCP.
// Mechanism: Config.MaxPending and OpenTimeout at the broker, and its heartbeat; of the last two either would do for the end of
// the session. Seen failing with a MaxPending of 256 (no open is refused), an OpenTimeout of a minute (on TCP the opens end with
// the session), and with HeartbeatTimeout and ProbeTimeout of an hour (the session lives on).
func TestFault13PeerStoppedNS(t *testing.T) {
	const opens, pending = 150, 100
	eachTransport(t, func(t *testing.T, tr tunnel.Transport) {
		w := network(t, relay.Settings{})
		timing := scaled
		timing.MaxPending = pending
		brk, agent := pair(t, w, wan.BrokerConfig{Timing: timing}, wan.AgentConfig{Transport: tr, Timing: timing})
		do(t, brk, 5*time.Second, "echo 1 100")
		must(t, agent.Freeze())
		began := time.Now()
		e := do(t, brk, 20*time.Second, "opens %d echo", opens)
		if e.Values[wire.Overloaded.String()] != opens-pending || e.Values[wire.DialTimeout.String()] != pending {
			t.Errorf("%s; want %d opens refused at once, and %d timed out", e, opens-pending, pending)
		}
		if e.Took > time.Second+slack {
			t.Errorf("the last open was answered after %s, want %s", e.Took, time.Second)
		}
		gone := await(t, brk, 20*time.Second, "gone")
		if took := gone.At.Sub(began); took > heartbeatTimeout+slack {
			t.Errorf("the session was given up after %s, want %s", took, heartbeatTimeout)
		}
		must(t, agent.Thaw())
		await(t, agent, 20*time.Second, "up")
		await(t, brk, 5*time.Second, "session")
		do(t, brk, 5*time.Second, "echo 1 100")
	})
}
