package join

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/pki"
)

const (
	// markInterval is how far the disk may be behind what is known.
	markInterval = time.Hour
	// markRetry is the time between attempts at a disk that does not take it.
	markRetry = 10 * time.Minute
	maxMark   = 64
	// maxYear keeps a damaged mark from being taken for a time.
	maxYear = 2500
)

// Clock tells the time that certificates are judged by, on a box whose own clock may stand in 1970.
//
// It is the system's clock, but never behind a bound: the latest moment that somebody with the broker's CA
// has vouched for (by beginning a certificate's life there, or by saying the time over a verified
// connection), and what has passed since then while this process ran. The bound is kept on disk, so that a
// certificate that has long expired does not come to life again with a clock that was set back.
//
// Only what is vouched for raises the bound. The system's clock never does: one that once stood in the
// future would have the box refuse its broker until then. The broker's clock may have stood there too, and
// would take the whole fleet along; so where the system's clock and a verified broker's certificate agree on a
// time before the bound, they are believed, and the bound is taken back. Safe for concurrent use.
type Clock struct {
	file   string
	system func() time.Time
	// passed is the time since some moment, by a clock that nobody sets.
	passed func() time.Duration
	write  writeFile
	logger *slog.Logger

	mu sync.Mutex // guards the following fields
	// bound was reached when passed was at.
	bound time.Time
	at    time.Duration
	mark  time.Time // what is on disk
	// failed is when the disk last did not take it.
	failed  time.Duration
	failing bool
	read    bool // the mark has been read
	back    bool // the bound was taken back, and that was said
	// recalled is what recall took last.
	recalled time.Time
	// heard is the time that a broker said when passed was at heardAt; it says whether the system's clock is ahead.
	heard   time.Time
	heardAt time.Duration
}

type writeFile func(path string, data []byte, perm fs.FileMode) error

func newClock(file string, system func() time.Time, write writeFile, logger *slog.Logger) *Clock {
	begin := time.Now()
	return &Clock{file: file, system: system, passed: func() time.Duration { return time.Since(begin) }, write: write, logger: logger}
}

// Now is the system's time, or the bound if that is later.
func (c *Clock) Now() time.Time {
	now, floor := c.system(), c.Floor()
	if floor.After(now) {
		return floor
	}
	return now
}

// Floor is the time that it is at least; the zero time if nothing is known.
func (c *Clock) Floor() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor()
}

func (c *Clock) floor() time.Time {
	if !c.read {
		c.read = true
		c.readMark()
	}
	if c.bound.IsZero() {
		return time.Time{}
	}
	return c.bound.Add(c.passed() - c.at)
}

// Behind is how far the system's clock is known to be behind, or 0.
func (c *Clock) Behind() time.Duration {
	return max(0, c.Floor().Sub(c.system()))
}

// Ahead is how far the system's clock is ahead of what a broker has said in the last hour, or 0. It is for a
// person to know: nothing is judged by it.
func (c *Clock) Ahead() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	since := c.passed() - c.heardAt
	if c.heard.IsZero() || since > time.Hour { // older: the machine may have slept, which nothing counts
		return 0
	}
	return max(0, c.system().Sub(c.heard.Add(since)))
}

// System is what the system's clock says.
func (c *Clock) System() time.Time { return c.system() }

// Learn takes a bound that is vouched for, and keeps it on disk where it is news.
func (c *Clock) Learn(bound time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raise(bound)
	c.saveIfNews()
}

// recall takes a bound that is on disk elsewhere; each only once, or it would come again after it was taken back.
func (c *Clock) recall(bound time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !bound.Equal(c.recalled) {
		c.recalled = bound
		c.raise(bound)
	}
}

func (c *Clock) raise(bound time.Time) {
	if bound.After(c.floor()) {
		c.bound, c.at = bound, c.passed()
	}
}

// Tick puts the bound on disk if it has moved on by an hour. It is to be called now and then.
func (c *Clock) Tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.saveIfNews()
}

