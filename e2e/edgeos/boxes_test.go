package edgeos

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// off has a box switch itself off.
func (b *box) off(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.s.ctx, 4*time.Minute)
	defer cancel()
	if err := b.PowerDown(ctx); err != nil {
		t.Fatalf("%v; the end of its console:\n%s", err, b.tail(25))
	}
}

// rebooted: the box comes back as what it is. Nothing lets it in any more but its key: the seed is out of it, and the token
// is revoked.
func (s *suite) rebooted(t *testing.T, r *row) {
	before, err := s.b.record(s.ctx)
	must(t, err)
	id := s.b.ask(t, "cat", "/etc/machine-id")
	s.b.keep(t)
	token, err := s.token(firstToken)
	must(t, err)
	_, err = s.platform.BrokerCommand(s.ctx, "token", "revoke", token.ID)
	must(t, err)
	s.b.off(t)
	must(t, s.b.Eject())
	must(t, s.b.PowerOn())
	s.note(r, "Ready %.0f s after power-on", s.b.back(t, s.b.Since(), bootLimit).Seconds())
	s.b.stillHas(t)
	after, err := s.b.record(s.ctx)
	must(t, err)
	if after.KeyHash != before.KeyHash {
		t.Error("its key has changed")
	}
	if now := s.b.ask(t, "cat", "/etc/machine-id"); now != id {
		t.Errorf("its machine ID was %s and is %s", id, now)
	}
}

// clonedDisk: a copy of the box's disk in another machine, both on at once: the broker lets neither in, and names both places.
func (s *suite) clonedDisk(t *testing.T, r *row) {
	s.b.off(t)
	clone, err := s.plug(siteClone, serialB, s.b.Disk())
	must(t, err)
	must(t, s.b.PowerOn())
	must(t, clone.PowerOn())
	start := time.Now()
	var known record
	s.b.await(t, "the quarantine", bootLimit, func(ctx context.Context) (err error) {
		if known, err = s.b.record(ctx); err == nil && (known.State != "quarantined" || len(known.Boxes) != 2) {
			err = fmt.Errorf("the broker says %+v", known)
		}
		return err
	})
	s.note(r, "quarantined %.0f s after power-on", time.Since(start).Seconds())
	if known.Connected {
		t.Error("one of the two is connected")
	}
	for _, b := range []*box{s.b, clone} {
		named := false
		for _, k := range known.Boxes {
			named = named || strings.HasPrefix(k.RemoteAddr, b.site.WANAddress+":")
		}
		if !named {
			t.Errorf("no box is named that comes from %s: %+v", b.site.WANAddress, known.Boxes)
		}
	}
	s.b.PowerCut()
	clone.PowerCut()
}
