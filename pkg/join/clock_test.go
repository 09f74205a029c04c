package join

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/enrollapi"
)

var epoch = time.Date(1970, 1, 1, 0, 0, 9, 0, time.UTC)

// handClock is a Clock whose time passes by hand.
type handClock struct {
	*Clock
	system time.Time
	passed time.Duration
	writes int
}

func newHandClock(t *testing.T, dir string) *handClock {
	h := &handClock{system: epoch}
	h.Clock = newClock(filepath.Join(dir, "clock"), func() time.Time { return h.system }, func(path string, data []byte, perm fs.FileMode) error {
		h.writes++
		return durable.WriteFile(path, data, perm)
	}, slog.New(slog.DiscardHandler))
	h.Clock.passed = func() time.Duration { return h.passed }
	return h
}

// pass lets time go by, for a system clock that nobody sets too.
func (h *handClock) pass(d time.Duration) {
	h.passed += d
	h.system = h.system.Add(d)
}

func TestClock(t *testing.T) {
	dir := t.TempDir()
	c := newHandClock(t, dir)
	if c.Now() != epoch || c.Behind() != 0 || !c.Floor().IsZero() {
		t.Errorf("with nothing known: %s, behind by %s", c.Now(), c.Behind())
	}
	today := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	c.Learn(today)
	if !c.Now().Equal(today) || c.Behind() != today.Sub(epoch) {
		t.Errorf("with a bound: %s, behind by %s", c.Now(), c.Behind())
	}
	c.Learn(today.Add(-time.Hour)) // no news
	c.pass(10 * time.Minute)
	if want := today.Add(10 * time.Minute); !c.Now().Equal(want) {
		t.Errorf("ten minutes on: %s, want %s", c.Now(), want)
	}

	// A restart, with the clock at its beginning again: the mark holds.
	c = newHandClock(t, dir)
	if got := c.Now(); got.Before(today) || got.After(today.Add(time.Hour)) {
		t.Errorf("after a restart: %s", got)
	}
	// The clock is set: it counts from there on.
	c.system = today.Add(400 * 24 * time.Hour)
	if !c.Now().Equal(c.system) || c.Behind() != 0 {
		t.Errorf("with a clock that is right: %s, behind by %s", c.Now(), c.Behind())
	}
	// And it does not raise the bound: one that stood in the future for a while does no harm.
	c.Tick()
	c.system = today.Add(time.Hour)
	if !c.Now().Equal(c.system) {
		t.Errorf("a clock that came back from the future: %s, want %s", c.Now(), c.system)
	}
}

func TestClockWritesSeldom(t *testing.T) {
	c := newHandClock(t, t.TempDir())
	today := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	c.Learn(today)
	for range 100 {
		c.Learn(today.Add(time.Second))
		c.Tick()
	}
	if c.writes != 1 {
		t.Errorf("%d writes, want the one of the bound", c.writes)
	}
	for range 24 * 60 {
		c.pass(time.Minute)
		c.Tick()
	}
	if c.writes < 23 || c.writes > 25 {
		t.Errorf("%d writes in a day, want one an hour", c.writes)
	}
	again := newHandClock(t, filepath.Dir(c.file))
	if got := again.Now(); got.Before(today.Add(23 * time.Hour)) {
		t.Errorf("after a restart a day later: %s", got)
	}
}

func TestClockMarkIsTorn(t *testing.T) {
	for name, data := range map[string]string{"empty": "", "zeroes": "\x00\x00\x00\x00", "garbage": "yesterday", "year 9999": "9999-01-01T00:00:00Z", "long": strings.Repeat("2", 100)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "clock"), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if c := newHandClock(t, dir); c.Now() != epoch {
			t.Errorf("%s: taken for %s", name, c.Now())
		}
	}
}

// FuzzMark: whatever is in the file, it is a time of this age or none.
func FuzzMark(f *testing.F) {
	f.Add([]byte("2026-11-23T12:00:00Z\n"))
	f.Add([]byte("0000-00-00T00:00:00+99:99"))
	f.Fuzz(func(t *testing.T, data []byte) {
		mark, err := parseMark(data)
		if err == nil && (mark.Unix() < 0 || mark.Year() > maxYear) {
			t.Fatalf("%q is taken for %s", data, mark)
		}
	})
}

