package agent

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/join"
)

// checkup returns the doctor's checks by name.
func checkup(t *testing.T, cfg *config.Agent) map[string]Check {
	t.Helper()
	out := map[string]Check{}
	for _, c := range Doctor(t.Context(), cfg, nil, cfg.Socket) {
		out[c.Name] = c
		if c.Found == "" || (c.Result == CheckFailed) != (c.Next != "") && c.Result != CheckWarn {
			t.Errorf("%+v: a failure needs a next step, and nothing else does", c)
		}
	}
	return out
}

func expect(t *testing.T, checks map[string]Check, name string, result CheckResult, found string) {
	t.Helper()
	if c := checks[name]; c.Result != result || !strings.Contains(c.Found, found) {
		t.Errorf("%s: %+v, want %s with %q", name, c, result, found)
	}
}

func TestDoctor(t *testing.T) {
	s := newShore(t)
	cfg := s.node()

	before := checkup(t, cfg)
	expect(t, before, "join bundle", CheckOK, "tenant acme")
	expect(t, before, "identity", CheckFailed, "not enrolled")
	expect(t, before, "broker by TCP", CheckOK, "answers")
	expect(t, before, "broker by UDP", CheckOK, "answers")
	expect(t, before, "clock", CheckOK, "")
	expect(t, before, "agent", CheckFailed, cfg.Socket)
	expect(t, before, "ports", CheckOK, "")

	run(t, cfg)
	until(t, cfg.Socket, "ready", isReady)
	sessions := len(s.up)
	after := checkup(t, cfg)
	expect(t, after, "identity", CheckOK, "node edge-1 of tenant acme")
	expect(t, after, "tunnel", CheckOK, "up by quic")
	expect(t, after, "kubelet", CheckOK, "running")
	expect(t, after, "ports", CheckOK, "")
	expect(t, after, "broker by UDP", CheckOK, "")
	if len(s.up) != sessions || !until(t, cfg.Socket, "ready", isReady).Tunnel.Connected {
		t.Error("the doctor disturbed the tunnel")
	}
}

func TestDoctorMeetsAnImpostor(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	other, err := pki.NewCA("other.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(cfg.JoinFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.JoinFile, []byte(strings.Replace(string(data), s.broker.CA.Hash(), other.Hash(), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, checkup(t, cfg), "broker by TCP", CheckFailed, "is not the broker")
}

func TestVersionNegotiation(t *testing.T) {
	probe := quicProbe()
	answer := append([]byte{0x80, 0, 0, 0, 0, 8}, probe[15:23]...)
	answer = append(append(answer, 8), probe[6:14]...)
	if !isVersionNegotiation(append(answer, 0, 0, 0, 1), probe) {
		t.Error("an answer is not recognized")
	}
	for i := range answer {
		bad := append([]byte(nil), answer...)
		bad[i] ^= 0xff
		if isVersionNegotiation(bad, probe) {
			t.Errorf("recognized with byte %d wrong", i)
		}
		if isVersionNegotiation(answer[:i], probe) {
			t.Errorf("recognized when cut at %d", i)
		}
	}
}

// The next step fits the state: a broker that is reached and says no is not to be looked for on the network.
func TestDoctorNextStepOfTunnel(t *testing.T) {
	enrolled := new(join.Identity)
	for _, c := range []struct {
		reason string
		id     *join.Identity
		next   string
	}{
		{"Quarantined", enrolled, "an operator decides"},
		{"Revoked", enrolled, "an operator decides"},
		{"Down", enrolled, "checks of the broker"},
		{"NotReported", nil, "once the node is enrolled"},
	} {
		d := &doctor{id: c.id, status: &Status{Conditions: []health.Condition{{Type: condTunnel, Status: health.False, Reason: c.reason, Message: "down"}}}}
		d.tunnel()
		if len(d.checks) != 1 || !strings.Contains(d.checks[0].Next, c.next) {
			t.Errorf("%s: %+v, want the next step %q", c.reason, d.checks, c.next)
		}
	}
}
