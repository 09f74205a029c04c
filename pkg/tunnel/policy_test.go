package tunnel

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestPolicy(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	type step func(p *policy)
	var (
		upQUIC  = func(p *policy) { p.up("home", TransportQUIC, now) }
		upTCP   = func(p *policy) { p.up("home", TransportTCP, now) }
		dies    = func(p *policy) { p.down("home", TransportQUIC, wire.HeartbeatLost, time.Minute) }
		diesOld = func(p *policy) { p.down("home", TransportQUIC, wire.HeartbeatLost, time.Hour) }
		ends    = func(p *policy) { p.down("home", TransportQUIC, wire.Unavailable, time.Minute) }
		endsTCP = func(p *policy) { p.down("home", TransportTCP, wire.HeartbeatLost, time.Minute) }
		failed  = func(p *policy) { p.failed() }
		probed  = func(p *policy) { p.probeFailed("home") }
	)
	for name, tc := range map[string]struct {
		steps []step
		at    time.Duration
		first Transport
		probe time.Duration
	}{
		"nothing known":                          {nil, 0, TransportQUIC, time.Minute},
		"QUIC won":                               {[]step{upQUIC}, 0, TransportQUIC, time.Minute},
		"TCP won":                                {[]step{upTCP}, 0, TransportTCP, time.Minute},
		"TCP won long ago":                       {[]step{upTCP}, memoryLife, TransportQUIC, time.Minute},
		"TCP won in the future":                  {[]step{upTCP}, -time.Hour, TransportQUIC, time.Minute},
		"the session over TCP ended":             {[]step{upTCP, endsTCP}, 0, TransportTCP, time.Minute},
		"QUIC died":                              {[]step{upQUIC, dies}, 0, TransportTCP, time.Minute},
		"QUIC died, and TCP did not come up":     {[]step{upQUIC, dies, failed}, 0, TransportQUIC, time.Minute},
		"QUIC died, and TCP did":                 {[]step{upQUIC, dies, upTCP}, 0, TransportTCP, 2 * time.Minute},
		"QUIC died twice":                        {[]step{upQUIC, dies, upTCP, upQUIC, dies, upTCP}, 0, TransportTCP, 4 * time.Minute},
		"QUIC died, lasted, and died":            {[]step{upQUIC, dies, upTCP, upQUIC, diesOld, upTCP}, 0, TransportTCP, 2 * time.Minute},
		"the broker ended a session over QUIC":   {[]step{upQUIC, ends}, 0, TransportQUIC, time.Minute},
		"three probes failed":                    {[]step{upTCP, probed, probed, probed}, 0, TransportTCP, 8 * time.Minute},
		"very many probes failed":                {append([]step{upTCP}, repeat(step(probed), 99)...), 0, TransportTCP, 30 * time.Minute},
		"a probe took over":                      {[]step{upTCP, probed, upQUIC}, 0, TransportQUIC, 2 * time.Minute},
		"a probe took over, and the broker ends": {[]step{upTCP, upQUIC, ends}, 0, TransportQUIC, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPolicy(time.Minute, 30*time.Minute)
			for _, s := range tc.steps {
				s(p)
			}
			if got := p.first("home", now.Add(tc.at)); got != tc.first {
				t.Errorf("first %s, want %s", got, tc.first)
			}
			if got := p.probeAfter("home"); got != tc.probe {
				t.Errorf("probe after %s, want %s", got, tc.probe)
			}
			if p.first("elsewhere", now) != TransportQUIC {
				t.Error("another network is judged by this one")
			}
			// What was learned outlives the process, but for a suspicion of the moment.
			again := newPolicy(time.Minute, 30*time.Minute)
			kept := p.remembers()
			again.restore(kept)
			if !p.suspected && again.first("home", now.Add(tc.at)) != tc.first || again.probeAfter("home") != tc.probe {
				t.Errorf("remembered otherwise: %s", kept)
			}
		})
	}
}

func repeat[T any](v T, n int) []T {
	all := make([]T, n)
	for i := range all {
		all[i] = v
	}
	return all
}

// TestPolicyKeepsWhatIsNew: flash wears out; a box that reconnects each minute writes nothing for it.
func TestPolicyKeepsWhatIsNew(t *testing.T) {
	p := newPolicy(time.Minute, time.Hour)
	now := time.Now()
	writes := 0
	for range 7 * 24 * 60 {
		now = now.Add(time.Minute)
		p.up("home", TransportTCP, now)
		if p.remembers() != nil {
			writes++
		}
	}
	if writes != 7 {
		t.Errorf("written %d times in a week", writes)
	}
}

func TestPolicyForgetsTheOldest(t *testing.T) {
	p := newPolicy(time.Minute, time.Hour)
	now := time.Now()
	for i := range 2 * maxNetworks {
		p.up(fmt.Sprint(i), TransportTCP, now.Add(time.Duration(i)*time.Second))
	}
	if len(p.networks) != maxNetworks || p.networks["0"] != nil || p.networks[fmt.Sprint(2*maxNetworks-1)] == nil {
		t.Errorf("%d networks are remembered, of them the first: %v", len(p.networks), p.networks["0"])
	}
}

func FuzzRestore(f *testing.F) {
	f.Add([]byte(`{"home":{"transport":"tcp","strikes":3,"at":"2026-01-02T03:04:05Z"}}`))
	f.Add([]byte(`{"home":{"transport":"carrier pigeon","strikes":-3}}`))
	f.Add([]byte(`{"home":null}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := newPolicy(time.Minute, time.Hour)
		p.restore(b)
		if len(p.networks) > maxNetworks {
			t.Fatalf("%d networks", len(p.networks))
		}
		for name := range p.networks {
			if d := p.probeAfter(name); d < time.Minute || d > time.Hour {
				t.Fatalf("probe after %s", d)
			}
			p.first(name, time.Now())
		}
		if b := p.remembers(); b != nil {
			t.Fatalf("nothing new is %q", b)
		}
		p.up("here", TransportTCP, time.Now())
		if b := p.remembers(); !json.Valid(b) {
			t.Fatalf("remembers %q", b)
		}
	})
}
