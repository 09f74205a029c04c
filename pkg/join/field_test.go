package join

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/pkg/join/jointest"
)

// TestBootstrapFollowsTheIdentity: a node that was let in again as another while its bootstrap was tried over and over
// is bootstrapped as what it is now.
func TestBootstrapFollowsTheIdentity(t *testing.T) {
	s := newSite(t)
	j := New(s.cfg)
	now, err := j.Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := *now
	before.Node = "edge-0"
	// A grant that was made out to the old name is of no use either.
	if _, err := j.join(t.Context(), &before); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	rec, err := j.Bootstrap(ctx, &before)
	if err != nil || rec.Node != jointest.Node {
		t.Fatalf("%+v, %v; reported:\n%s", rec, err, s.errs())
	}
	if _, err := j.Ready(now); err != nil {
		t.Error(err)
	}
}

// TestUselessCertificateIsNoSuccess: one that the kubelet could not start with would be asked for again at once, and
// again.
func TestUselessCertificateIsNoSuccess(t *testing.T) {
	s := newSite(t)
	id, err := s.enrol(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	j := New(s.cfg)
	g, err := j.join(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM := s.api.KubeletPair(t, "edge-9", time.Now().Add(time.Hour))
	if err := os.WriteFile(j.pendingFile(), keyPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := readKey(j.pendingFile())
	if err != nil {
		t.Fatal(err)
	}
	var later laterError
	if err := j.keepPair(g.record, certPEM, key); !errors.As(err, &later) || !strings.Contains(err.Error(), "edge-9") {
		t.Errorf("err %v", err)
	}
	if _, err := os.Stat(j.pendingFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the key is kept, and with it the request that was answered so: %v", err)
	}
}

// TestDiskThatCanNotBeReadAnyMore: what the process knows serves on, for connections and renewals.
func TestDiskThatCanNotBeReadAnyMore(t *testing.T) {
	for name, how := range damages {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			j := New(s.cfg)
			id, err := j.Enrol(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			damage(t, j.identityFile(), how)
			damage(t, j.keyFile(), how)
			if _, err := j.join(t.Context(), id); err != nil {
				t.Errorf("a connection to the broker: %v", err)
			}
			renewed, err := j.Renew(t.Context())
			if err != nil || renewed.Fingerprint() != id.Fingerprint() {
				t.Errorf("renewed: %v", err)
			}
			if _, err := j.Reset(); err != nil {
				t.Fatal(err)
			}
			if _, err := j.Renew(t.Context()); !errors.Is(err, ErrNotEnrolled) {
				t.Errorf("after a reset: %v", err)
			}
		})
	}
}

// TestRenewalKeepsANewerBundle: CAs that came over the tunnel while a renewal was under way are not undone by its
// answer.
func TestRenewalKeepsANewerBundle(t *testing.T) {
	s := newSite(t)
	s.mustAll()
	j := New(s.cfg)
	both := string(s.broker.CA.CertPEM()) + string(newCA(t, "mooring.test").CertPEM())
	j.cfg.after = func(m milestone) error {
		if m != renewAnswered {
			return nil
		}
		_, err := j.SaveBundle(both)
		return err
	}
	id, err := j.Renew(t.Context())
	if err != nil || len(id.Trusts()) != 2 {
		t.Errorf("trusts %v, %v", id.Trusts(), err)
	}
	if disk, err := New(s.cfg).LoadIdentity(); err != nil || disk.CABundle != both || disk.Certificate != id.Certificate {
		t.Errorf("on disk: %v", err)
	}
}

// TestNudgeAboutTheIssuerIsNotLost: one that came while a renewal was under way is about the new certificate too.
func TestNudgeAboutTheIssuerIsNotLost(t *testing.T) {
	s := newSite(t)
	s.mustAll()
	nudges := make(chan Nudge, 1)
	var sent atomic.Bool
	s.cfg.after = func(m milestone) error {
		if m == renewAnswered && !sent.Swap(true) {
			nudges <- NudgeIssuer
		}
		return nil
	}
	nudges <- NudgeRefused
	renewed := s.keeping(nudges)
	s.next(renewed)
	s.next(renewed)
}

// TestClockAheadOfEveryCertificate: with a clock that is ahead by more than a certificate lasts, each new one is due
// the moment that it comes. That must not become a loop that wears the disk and the broker.
func TestClockAheadOfEveryCertificate(t *testing.T) {
	j := New(Config{StateDir: t.TempDir()})
	week := 7 * 24 * time.Hour
	if got := j.gapLimit(week); got != 30*time.Minute {
		t.Errorf("certificates of a week: up to %s apart", got)
	}
	if got := j.gapLimit(10 * time.Minute); got > 4*time.Minute {
		t.Errorf("certificates of ten minutes: up to %s apart", got)
	}
	var longest time.Duration
	for range 200 {
		longest = max(longest, j.gap(40, week))
	}
	if longest < 5*time.Minute {
		t.Errorf("after 40 renewals in a row the next is at most %s later", longest)
	}
	if isSoon(7*time.Minute, 10*time.Minute) || !isSoon(time.Second, 10*time.Minute) || !isSoon(9*time.Minute, week) || isSoon(time.Hour, week) {
		t.Error("what counts as too soon")
	}
}

// TestClockAheadIsSaid: by how much, if that is known; and where the broker can't be believed for it, that it may be so.
func TestClockAheadIsSaid(t *testing.T) {
	s := newSite(t)
	id := s.mustAll()
	week := 7 * 24 * time.Hour
	s.broker.Serve(t, time.Now(), 2*week)
	s.cfg.Now = func() time.Time { return time.Now().Add(week) }
	j := New(s.cfg)
	if _, err := j.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := j.Clock().Ahead(); got < week-time.Minute || got > week+time.Minute {
		t.Errorf("ahead by %s", got)
	}
	j.clock.passed = func() time.Duration { return 2 * time.Hour }
	if got := j.Clock().Ahead(); got != 0 {
		t.Errorf("hours later, ahead by %s", got)
	}
	s.cfg.Now = func() time.Time { return time.Now().Add(52 * week) }
	if _, err := New(s.cfg).renewOnce(t.Context(), id); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("a year ahead: %v", err)
	}
}

// TestIdentityFromTheFuture: a box that was enrolled by a broker whose clock stood years ahead is renewed when that is
// put right, and does not think itself behind any more.
func TestIdentityFromTheFuture(t *testing.T) {
	s := newSite(t)
	s.broker.Now = func() time.Time { return time.Now().Add(5 * 365 * 24 * time.Hour) }
	id, err := s.enrol(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.broker.Now = time.Now
	j := New(s.cfg)
	if renewed, err := j.Renew(t.Context()); err != nil || renewed.Fingerprint() != id.Fingerprint() || renewed.NotAfter().After(time.Now().Add(2*time.Hour)) {
		t.Fatalf("%+v, %v", renewed, err)
	}
	if behind := j.Clock().Behind(); behind > time.Hour {
		t.Errorf("behind by %s", behind)
	}
	if behind := New(s.cfg).Clock().Behind(); behind > time.Hour {
		t.Errorf("after a restart behind by %s", behind)
	}
}

// TestWaitingWritesNothing: a box may wait for months to be approved.
func TestWaitingWritesNothing(t *testing.T) {
	s := newSite(t)
	var writes atomic.Int32
	s.cfg.WriteFile = func(path string, data []byte, perm fs.FileMode) error {
		writes.Add(1)
		return durable.WriteFile(path, data, perm)
	}
	for range 20 {
		s.broker.FailNext(fails(enrollapi.CodePending))
	}
	if _, err := s.enrol(s.cfg); err != nil {
		t.Fatal(err)
	}
	// The probe, the key, the identity, the clock.
	if got := writes.Load(); got > 5 {
		t.Errorf("%d writes for one enrolment that was waited for", got)
	}
}

// TestClockOnADiskThatTakesNothing: it is tried seldom.
func TestClockOnADiskThatTakesNothing(t *testing.T) {
	c := newHandClock(t, t.TempDir())
	c.write = func(string, []byte, fs.FileMode) error { c.writes++; return syscall.ENOSPC }
	c.Learn(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
	for range 720 { // an hour
		c.pass(5 * time.Second)
		c.Tick()
	}
	if c.writes > 8 {
		t.Errorf("%d attempts in an hour", c.writes)
	}
}
