package enroll

import (
	"slices"
	"time"
)

// Lineage is what a session's hello tells of its box, and what the broker knows of the session. A box whose disk was
// copied and its copy have one key and one certificate: only their pasts differ, from the copy on.
type Lineage struct {
	// Instance, Ancestors, Generation, Volatile and Handover are those of wire.Hello.
	Instance   string
	Ancestors  []string
	Generation uint64
	Volatile   bool
	Handover   bool
	// SPKI is the hash of the session's key: another key is another box, with a line of its own.
	SPKI string
	// Remote is the address that the session comes from.
	Remote string
	Now    time.Time
}

// Verdict is what becomes of a session.
type Verdict int

// The verdicts. The zero value lets nobody in.
const (
	Undecided   Verdict = iota
	Accepted            // it is the newest session of the node's one box
	Superseded          // it is an attempt of before the newest, that comes late
	Quarantined         // two boxes use the identity, or an operator kept the other one
	HandedOver          // a newer session of the same box took over, and lets this one finish what it has begun
)

// Line is one of the boxes that use a quarantined identity, as far as they can be told apart.
type Line struct {
	// ID is the instance by which the box was first noticed; `broker node resolve --keep` takes it.
	ID string `json:"id"`
	// Instance, Ancestors and Generation are of its last hello.
	Instance   string   `json:"instance"`
	Ancestors  []string `json:"ancestors,omitempty"`
	Generation uint64   `json:"generation"`
	// Remote is where it last came from.
	Remote string `json:"remote"`
	// Since is when its session began, of those that had one, or when it was first refused.
	Since    time.Time `json:"since"`
	LastSeen time.Time `json:"lastSeen"`
	// Handover: its session took over from one that it lets finish.
	Handover bool `json:"handover,omitempty"`
	// Own are the instances that no other line has, oldest first.
	Own []string `json:"own,omitempty"`
}

// lineageRecord is what is remembered of a node's sessions: /mooring/lineage/TENANT/NODE.
type lineageRecord struct {
	SPKI string `json:"spki"`
	// Tip is the session that was accepted last.
	Tip Line `json:"tip"`
	// Before is the tip that a box without a known past took over from; nil: none did.
	Before *Line `json:"before,omitempty"`
	// Past are the instances known of the line of Tip, newest first: accepted ones and those that they named.
	Past []string `json:"past,omitempty"`
	// Barred are instances of boxes that an operator put out; with the prefix "=" (alone) those that are barred as the
	// instance of a hello only, and not as an ancestor.
	Barred []string `json:"barred,omitempty"`
	// Lines are the boxes in quarantine; empty: none is.
	Lines []Line     `json:"lines,omitempty"`
	Since *time.Time `json:"since,omitempty"` // of the quarantine
}

const (
	// maxLines bounds the boxes of one quarantine that are told apart; further ones are refused and not listed.
	maxLines  = 8
	maxPast   = 64
	maxBarred = 64
	maxOwn    = 16
	// noInstance stands for the instance of a box that keeps no lineage, where the node kept one before.
	noInstance = "0000000000000000"

	alone = "="

	reasonClone  = "two boxes use this identity"
	reasonBarred = "an operator kept another box of this identity"
)

// judgement is what judge says.
type judgement struct {
	verdict Verdict
	// clone: two boxes were found just now. restarted: a box without a past that was known took over from a session
	// that is dead.
	clone, restarted bool
	reason           string
	// changed: the record is another than before.
	changed bool
}

// judge decides on a session from what is known of the node's line, and brings the record up to date. alive tells
// whether the older session is there and answers; it is asked only where the rest leaves it open. Pure but for that.
func judge(rec *lineageRecord, h Lineage, alive func() bool) judgement {
	if rec.SPKI != h.SPKI {
		*rec = lineageRecord{SPKI: h.SPKI}
	}
	tip, keeps := rec.Tip.Instance, h.Instance != ""
	h = h.named()
	switch {
	case rec.barred(h):
		return judgement{verdict: Quarantined, reason: reasonBarred}
	case len(rec.Lines) > 0:
		return judgement{verdict: Quarantined, reason: reasonClone, changed: rec.note(h)}
	case tip == "" && !keeps:
		return judgement{verdict: Accepted} // no lineage is kept, and none was
	case tip == "":
		return rec.accept(h, "first session")
	case h.Instance == tip && tip != noInstance:
		if h.Generation > rec.Tip.Generation {
			return rec.accept(h, "same instance again")
		}
		return judgement{verdict: Superseded, reason: "a later attempt of the same box was accepted"}
	case slices.Contains(h.Ancestors, tip):
		return rec.accept(h, "goes on from the last session")
	case h.Generation > rec.Tip.Generation && slices.Contains(rec.Tip.Ancestors, h.Instance):
		// One box alone counts on from what it told last. This one was about to use the instance when its disk was
		// copied; the copy named it as an ancestor.
		return rec.quarantine(h)
	case rec.Before != nil && h.Instance == rec.Before.Instance && h.Generation > rec.Before.Generation:
		return rec.quarantine(h) // the box that seemed dead is not
	case h.Instance != noInstance && slices.Contains(rec.Past, h.Instance):
		return judgement{verdict: Superseded, reason: "a newer session of the same box was accepted"}
	case h.Volatile || !rec.shares(h):
		// No past to compare: a box that lost its disk's memory, or was started more often without being let in than
		// it remembers. That is another box only if the older one is there at the same time.
		if alive() {
			return rec.quarantine(h)
		}
		before := rec.Tip
		rec.Before = &before
		j := rec.accept(h, "a box whose past is not known, and the older session is dead")
		j.restarted = true
		return j
	}
	return rec.quarantine(h)
}

