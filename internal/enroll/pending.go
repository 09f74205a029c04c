package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/mooring-edge/mooring/internal/store"
)

const (
	// maxPendingPerToken and maxPending bound the boxes that wait; a box beyond is told to come again.
	maxPendingPerToken = 1000
	maxPending         = 5000
	// pendingFor is how long a box that does not come any more is kept in the list.
	pendingFor = 30 * 24 * time.Hour
	// seenEvery is how exactly LastSeen is kept: boxes ask each half minute, and each write is one to disk.
	seenEvery = 5 * time.Minute
	// changeEvery is how often what a waiting box says of itself may change: each time is a write, and a line for the operator.
	changeEvery = time.Minute
	// fullFor is how long a full list is taken as full without counting again.
	fullFor = 5 * time.Second
	// pendingRetry is when a waiting box should ask again.
	pendingRetry = 30 * time.Second
	// minPrefix is how much of a fingerprint an operator has to type, in hex digits.
	// Fewer can be had by trying: who knows a box's fingerprint makes himself a key that begins alike.
	minPrefix = 16
)

// PendingRecord is a box that waits for an operator, or that one has denied.
type PendingRecord struct {
	// SPKI is the fingerprint of its key, "sha256:...".
	SPKI    string `json:"spki"`
	TokenID string `json:"tokenID"`
	// Tenant is the token's, or a claim's; empty: the operator has to say.
	Tenant string `json:"tenant,omitempty"`
	// Told is the tenant that the box was told it belongs to, and takes no other; may be empty.
	Told string `json:"told,omitempty"`
	// Hostname, Serial and Version are the box's own words; Remote is where it came from last.
	Hostname string `json:"hostname,omitempty"`
	Serial   string `json:"serial,omitempty"`
	Version  string `json:"version,omitempty"`
	Remote   string `json:"remote,omitempty"`
	// Reason is why it waits.
	Reason    string    `json:"reason"`
	FirstSeen time.Time `json:"firstSeen"`
	// LastSeen is exact to five minutes.
	LastSeen time.Time `json:"lastSeen"`
	// DeniedAt is when an operator denied the box; nil: it waits.
	DeniedAt *time.Time `json:"deniedAt,omitempty"`
}

// Errors of boxes that wait, for errors.Is.
var (
	// ErrPendingNotFound says that no box with such a fingerprint waits.
	ErrPendingNotFound = errors.New("no such box waits")
	// ErrPendingFull says that too many boxes wait already.
	ErrPendingFull = errors.New("too many boxes wait for approval")
)

// PendingError says that an operator has to decide on the box.
type PendingError struct {
	Fingerprint, Reason string
	// New is true when the box came for the first time, or waits for another reason than before.
	New bool
}

func (e *PendingError) Error() string {
	return fmt.Sprintf("box with key %s waits for approval: %s", e.Fingerprint, e.Reason)
}

// Pending returns the boxes that wait or were denied, by first appearance.
func (t *Tokens) Pending(ctx context.Context) ([]PendingRecord, error) {
	items, err := t.store.List(ctx, pendingPrefix)
	if err != nil {
		return nil, fmt.Errorf("list waiting boxes: %w", err)
	}
	var out []PendingRecord
	for _, it := range items {
		var rec PendingRecord
		if err := json.Unmarshal(it.Value, &rec); err != nil {
			t.log.Error("waiting box's record in the store can't be read, it is passed over", "key", it.Key, "err", err)
			continue
		}
		out = append(out, rec)
	}
	slices.SortStableFunc(out, func(a, b PendingRecord) int { return a.FirstSeen.Compare(b.FirstSeen) })
	return out, nil
}

// wait notes that the box came, and returns *PendingError. had is its record before, at revision rev (0 = none).
func (t *Tokens) wait(ctx context.Context, had PendingRecord, rev int64, token TokenRecord, c Claim, p placement) error {
	now := t.now().UTC()
	rec := PendingRecord{
		SPKI: c.SPKI, TokenID: token.ID, Tenant: p.tenant, Told: printable(c.Tenant), Hostname: printable(c.Hostname), Serial: printable(c.Serial),
		Version: printable(c.Version), Remote: host(c.Remote), Reason: p.wait, FirstSeen: now, LastSeen: now,
	}
	waits := &PendingError{Fingerprint: c.SPKI, Reason: p.wait, New: rev == 0 || had.Reason != p.wait}
	if rev != 0 {
		rec.FirstSeen = had.FirstSeen
		same := had
		same.LastSeen, same.Remote = rec.LastSeen, rec.Remote
		every := changeEvery
		if same == rec {
			every = seenEvery
		}
		if now.Sub(had.LastSeen) < every {
			waits.New = false
			return waits
		}
	}
	val, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if rev == 0 {
		t.count.mu.Lock() // so that boxes that come together are counted
		defer t.count.mu.Unlock()
		if err := t.room(ctx, token.ID); err != nil {
			return err
		}
	}
	if err := t.store.Commit(ctx, store.Replace(pendingKey(c.SPKI), val, rev)); err != nil {
		return err
	}
	return waits
}