// TestFault41NoClock: a box that thinks it is 1970 finds its broker by the pinned CA, learns the time from it,
// joins, and loses nothing.
func TestFault41NoClock(t *testing.T) {
	s := newSite(t)
	begin := time.Now()
	s.cfg.Now = func() time.Time { return epoch.Add(time.Since(begin)) }
	id := s.mustAll()
	key := s.key()
	if got, _, owner := s.broker.Counts(); got != 1 || owner != key {
		t.Errorf("%d enrolments, of key %s, want one of %s", got, owner, key)
	}
	j := New(s.cfg)
	if got := j.Clock().Now(); got.Before(begin.Add(-10*time.Minute)) || got.After(time.Now().Add(time.Minute)) {
		t.Errorf("the box takes it for %s", got)
	}
	if j.Clock().Behind() < 50*365*24*time.Hour {
		t.Errorf("behind by %s", j.Clock().Behind())
	}

	// It is switched off and on, in 1970 again: it goes on from its files, and asks for nothing.
	begin = time.Now()
	if again := s.mustAll(); again.Fingerprint() != id.Fingerprint() || !again.NotAfter().Equal(id.NotAfter()) {
		t.Errorf("after a restart: %+v", again)
	}
	if enrols, joins, _ := s.broker.Counts(); enrols != 1 || joins != 1 || s.broker.Renews() != 0 || s.api.Requests() != 1 {
		t.Errorf("%d enrolments, %d joins, %d renewals, %d requests: want one, one, none, one", enrols, joins, s.broker.Renews(), s.api.Requests())
	}
	renewed, err := New(s.cfg).Renew(t.Context())
	if err != nil || renewed.Fingerprint() != id.Fingerprint() {
		t.Errorf("renewed in 1970: %+v, %v", renewed, err)
	}
	if aside, _ := filepath.Glob(filepath.Join(s.cfg.StateDir, "*.damaged-*")); len(aside) != 0 {
		t.Errorf("set aside: %v", aside)
	}
}

// TestFault41OldBroker: a broker's certificate that had expired long before the time that the box knows of is
// refused, whatever the box's clock says now.
func TestFault41OldBroker(t *testing.T) {
	s := newSite(t)
	id := s.mustAll()
	j := New(s.cfg)
	j.Clock().Learn(time.Now().Add(400 * 24 * time.Hour))
	s.cfg.Now = func() time.Time { return epoch }
	s.cfg.StopOnRefusal = false
	later := New(s.cfg) // a restart
	if _, err := later.renewOnce(t.Context(), id); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("a broker of last year: %v", err)
	}
	if _, err := later.enrolOnce(t.Context()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("at enrolment: %v", err)
	}
	if n, _, _ := s.broker.Counts(); n != 1 || s.broker.Renews() != 0 {
		t.Errorf("%d enrolments and %d renewals reached it", n, s.broker.Renews())
	}
	if now, err := later.LoadIdentity(); err != nil || now.Fingerprint() != id.Fingerprint() {
		t.Errorf("the identity: %v, %v", now, err)
	}
}

// TestFault41BrokerInTheFuture: a platform whose clock once stood years ahead has told its nodes so. When it is
// right again, a node whose own clock is right comes back by itself.
func TestFault41BrokerInTheFuture(t *testing.T) {
	s := newSite(t)
	id := s.mustAll()
	New(s.cfg).Clock().Learn(time.Now().Add(10 * 365 * 24 * time.Hour))
	later := New(s.cfg) // a restart
	if behind := later.Clock().Behind(); behind < 9*365*24*time.Hour {
		t.Fatalf("the bound did not last: behind by %s", behind)
	}
	renewed, err := later.Renew(t.Context())
	if err != nil || renewed.Fingerprint() != id.Fingerprint() {
		t.Fatalf("renewed: %+v, %v", renewed, err)
	}
	for name, j := range map[string]*Joiner{"at once": later, "after a restart": New(s.cfg)} {
		if behind := j.Clock().Behind(); behind > time.Hour {
			t.Errorf("%s: the box still thinks itself behind by %s", name, behind)
		}
	}
}

func TestABrokerThatSaysNonsenseIsNotBelieved(t *testing.T) {
	s := newSite(t)
	s.cfg.Now = func() time.Time { return epoch }
	for _, said := range []time.Time{{}, epoch, time.Now().Add(20 * 365 * 24 * time.Hour)} {
		s.broker.Tamper(func(r *enrollapi.EnrolResponse) { r.Time = said })
		s.mustAll()
		if _, err := New(s.cfg).Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		floor := New(s.cfg).Clock().Floor()
		if d := time.Since(floor); d < 0 || d > 10*time.Minute {
			t.Errorf("the broker says %s, the box takes it for %s", said, floor)
		}
	}
}