// named gives a box without an instance the one that stands for none.
func (h Lineage) named() Lineage {
	if h.Instance == "" {
		h.Instance, h.Ancestors = noInstance, nil
	}
	return h
}

// shares tells whether the box has a past in common with the line: then it left the line before its tip, else the tip
// would be among its ancestors.
func (rec *lineageRecord) shares(h Lineage) bool {
	return slices.ContainsFunc(append([]string{h.Instance}, h.Ancestors...), func(i string) bool {
		return i != noInstance && slices.Contains(rec.Past, i)
	})
}

func (rec *lineageRecord) barred(h Lineage) bool {
	return slices.Contains(rec.Barred, h.Instance) || slices.Contains(rec.Barred, alone+h.Instance) ||
		slices.ContainsFunc(h.Ancestors, func(a string) bool { return slices.Contains(rec.Barred, a) })
}

// accept makes the session the tip of the line.
func (rec *lineageRecord) accept(h Lineage, reason string) judgement {
	rec.Tip = lineOf(h)
	rec.Past = first(maxPast, union(append([]string{h.Instance}, h.Ancestors...), rec.Past))
	return judgement{verdict: Accepted, reason: reason, changed: true}
}

// quarantine puts the tip's box and this one out.
func (rec *lineageRecord) quarantine(h Lineage) judgement {
	rec.Lines = []Line{rec.Tip}
	if h.Instance != rec.Tip.ID { // else neither keeps a lineage: there is nothing to tell them apart by
		rec.Lines = append(rec.Lines, lineOf(h))
	}
	rec.Since = &h.Now
	return judgement{verdict: Quarantined, clone: true, reason: reasonClone, changed: true}
}

// note finds the box among the lines of the quarantine, or adds it.
func (rec *lineageRecord) note(h Lineage) (changed bool) {
	i := slices.IndexFunc(rec.Lines, func(l Line) bool { return slices.Contains(l.Own, h.Instance) })
	if i < 0 {
		if slices.ContainsFunc(rec.Lines, func(l Line) bool { return slices.Contains(l.Ancestors, h.Instance) }) {
			return false // an attempt that comes late
		}
		i = slices.IndexFunc(rec.Lines, func(l Line) bool { return slices.Contains(h.Ancestors, l.Instance) })
	}
	if i >= 0 {
		l := &rec.Lines[i]
		if h.Generation < l.Generation {
			return false // another that comes late
		}
		l.Own = last(maxOwn, union(l.Own, []string{h.Instance}))
		l.Instance, l.Ancestors, l.Generation, l.Remote, l.LastSeen = h.Instance, h.Ancestors, h.Generation, h.Remote, h.Now
		return true
	}
	if len(rec.Lines) >= maxLines {
		return false
	}
	rec.Lines = append(rec.Lines, lineOf(h))
	return true
}

// keep ends the quarantine in favour of one line.
func (rec *lineageRecord) keep(id string) bool {
	i := slices.IndexFunc(rec.Lines, func(l Line) bool { return l.ID == id })
	if i < 0 {
		return false
	}
	kept := rec.Lines[i]
	its := append(slices.Clone(kept.Own), kept.Ancestors...)
	for j, l := range rec.Lines {
		if j == i {
			continue
		}
		for _, own := range l.Own {
			if slices.Contains(its, own) {
				own = alone + own // the kept box has it among its ancestors, but does not come with it any more
			}
			rec.Barred = append(rec.Barred, own)
		}
	}
	rec.Barred = last(maxBarred, union(rec.Barred, nil))
	rec.Tip, rec.Lines, rec.Since, rec.Before = kept, nil, nil, nil
	rec.Past = slices.DeleteFunc(union(its, rec.Past), func(i string) bool { return slices.Contains(rec.Barred, i) })
	rec.Past = first(maxPast, rec.Past)
	return true
}

// current judges a session that was accepted, from what the record says by now.
func (rec *lineageRecord) current(h Lineage) judgement {
	h = h.named()
	switch {
	case rec.SPKI != h.SPKI, rec.Tip.Instance == "":
		return judgement{verdict: Accepted} // no line of this key is known
	case len(rec.Lines) > 0:
		return judgement{verdict: Quarantined, reason: reasonClone}
	case rec.barred(h):
		return judgement{verdict: Quarantined, reason: reasonBarred}
	case rec.Tip.Instance == h.Instance && rec.Tip.Generation == h.Generation:
		return judgement{verdict: Accepted}
	case rec.Tip.Handover && (rec.Tip.Instance == h.Instance && h.Instance != noInstance || slices.Contains(rec.Tip.Ancestors, h.Instance)):
		return judgement{verdict: HandedOver, reason: "a newer session of this box took over"}
	}
	return judgement{verdict: Superseded, reason: "a newer session of this node took over"}
}

func lineOf(h Lineage) Line {
	return Line{
		ID: h.Instance, Instance: h.Instance, Ancestors: slices.Clone(h.Ancestors), Generation: h.Generation,
		Remote: h.Remote, Since: h.Now, LastSeen: h.Now, Handover: h.Handover, Own: []string{h.Instance},
	}
}

// union is a, then what b has besides, without repetitions.
func union(a, b []string) []string {
	var out []string
	for _, s := range append(slices.Clone(a), b...) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func first(n int, s []string) []string { return s[:min(n, len(s))] }
func last(n int, s []string) []string  { return s[max(0, len(s)-n):] }