// saveIfNews keeps the disk within an hour of what is known, and no closer: bounds come with each answer of the
// broker, and disks wear.
func (c *Clock) saveIfNews() {
	if c.failing && c.passed()-c.failed < markRetry {
		return // a full disk wears too
	}
	if floor := c.floor(); !floor.IsZero() && floor.Sub(c.mark) >= markInterval {
		c.save()
	}
}

func (c *Clock) save() {
	floor := c.floor().UTC().Truncate(time.Second)
	if err := c.write(c.file, []byte(floor.Format(time.RFC3339)+"\n"), 0o600); err != nil {
		c.logger.Debug("the time that is known can't be kept on disk", "err", err)
		c.failed, c.failing = c.passed(), true
		return
	}
	c.mark, c.failing = floor, false
}

// readMark takes the mark on disk. One that is damaged is as good as absent: it is only a bound.
func (c *Clock) readMark() {
	data, err := durable.ReadFile(c.file, maxMark)
	if err == nil {
		c.mark, err = parseMark(data)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.logger.Warn("the time that was known is lost; the broker says it again", "err", err)
	}
	if c.mark.After(c.bound) {
		c.bound, c.at = c.mark, c.passed()
	}
}

func parseMark(data []byte) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, string(bytes.TrimSpace(data)))
	if err != nil || t.Year() > maxYear || t.Unix() < 0 {
		return time.Time{}, fmt.Errorf("%q is no time", data)
	}
	return t, nil
}

// verify judges a peer by the given verification at the right time: now, or the beginning of the peer's own
// certificate if that is later, for then it is at least that late, if only the CA says so. A peer that
// passes vouches for that moment.
func (c *Clock) verify(with func(now func() time.Time) pki.Verify) pki.Verify {
	return func(cs tls.ConnectionState) error {
		at, system := c.Now(), c.system()
		if len(cs.PeerCertificates) > 0 && cs.PeerCertificates[0].NotBefore.After(at) {
			at = cs.PeerCertificates[0].NotBefore
		}
		err := with(func() time.Time { return at })(cs)
		if err != nil && at.After(system) && with(func() time.Time { return system })(cs) == nil {
			c.takeBack(cs.PeerCertificates[0].NotBefore)
			return nil
		}
		if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return fmt.Errorf("%w; if this machine's clock (%s) is wrong, set it", err, system.UTC().Format(time.RFC3339))
		}
		if err != nil {
			return err
		}
		c.Learn(cs.PeerCertificates[0].NotBefore)
		return nil
	}
}

// takeBack lowers the bound to one that a broker vouches for whose certificate is valid by the system's clock, but
// not by the bound. What it costs: a broker's certificate that expired comes to life again for whoever has its key
// and also sets this machine's clock back into its 30 days. Not to do it could lock a fleet out for years, by
// one hour of a wrong clock on the platform.
func (c *Clock) takeBack(bound time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.back {
		c.logger.Warn("a broker once said a later time than its certificate and this machine's clock agree on now; going by these",
			"said", c.floor(), "now", c.system())
	}
	c.back, c.bound, c.at = true, bound, c.passed()
	c.save()
}

// learnSaid takes the time that a verified broker said, if its certificate can be that old: one whose own
// certificate is not valid by its own clock is not believed.
func (c *Clock) learnSaid(said time.Time, cs *tls.ConnectionState) {
	if said.IsZero() || cs == nil || len(cs.PeerCertificates) == 0 {
		return
	}
	leaf := cs.PeerCertificates[0]
	if said.Before(leaf.NotBefore) || said.After(leaf.NotAfter) {
		c.logger.Warn("the broker says a time at which its own certificate is not valid; not believed", "time", said, "valid_from", leaf.NotBefore, "valid_to", leaf.NotAfter)
		return
	}
	c.mu.Lock()
	c.heard, c.heardAt = said, c.passed()
	c.mu.Unlock()
	c.Learn(said)
}