// pendingCount remembers which tokens' lists were full, so that a crowd does not have them counted for each box.
type pendingCount struct {
	mu   sync.Mutex
	full map[string]time.Time // guarded by mu: token (or "" for all) to when it was found full
}

// room tells whether one more box may wait. t.count.mu is held.
func (t *Tokens) room(ctx context.Context, token string) error {
	now := t.now()
	for _, key := range []string{"", token} {
		if at, ok := t.count.full[key]; ok && now.Sub(at) < fullFor {
			return ErrPendingFull
		}
	}
	recs, err := t.Pending(ctx)
	if err != nil {
		return err
	}
	all, own := 0, 0
	for _, rec := range recs {
		if rec.DeniedAt != nil {
			continue
		}
		all++
		if rec.TokenID == token {
			own++
		}
	}
	t.count.full = map[string]time.Time{}
	switch {
	case all >= t.maxPending:
		t.count.full[""] = now
	case own >= t.maxPendingPerToken:
		t.count.full[token] = now
	default:
		return nil
	}
	t.log.Error("too many boxes wait for approval: new ones are not noted until some are approved or denied, or up to an hour after the token is revoked", "token", token, "waiting", all, "ofToken", own)
	return ErrPendingFull
}

// pendingOf finds a box by its fingerprint, or at least 16 hex digits of its beginning.
func (t *Tokens) pendingOf(ctx context.Context, prefix string) (PendingRecord, error) {
	want, err := fingerprintPrefix(prefix)
	if err != nil {
		return PendingRecord{}, err
	}
	recs, err := t.Pending(ctx)
	if err != nil {
		return PendingRecord{}, err
	}
	var found []PendingRecord
	for _, rec := range recs {
		if strings.HasPrefix(hexOf(rec.SPKI), want) {
			found = append(found, rec)
		}
	}
	switch len(found) {
	case 0:
		return PendingRecord{}, fmt.Errorf("%w: fingerprint %s (see `broker node pending`)", ErrPendingNotFound, want)
	case 1:
		return found[0], nil
	}
	return PendingRecord{}, fmt.Errorf("fingerprint %s is that of %d waiting boxes (%s, %s ...): give more digits", want, len(found), hexOf(found[0].SPKI), hexOf(found[1].SPKI))
}

// getPending returns a key's record and revision; the zero record and 0 if there is none.
func getPending(ctx context.Context, s Store, spki string) (PendingRecord, int64, error) {
	it, err := s.Get(ctx, pendingKey(spki))
	if errors.Is(err, store.ErrNotFound) {
		return PendingRecord{}, 0, nil
	}
	if err != nil {
		return PendingRecord{}, 0, err
	}
	var rec PendingRecord
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return PendingRecord{}, 0, fmt.Errorf("waiting box %s: record in the store can't be read: %w", spki, err)
	}
	return rec, it.Rev, nil
}

const spkiPrefix = "sha256:"

func hexOf(spki string) string { return strings.TrimPrefix(spki, spkiPrefix) }

// fingerprintPrefix reads what an operator typed: in any case, with or without "sha256:".
func fingerprintPrefix(s string) (string, error) {
	p := hexOf(strings.ToLower(strings.TrimSpace(s)))
	if len(p) < minPrefix || len(p) > 64 || strings.Trim(p, "0123456789abcdef") != "" {
		return "", fmt.Errorf("malformed fingerprint %q: want %d to 64 hex digits, as `broker node pending` and the box's console show them", cut(s, 80), minPrefix)
	}
	return p, nil
}

// fingerprint reads a whole one, and gives it the form of pki.SPKIHash.
func fingerprint(s string) (string, error) {
	p, err := fingerprintPrefix(s)
	if err == nil && len(p) != 64 {
		err = fmt.Errorf("malformed fingerprint %q: want all 64 hex digits", cut(s, 80))
	}
	return spkiPrefix + p, err
}

// printable is what a box said, fit for an operator's terminal and the store.
func printable(s string) string {
	return cut(strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, cut(strings.TrimSpace(s), 253)), 253)
}

// cut bounds a string, in bytes, and leaves no half rune.
func cut(s string, limit int) string {
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "")
	}
	return s
}

func host(remote string) string {
	if h, _, err := net.SplitHostPort(remote); err == nil {
		return h
	}
	return remote
}
