package egress

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// A tenant that dials what is not there gets a line for each, but not a disk full of them, and the line that
// comes after a gap says how wide it was.
func TestRefusedDialsAreAuditedWithinBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := refusals{log: audit.New(&out, nil, nil)}
		trace := wire.NewTrace()
		acme := pki.Identity{TrustDomain: "mooring.test", Role: pki.RoleAPIServer, Tenant: "acme"}
		for range 1000 {
			r.record(call{id: acme, source: "192.0.2.7:40000", target: "edge-9:10250"}, wire.NotFound, errors.New("not found"), trace)
		}
		r.record(call{id: acme, source: "192.0.2.7:40000", target: "edge-9:10250"}, wire.Canceled, errors.New("gone"), trace)
		globex := acme
		globex.Tenant = "globex"
		r.record(call{id: globex, source: "192.0.2.8:40000", target: "edge-1:22"}, wire.Denied, errors.New("denied"), trace)
		time.Sleep(time.Minute)
		r.record(call{id: acme, source: "192.0.2.7:40000", target: "edge-9:10250"}, wire.NotFound, errors.New("not found"), trace)

		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != auditedRefusalBurst+2 {
			t.Fatalf("%d lines for 1002 refusals, want %d", len(lines), auditedRefusalBurst+2)
		}
		var other, last audit.Event
		if err := errors.Join(json.Unmarshal([]byte(lines[len(lines)-2]), &other), json.Unmarshal([]byte(lines[len(lines)-1]), &last)); err != nil {
			t.Fatal(err)
		}
		if other.Tenant != "globex" || other.Detail["target"] != "edge-1:22" || other.Detail["dial"] != trace.String() || other.Source != "192.0.2.8:40000" || other.Actor != globex.String() {
			t.Errorf("another tenant's refusal came out as %+v", other)
		}
		if last.Detail["skipped"] != "900" {
			t.Errorf("the line after the gap says %+v, want 900 skipped", last.Detail)
		}
	})
}
